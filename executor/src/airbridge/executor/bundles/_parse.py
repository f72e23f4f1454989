"""Child process of `airbridge.executor.bundles.parsing`: ``python -m airbridge.executor.bundles._parse ROOT REPORT SECONDS auto|required PACKAGES``.

It uses Airflow's dag-processor (`_parse_file`, `list_py_file_paths`, the place where the Task SDK looks for its
supervisor), pinned to 3.0.4 by tests/contract/test_airflow_bundles.py. The report is JSON lines, flushed one by
one, so that the last line names the file that was being parsed if this process dies.
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

from airbridge.core.code import environment
from airbridge.core.hints import KEY
from airbridge.core.sandbox import confinement
from airbridge.executor.bundles.missing_module import with_remedy

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+)', re.MULTILINE)


class NoRuntimeData(Exception):  # noqa: N818 - never leaves this process
    """Variables, connections and XComs are not to be had while a snapshot is checked."""


class _NoSupervisor:
    """Replaces the Task SDK's supervisor, and records that it was called."""

    asked = False

    def send(self, *_: Any, **__: Any) -> NoReturn:
        self.asked = True
        raise NoRuntimeData("variables and connections are not available while a snapshot is checked")


def main(root: Path, report: TextIO, seconds: int, packages: str = "") -> None:
    """Parse every DAG file under `root` into `report`, with `packages` importable. `seconds` of processor time at most."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (seconds + 5, seconds + 10))
    supervisor = _NoSupervisor()
    _install(supervisor)
    sys.path.append(str(root))
    if packages:
        environment.activate(packages)
    seen: dict[str, str] = {}
    for path in _dag_files(root):
        file = path.relative_to(root).as_posix()
        _say(report, "parsing", file=file)
        supervisor.asked = False
        errors, dags = _parse(root, path)
        if errors and supervisor.asked:
            _say(report, "unjudged", file=file)
            continue
        for text in errors.values():
            _say(report, "failed", **explain(text, file, root))
        for dag in dags:
            dag_id = dag.dag_id
            first = seen.setdefault(dag_id, file)
            if first != file:
                _say(
                    report,
                    "failed",
                    file=file,
                    line=None,
                    error=f"DAG {dag_id!r} is defined in {first} already",
                )
            _say(report, "dag", dag_id=dag_id, file=file)
            for task in _placed_tasks(dag):
                _say(report, "task", file=file, dag_id=dag_id, **task)
    _say(report, "done")


def _install(supervisor: _NoSupervisor) -> None:
    from airflow.sdk.execution_time import task_runner

    task_runner.SUPERVISOR_COMMS = supervisor


def _dag_files(root: Path) -> Iterator[Path]:
    from airflow.utils.file import list_py_file_paths

    yield from sorted(Path(path) for path in list_py_file_paths(root))


def _parse(root: Path, path: Path) -> tuple[dict[str, str], list[Any]]:
    from airflow.dag_processing.processor import DagFileParseRequest, _parse_file

    request = DagFileParseRequest(file=str(path), bundle_path=root)
    result = _parse_file(request, structlog.get_logger(logger_name="task"))
    return result.import_errors or {}, result.serialized_dags


def _placed_tasks(dag: Any) -> Iterator[dict[str, Any]]:
    """Yield the tasks of a serialised DAG that have a queue, an executor or an executor_config of their own."""
    from airflow.serialization.serialized_objects import BaseSerialization

    for task in dag.data["dag"]["tasks"]:
        fields = task["__var"]
        # A mapped operator keeps what is not mapped apart.
        own = fields.get("partial_kwargs", {}) if fields.get("_is_mapped") else fields
        config = own.get("executor_config")
        config = BaseSerialization.deserialize(config) if config else None
        if own.get("queue") or own.get("executor") or config:
            yield {
                "task_id": fields["task_id"],
                "queue": own.get("queue"),
                "executor": own.get("executor"),
                "config": _plain(config) if isinstance(config, dict) else None,
            }


def _plain(config: dict[Any, Any]) -> dict[str, Any]:
    """Return an executor_config as JSON: AirBridge's hints, and of other executors the names alone."""
    named = {str(key): value if key == KEY else None for key, value in config.items()}
    plain: dict[str, Any] = json.loads(json.dumps(named, default=repr))
    return plain


def explain(text: str, file: str, root: Path) -> dict[str, Any]:
    """File, line and error from the text of an import error: the innermost place that is the user's own code."""
    error = text.strip().splitlines()[-1].strip() if text.strip() else "cannot be imported"
    error = error.replace(f"{root}/", "")
    places = [(Path(place["file"]), int(place["line"])) for place in _FRAME.finditer(text)]
    own = [(path.relative_to(root).as_posix(), line) for path, line in places if path.is_relative_to(root)]
    if not own:
        return {"file": file, "line": None, "error": with_remedy(error)}
    where, line = own[-1]
    if where != file:
        error = f"{error} (imported by {file})"
    return {"file": where, "line": line, "error": with_remedy(error)}


def _say(report: TextIO, kind: str, **fields: Any) -> None:
    report.write(json.dumps({"kind": kind, **fields}) + "\n")
    report.flush()


if __name__ == "__main__":
    with open(sys.argv[2], "a", encoding="utf-8") as opened:  # noqa: PTH123 - the report's name is the parent's
        dags, scratch = Path(sys.argv[1]), Path(sys.argv[2]).parent
        readable = [dags, Path(sys.argv[5])] if sys.argv[5] else [dags]
        confinement.enter(readable, scratch, required=sys.argv[4] == "required")
        main(dags, opened, int(sys.argv[3]), sys.argv[5])
