"""Warm-up: a task that the zygote runs in its own process, several times, before the first fork.

The first run of a task costs most: late imports, caches that fill, code that Python specialises. Done here it is done once,
and in memory that all tasks share. The warm-up has no effect outside: the supervisor is a stand-in, listeners are not called,
and the environment is restored.
"""

from __future__ import annotations

import os
import shutil
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

_FILE: Final = f'''
from datetime import datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, Variable, chain, setup, task, task_group, teardown

with DAG("{_DAG_ID}", schedule="@daily", start_date=datetime(2025, 1, 1), catchup=False, default_args={{"retries": 1}}):

    @task
    def warm_up(number: int = 1, day="{{{{ ds }}}}"):
        return {{"number": number}}

    @task_group
    def group():
        warm_up.override(task_id="mapped").expand(number=[1, 2])

    BashOperator(task_id="bash", bash_command="true {{{{ ds }}}}") >> warm_up() >> group()
    PythonOperator(task_id="python", python_callable=print)
'''


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


def run(folder: Path) -> None:
    """Parse a DAG file and run a task of it `ROUNDS` times. Errors are logged only: tasks will be slower, not wrong."""
    source = Source("airbridge", "warm_up", str(folder), "warm_up.py")
    _airflow.LOG_CHANNEL.buffer(True)
    try:
        with _restored(folder), _airflow.without_listeners():
            (folder / "warm_up.py").write_text(_FILE)
            parsed = _airflow.parse(source)
            for _ in range(ROUNDS):
                _airflow.run_in_process(_job(source), parsed, _NullConnection())
    except Exception:  # noqa: BLE001 - whatever plugins and policies may raise
        _airflow.LOG_CHANNEL.discard()
        structlog.get_logger().exception("runner.warm_up_failed")
    _airflow.LOG_CHANNEL.discard()


def _job(source: Source) -> Job:
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
        source=source,
        working_dir=os.devnull,
        kill_grace_seconds=0,
    )


@contextmanager
def _restored(folder: Path) -> Iterator[None]:
    """Restore environment, signal handlers, import path, modules and disk at the end of the block."""
    environ = dict(os.environ)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGALRM)}
    folder.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environ)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        with suppress(ValueError):
            sys.path.remove(str(folder))
        # The prefix that DagBag gives to the modules of DAG files.
        for name in [name for name in sys.modules if name.startswith("unusual_prefix_")]:
            del sys.modules[name]
        shutil.rmtree(folder, ignore_errors=True)
