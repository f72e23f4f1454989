"""Uses of Airflow's internals by the executor in the scheduler's loop (pinned to 3.0.4; tests/contract/test_scheduler_internals.py).

Imports of Airflow are inside the functions: only a scheduler loads its loop.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, Final

from airbridge.executor.scheduling.pacing import Pacing


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


_SPANS: Final = "_end_spans_of_externally_ended_ops"
_CREATE: Final = "_create_dagruns_for_dags"
_START: Final = "_start_queued_dagruns"


def pace_timed_steps(monotonic: Callable[[], float] = time.monotonic) -> Callable[[], None]:
    """Make the scheduler of this process run the steps that wait for a time once an idle sleep; return a function that undoes it.

    Airflow 3.0.4 creates runs, starts queued runs and ends spans of other schedulers in every iteration. An idle scheduler iterates
    once in `[scheduler] scheduler_idle_sleep_time`; one with work to do many times a second, and then finds nothing new in most.
    After a run has changed its state here the next iteration creates and starts runs: one that ended lets another of its DAG
    start, and one that was created or started may be one of more than an iteration takes. The idle sleep ends when the interval does. In a process
    that runs no scheduler this does nothing.
    """
    import sys

    module: Any = sys.modules.get("airflow.jobs.scheduler_job_runner")
    if module is None or hasattr(getattr(module.SchedulerJobRunner, _START), "paced"):
        return lambda: None
    from airflow.models.dagrun import DagRun
    from sqlalchemy import event

    pacing, undo = Pacing(monotonic), ExitStack()
    for name in (_SPANS, _CREATE, _START):
        undo.callback(setattr, module.SchedulerJobRunner, name, getattr(module.SchedulerJobRunner, name))
        setattr(module.SchedulerJobRunner, name, _paced(getattr(module.SchedulerJobRunner, name), pacing))

    def state_changed(*_change: object) -> None:
        pacing.make_due((_CREATE, _START))

    change = (DagRun._state, "set", state_changed)  # noqa: SLF001  # `state` is a synonym, which has no events
    event.listen(*change)
    undo.callback(event.remove, *change)

    clock = module.time
    module.time = _Time(clock, lambda seconds: clock.sleep(min(seconds, pacing.remaining((_CREATE, _START)))))
    undo.callback(setattr, module, "time", clock)
    return undo.close


def _paced(step: Callable[..., None], pacing: Pacing) -> Callable[..., None]:
    @functools.wraps(step)
    def paced(runner: Any, *arguments: Any, **named: Any) -> None:
        interval = runner._scheduler_idle_sleep_time  # noqa: SLF001  # it has no public name
        if pacing.take(step.__name__, interval):
            step(runner, *arguments, **named)

    paced.paced = True  # type: ignore[attr-defined]  # a mark for a second executor in the process
    return paced


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
