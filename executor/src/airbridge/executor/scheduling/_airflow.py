"""Uses of Airflow's internals by the executor in the scheduler's loop (pinned to 3.0.4; tests/contract/test_scheduler_internals.py).

Imports of Airflow are inside the functions: only a scheduler loads its loop.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def replace_idle_sleep(sleep: Callable[[float], None]) -> Callable[[], None]:
    """Make the scheduler of this process idle with `sleep` in place of `time.sleep`; return a function that undoes it.

    The loop sleeps for `[scheduler] scheduler_idle_sleep_time` at most, when it has had nothing to do. It is the only
    sleep of its module. In a process that runs no scheduler this does nothing.
    """
    import sys

    runner: Any = sys.modules.get("airflow.jobs.scheduler_job_runner")
    if runner is None:
        return lambda: None
    original = runner.time

    def undo() -> None:
        runner.time = original

    runner.time = _Time(original, sleep)
    return undo


class _Time:
    """The `time` module, but for its sleep."""

    def __init__(self, module: Any, sleep: Callable[[float], None]) -> None:
        self._module = module
        self.sleep = sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


def examine_runs_without_tasks() -> Callable[[], None]:
    """Make the scheduler of this process read the runs of a turn without their task instances; return a function that undoes it.

    Airflow 3.0.4 joins all task instances to the runs that it examines in a turn, and then reads those of each run
    once more where it decides on them. Only the second reading is used. Later versions leave the first out, too
    (apache/airflow pull request 60956). Task instances that are accessed after all are loaded then.
    """
    from airflow.models.dagrun import DagRun
    from sqlalchemy.orm import lazyload

    original: Any = vars(DagRun)[_EXAMINE]
    if getattr(original.__func__, "without_tasks", False):
        return lambda: None
    option = lazyload(DagRun.task_instances)

    def without_tasks(cls: Any, session: Any) -> Any:
        return original.__func__(cls, session=_Reading(session, option))

    def undo() -> None:
        setattr(DagRun, _EXAMINE, original)

    without_tasks.without_tasks = True  # type: ignore[attr-defined]  # a mark for whoever comes next
    setattr(DagRun, _EXAMINE, classmethod(without_tasks))
    return undo


_EXAMINE = "get_running_dag_runs_to_examine"


class _Reading:
    """A session whose `scalars` reads with an option more."""

    def __init__(self, session: Any, option: Any) -> None:
        self._session = session
        self._option = option

    def scalars(self, statement: Any) -> Any:
        return self._session.scalars(statement.options(self._option))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


class _PostgresConnection:
    """A connection of its own, outside Airflow's pool, that listens to one channel."""

    def __init__(self, engine: Any, channel: str) -> None:
        pooled = engine.raw_connection()
        pooled.detach()
        self._connection = pooled.dbapi_connection
        self._connection.rollback()
        self._connection.autocommit = True
        with self._connection.cursor() as cursor:
            cursor.execute(f"LISTEN {channel}")

    def fileno(self) -> int:
        descriptor: int = self._connection.fileno()
        return descriptor

    def received(self) -> set[str]:
        self._connection.poll()
        payloads = {notice.payload for notice in self._connection.notifies}
        self._connection.notifies.clear()
        return payloads

    def check(self) -> None:
        with self._connection.cursor() as cursor:
            cursor.execute("SELECT 1")

    def close(self) -> None:
        self._connection.close()


def listen(channel: str) -> _PostgresConnection | None:
    """Listen to a channel of the metadata database; None if that has no channels."""
    from airflow import settings

    engine = settings.engine
    return _PostgresConnection(engine, channel) if engine.dialect.name == "postgresql" else None
