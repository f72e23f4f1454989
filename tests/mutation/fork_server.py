"""A process with Airflow imported, from which each test run is forked: a run starts in a fraction of a second.

It reads an order a line from standard input and answers each with a line on standard output. AirBridge's own modules are
imported only after the fork, with whatever fault is in them.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Final

TIMED_OUT: Final = -1
"""Exit code of a run that had to be ended."""
PRELOADED: Final = (
    "pytest",
    "hypothesis",
    "trustme",
    "boto3",
    "moto",
    "httpx",
    "uvicorn",
    "airflow.models.dagbag",
    "airflow.jobs.scheduler_job_runner",
    "airflow.api_fastapi.execution_api.app",
    "airflow.sdk.execution_time.supervisor",
)
"""Slow to import, and not under test."""


@dataclass(frozen=True, slots=True)
class Order:
    """A test run to be made."""

    tests: list[str]
    timeout_seconds: float
    test_timeout_seconds: float
    log: str
    stop_at_first: bool = True
    record: str = ""
    """File for coverage data; empty to measure nothing."""
    files: list[str] = field(default_factory=list)
    """The files whose lines are recorded."""


@dataclass(frozen=True, slots=True)
class Run:
    """Result of a test run."""

    exit_code: int
    """pytest's; `TIMED_OUT` if it ran out of time, less than that if a signal ended it."""
    seconds: float
    failed: list[str] = field(default_factory=list)
    durations: dict[str, float] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def serve() -> None:
    """Answer orders until standard input ends."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    _preload()
    for line in sys.stdin:
        order = json.loads(line)
        if order.pop("migrate", False):
            answer: Any = _forked(_migrate, Order(**order))
        else:
            answer = _forked(_test, Order(**order))
        answers.write(json.dumps(asdict(answer)) + "\n")


def _preload() -> None:
    from tests.support import airflow_home

    airflow_home.isolate()
    for name in PRELOADED:
        import_module(name)
    loaded = [name for name in sys.modules if name.startswith("airbridge.")]
    if loaded:
        raise RuntimeError(f"these would be tested without their faults: {', '.join(loaded)}")


def _forked(work: Any, order: Order) -> Run:
    scratch = Path(order.log).with_suffix(".tmp")
    result = Path(order.log).with_suffix(".json")
    scratch.mkdir(parents=True, exist_ok=True)
    result.unlink(missing_ok=True)
    began = time.monotonic()
    gc.freeze()  # a collection in the child would copy every page
    child = os.fork()
    if child == 0:
        _child(work, order, scratch, result)
    code = _wait(child, order.timeout_seconds)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    shutil.rmtree(scratch, ignore_errors=True)
    found = json.loads(result.read_text()) if result.exists() else {}
    return Run(exit_code=code, seconds=time.monotonic() - began, **found)


def _child(work: Any, order: Order, scratch: Path, result: Path) -> None:
    """Run in the child: in a process group and a temporary directory of its own. Never returns."""
    os.setsid()
    os.environ["TMPDIR"] = str(scratch)
    import tempfile

    tempfile.tempdir = None
    log = os.open(order.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for source, target in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(source, target)
    code = 70
    try:
        code, found = work(order)
        result.write_text(json.dumps(found))
    except BaseException:  # noqa: BLE001 - the process ends here, with the reason in its log
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _wait(child: int, timeout_seconds: float) -> int:
    """Return the child's exit code, -1 if it had to be killed, or less if a signal ended it."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else code - 1
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return TIMED_OUT


def _test(order: Order) -> tuple[int, dict[str, Any]]:
    import pytest
    from tests.mutation.recorder import Lines, Reports

    reports = Reports()
    plugins: list[Any] = [reports]
    if order.record:
        plugins.append(Lines(Path(order.record), order.files))
    code = pytest.main(
        [
            *order.tests,
            "-q",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:xdist",
            "-W",
            "ignore::pytest.PytestAssertRewriteWarning",  # of plugins that were imported before the fork
            f"--timeout={order.test_timeout_seconds:.0f}",
            *(["-x"] if order.stop_at_first else []),
        ],
        plugins=plugins,
    )
    if order.record:
        plugins[1].save()
    return int(code), {
        "failed": reports.failed,
        "durations": dict(reports.seconds),
        "skipped": reports.skipped,
    }


def _migrate(_order: Order) -> tuple[int, dict[str, Any]]:
    """Make the migrated databases that all runs copy."""
    from tests.support.airflow_home import (
        POSTGRES_TEMPLATE_VARIABLE,
        SQLITE_TEMPLATE_VARIABLE,
        migrate,
    )
    from tests.support.postgres import SERVER_VARIABLE, Postgres

    postgres = Postgres(Path(os.environ[SERVER_VARIABLE]))
    name = os.environ[POSTGRES_TEMPLATE_VARIABLE]
    postgres.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
    migrate(postgres.url(name))
    migrate(f"sqlite:///{os.environ[SQLITE_TEMPLATE_VARIABLE]}")
    return 0, {}


if __name__ == "__main__":
    serve()
