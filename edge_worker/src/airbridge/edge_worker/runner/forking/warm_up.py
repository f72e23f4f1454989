"""Warm-up: a task that the zygote runs in its own process, several times, before the first fork.

The first run of a task costs most: late imports, caches that fill, code that Python specialises. Done here it is done once,
and in memory that all tasks share. The warm-up has no effect outside: the supervisor is a stand-in, listeners are not called,
and the environment is restored.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

from airbridge.edge_worker import _airflow
from airbridge.edge_worker.proxy.protocol import Reply
from airbridge.edge_worker.runner.messages import Job, Source

# Python 3.11 and 3.12 specialise code after eight runs; the rest is for code that those runs reach late.
ROUNDS: Final = 12

_DAG_ID: Final = "airbridge_warm_up"
_TI_ID: Final = str(UUID(int=0))
_TIME: Final = "2025-01-01T00:00:00Z"

# In the package: this process has no sandbox, so it executes nothing from a place that tasks can write to, /tmp included.
SOURCE: Final = Source("airbridge", "warm_up", str(Path(__file__).with_name("warm_up_bundle")), "dag.py")


class _NullConnection:
    """A proxy connection on which every call succeeds."""

    def call(self, method: str, path: str, query: str, body: str | None) -> Reply:  # noqa: ARG002 - ProxyConnection's signature
        return Reply(
            id=1,
            status=200 if method == "POST" else 204,
            body='{"message": "ok"}' if method == "POST" else None,
        )

    def pause(self, seconds: float) -> None:
        """Do nothing: no call is ever retried."""


def run() -> None:
    """Parse a DAG file and run a task of it `ROUNDS` times. Errors are logged only: tasks will be slower, not wrong."""
    _airflow.LOG_CHANNEL.buffer(True)
    try:
        with _restored(), _airflow.without_listeners():
            parsed = _airflow.parse(SOURCE)
            for _ in range(ROUNDS):
                _airflow.run_in_process(_job(), parsed, _NullConnection())
    except Exception:  # noqa: BLE001 - whatever plugins and policies may raise
        _airflow.LOG_CHANNEL.discard()
        structlog.get_logger().exception("runner.warm_up_failed")
    _airflow.LOG_CHANNEL.discard()


def _job() -> Job:
    ti = {
        "id": _TI_ID,
        "task_id": "warm_up",
        "dag_id": _DAG_ID,
        "run_id": "warm_up",
        "try_number": 1,
        "map_index": -1,
    }
    times = ("logical_date", "data_interval_start", "data_interval_end", "start_date", "run_after")
    dag_run = {
        "dag_id": _DAG_ID,
        "run_id": "warm_up",
        "run_type": "manual",
        "conf": {},
        "consumed_asset_events": [],
    }
    return Job(
        item_id=_TI_ID,
        epoch=1,
        ti=ti,
        ti_context={
            "dag_run": {**dag_run, **dict.fromkeys(times, _TIME)},
            "max_tries": 0,
            "should_retry": False,
        },
        start_date=datetime.now(tz=UTC),
        source=SOURCE,
        working_dir=os.devnull,
        kill_grace_seconds=0,
    )


@contextmanager
def _restored() -> Iterator[None]:
    """Restore environment, signal handlers, import path and modules at the end of the block."""
    environ = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environ)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        with suppress(ValueError):
            sys.path.remove(SOURCE.bundle_path)
        # The prefix that DagBag gives to the modules of DAG files.
        for name in [name for name in sys.modules if name.startswith("unusual_prefix_")]:
            del sys.modules[name]
