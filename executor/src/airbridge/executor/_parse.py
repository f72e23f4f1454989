"""The child of `airbridge.executor.parsing`: ``python -m airbridge.executor._parse ROOT REPORT SECONDS [confined]``.

It leans on Airflow's dag-processor (`_parse_file`, `list_py_file_paths`, the place where the Task SDK looks for its
supervisor), pinned to 3.0.4 by tests/contract/test_airflow_bundles.py. The report is JSON lines, flushed one by
one, so that the parent knows which file was being parsed if this process dies.
"""

from __future__ import annotations

import json
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

import structlog

from airbridge.executor import confinement

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)', re.MULTILINE)


class NoRuntimeData(Exception):  # noqa: N818 - never leaves this process
    """Variables, connections and XComs are not to be had while a snapshot is checked."""


class _NoSupervisor:
    """Stands where the Task SDK looks for its supervisor; remembers that it was asked."""

    asked = False

    def send(self, *_: Any, **__: Any) -> NoReturn:
        self.asked = True
        raise NoRuntimeData("variables and connections are not available while a snapshot is checked")


def main(root: Path, report: TextIO, seconds: int) -> None:
    """Parse every DAG file under `root` into `report`. `seconds` of processor time at most."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds + 5, seconds + 10))
    supervisor = _NoSupervisor()
    _install(supervisor)
    sys.path.append(str(root))
    seen: dict[str, str] = {}
    for path in _dag_files(root):
        file = path.relative_to(root).as_posix()
        _say(report, "parsing", file=file)
        supervisor.asked = False
        errors, dag_ids = _parse(root, path)
        if errors and supervisor.asked:
            _say(report, "unjudged", file=file)
            continue
        for text in errors.values():
            _say(report, "failed", **explain(text, file, root))
        for dag_id in dag_ids:
            first = seen.setdefault(dag_id, file)
            if first != file:
                _say(
                    report,
                    "failed",
                    file=file,
                    line=None,
                    error=f"DAG {dag_id!r} is defined in {first} already",
                )
            _say(report, "dag", dag_id=dag_id)
    _say(report, "done")


def _install(supervisor: _NoSupervisor) -> None:
    from airflow.sdk.execution_time import task_runner

    task_runner.SUPERVISOR_COMMS = supervisor


def _dag_files(root: Path) -> Iterator[Path]:
    from airflow.utils.file import list_py_file_paths

    yield from sorted(Path(path) for path in list_py_file_paths(root))


def _parse(root: Path, path: Path) -> tuple[dict[str, str], list[str]]:
    from airflow.dag_processing.processor import DagFileParseRequest, _parse_file

    request = DagFileParseRequest(file=str(path), bundle_path=root)
    result = _parse_file(request, structlog.get_logger(logger_name="task"))
    return result.import_errors or {}, [dag.dag_id for dag in result.serialized_dags]


def explain(text: str, file: str, root: Path) -> dict[str, Any]:
    """File, line and error from the text of an import error: the innermost place that is the user's own code."""
    error = text.strip().splitlines()[-1].strip() if text.strip() else "cannot be imported"
    error = error.replace(f"{root}/", "")
    places = [(Path(place["file"]), int(place["line"])) for place in _FRAME.finditer(text)]
    own = [(path.relative_to(root).as_posix(), line) for path, line in places if path.is_relative_to(root)]
    if not own:
        return {"file": file, "line": None, "error": error}
    where, line = own[-1]
    if where != file:
        error = f"{error} (imported by {file})"
    return {"file": where, "line": line, "error": error}


def _say(report: TextIO, kind: str, **fields: Any) -> None:
    report.write(json.dumps({"kind": kind, **fields}) + "\n")
    report.flush()


if __name__ == "__main__":
    with open(sys.argv[2], "a", encoding="utf-8") as opened:  # noqa: PTH123 - the report's name is the parent's
        if sys.argv[4:] == ["confined"]:
            confinement.enter(Path(sys.argv[1]), Path(sys.argv[2]).parent)
        main(Path(sys.argv[1]), opened, int(sys.argv[3]))
