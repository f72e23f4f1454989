"""Check of the DAG files of a tree: each is parsed in a child process.

The child (`airbridge.executor.bundles._parse`) parses and serialises each file as Airflow's dag-processor does. It has no
database, its own session, a bound on time, an environment without secrets (`airbridge.executor.bundles.parse_environment`)
and is confined (`airbridge.core.sandbox.confinement`).

A file that fails only because it reads a variable or a connection while it is parsed counts as good: there are none in the
child, and the dag-processor checks the file where there are.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from airbridge.core.exceptions import BundleError, ParseFailure
from airbridge.core.sandbox import trees
from airbridge.executor.placement.check import TaskHints

log = structlog.get_logger(__name__)

_STDERR_TAIL = 2000
# Most that a report may have: 20,000 files with a traceback's last line each have less.
_REPORT_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class ParseReport:
    """Result of a check: files that fail, and files that cannot be checked without variables and connections."""

    failures: tuple[ParseFailure, ...]
    unjudged: tuple[str, ...] = ()
    # The file of each DAG found.
    files: Mapping[str, str] = field(default_factory=dict)
    # The tasks that name a queue or hints.
    tasks: tuple[TaskHints, ...] = ()

    @property
    def dags(self) -> tuple[str, ...]:
        """The ids of the DAGs found."""
        return tuple(self.files)

    def with_failures(self, more: Iterable[ParseFailure]) -> ParseReport:
        """Return the report with more failures."""
        return replace(self, failures=(*self.failures, *more))


def check(
    root: Path,
    *,
    environment: Mapping[str, str],
    timeout_seconds: float = 120.0,
    required: bool = False,
    packages: Path | None = None,
) -> ParseReport:
    """Parse every DAG file under `root`. Raises `BundleError` only if no parser could be started.

    `required`: a host where the child cannot be confined fails every tree. `packages`: the bundle's unpacked environment.
    """
    root = root.resolve()
    with trees.Scratch("airbridge-parse-") as scratch:
        report = scratch / "report.jsonl"
        report.touch()
        options = (str(int(timeout_seconds)), "required" if required else "auto", str(packages or ""))
        ending = _run(root, report, {"AIRFLOW_HOME": str(scratch), **environment}, timeout_seconds, options)
        verdict = _read(report, ending)
    log.info(
        "bundle.parsed",
        dags=len(verdict.dags),
        failures=len(verdict.failures),
        unjudged=list(verdict.unjudged),
    )
    return verdict


def _run(
    root: Path,
    report: Path,
    environment: Mapping[str, str],
    timeout_seconds: float,
    options: tuple[str, ...],
) -> str:
    """Run the child to its end; return what is wrong with how it ended, or an empty string."""
    command = [
        sys.executable,
        "-m",
        "airbridge.executor.bundles._parse",
        str(root),
        str(report),
        *options,
    ]
    with tempfile.TemporaryFile() as stderr:
        try:
            child = subprocess.Popen(  # noqa: S603 - our own module under our own interpreter
                command,
                cwd=report.parent,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                start_new_session=True,
            )
        except OSError as error:
            raise BundleError(f"the DAG parser cannot be started: {error}", transient=True) from error
        try:
            code = child.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            return f"parsing took longer than {timeout_seconds:g} s"
        finally:
            if child.returncode is None:
                _end(child)
        if code == 0:
            return ""
        stderr.seek(max(0, stderr.seek(0, os.SEEK_END) - _STDERR_TAIL))
        last = stderr.read().decode(errors="replace").strip().rpartition("\n")[2]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return f"the parser ended with {how}" + (f": {last}" if last else "")


def _end(child: subprocess.Popen[bytes]) -> None:
    """End the child and whatever it started: it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _read(report: Path, ending: str) -> ParseReport:
    failures: list[ParseFailure] = []
    unjudged: list[str] = []
    files: dict[str, str] = {}
    tasks: list[TaskHints] = []
    parsing = "the DAG folder"
    done = False
    for entry in _entries(report):
        match entry:
            case {"kind": "parsing", "file": str(file)}:
                parsing = file
            case {"kind": "failed", "file": str(file), "line": int() | None as line, "error": str(error)}:
                failures.append(ParseFailure(file, line, error))
            case {"kind": "unjudged", "file": str(file)}:
                unjudged.append(file)
            case {"kind": "dag", "dag_id": str(dag_id), "file": str(file)}:
                files.setdefault(dag_id, file)
            case {"kind": "task", "file": str(file), **given} if task := _task(file, given):
                tasks.append(task)
            case {"kind": "done"}:
                done = True
            case _:
                return ParseReport((ParseFailure(parsing, None, "the parser's report was tampered with"),))
    if not done:
        failures.append(ParseFailure(parsing, None, ending or "the parser ended early, without an error"))
    return ParseReport(tuple(failures), tuple(unjudged), files, tuple(tasks))


def _task(file: str, given: Mapping[Any, Any]) -> TaskHints | None:
    """Return a task of a report; None for anything that the child would not write."""
    match given:
        case {
            "dag_id": str(dag_id),
            "task_id": str(task_id),
            "queue": str() | None as queue,
            "executor": str() | None as executor,
            "config": dict() | None as config,
        } if not Path(file).is_absolute() and ".." not in Path(file).parts:
            return TaskHints(file, dag_id, task_id, queue, executor, config)
    return None


def _entries(report: Path) -> Iterator[Any]:
    """Yield the entries of a report; None where a line is none, for the code that was parsed may have written it."""
    if report.is_symlink() or not report.is_file() or report.stat().st_size > _REPORT_BYTES:
        yield None
        return
    for line in report.read_text(errors="replace").splitlines():
        try:
            yield json.loads(line)
        except (ValueError, RecursionError):
            yield None
