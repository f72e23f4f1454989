"""A task that the zygote runs on itself, several times over, before the first fork.

What a task does for the first time costs most: late imports, caches that fill, code that Python specialises. Done
here it is done once, and in memory that all tasks share. Nothing of the rehearsal is seen by anybody: the channel to
the supervisor is a pretence, listeners are not called, and the environment is put back.
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
from airbridge.edge_worker.frames import Reply
from airbridge.edge_worker.runner.messages import Job, Source

ROUNDS: Final = 12
"""Python 3.11 and 3.12 specialise code after eight runs; the rest is for what hangs on that."""

_DAG_ID: Final = "airbridge_rehearsal"
_TI_ID: Final = str(UUID(int=0))
_TIME: Final = "2025-01-01T00:00:00Z"

_FILE: Final = f'''
from datetime import datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, Variable, chain, setup, task, task_group, teardown

with DAG("{_DAG_ID}", schedule="@daily", start_date=datetime(2025, 1, 1), catchup=False, default_args={{"retries": 1}}):

    @task
    def rehearse(number: int = 1, day="{{{{ ds }}}}"):
        return {{"number": number}}

    @task_group
    def group():
        rehearse.override(task_id="mapped").expand(number=[1, 2])

    BashOperator(task_id="bash", bash_command="true {{{{ ds }}}}") >> rehearse() >> group()
    PythonOperator(task_id="python", python_callable=print)
'''


class _NoLink:
    """A relay link at whose other end all is well."""

    def call(self, method: str, path: str, query: str, body: str | None) -> Reply:  # noqa: ARG002 - Link's signature
        return Reply(
            id=1,
            status=200 if method == "POST" else 204,
            body='{"message": "ok"}' if method == "POST" else None,
        )

    def pause(self, seconds: float) -> None:
        """Never needed."""


def rehearse(folder: Path) -> None:
    """Parse a DAG file and run a task of it `ROUNDS` times. What goes wrong is logged: tasks will only be slower."""
    source = Source("airbridge", "rehearsal", str(folder), "rehearsal.py")
    _airflow.LOG_CHANNEL.keep(True)
    try:
        with _put_back(folder), _airflow.unheard():
            (folder / "rehearsal.py").write_text(_FILE)
            parsed = _airflow.parse(source)
            for _ in range(ROUNDS):
                _airflow.pretend_to_run(_job(source), parsed, _NoLink())
    except Exception:  # noqa: BLE001 - whatever plugins and policies may raise
        _airflow.LOG_CHANNEL.forget()
        structlog.get_logger().exception("runner.rehearsal_failed")
    _airflow.LOG_CHANNEL.forget()


def _job(source: Source) -> Job:
    ti = {
        "id": _TI_ID,
        "task_id": "rehearse",
        "dag_id": _DAG_ID,
        "run_id": "rehearsal",
        "try_number": 1,
        "map_index": -1,
    }
    times = ("logical_date", "data_interval_start", "data_interval_end", "start_date", "run_after")
    dag_run = {
        "dag_id": _DAG_ID,
        "run_id": "rehearsal",
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
        room=os.devnull,
        kill_grace_seconds=0,
    )


@contextmanager
def _put_back(folder: Path) -> Iterator[None]:
    """Leave environment, signal handlers, import path, modules and disk as they were."""
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
        for name in [name for name in sys.modules if name.startswith("unusual_prefix_")]:
            del sys.modules[name]
        shutil.rmtree(folder, ignore_errors=True)
