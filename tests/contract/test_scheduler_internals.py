"""Airflow 3.0.4 internals of the scheduler's loop that the executor changes; each test fails if its internal changes."""

from __future__ import annotations

import inspect
import time
from typing import Any

from tests.support.airflow_home import Metadata
from tests.support.scheduler import flat_dag, start_run, store_dag

from airbridge.executor.scheduling import _airflow


def test_idle_sleep_can_be_replaced() -> None:
    """`replace_idle_sleep`: the loop's only use of its `time` is the one sleep, at most the idle sleep long."""
    from airflow.jobs import scheduler_job_runner as runner

    source = inspect.getsource(runner)
    assert source.count("time.sleep(") == 1
    assert "time.sleep(min(self._scheduler_idle_sleep_time, next_event or 0))" in source
    slept: list[float] = []
    undo = _airflow.replace_idle_sleep(slept.append)
    runner.time.sleep(3.0)
    assert slept == [3.0]
    assert runner.time.monotonic() <= time.monotonic()
    undo()
    assert runner.time is time


def test_runs_are_examined_without_their_tasks(sqlite_metadata: Metadata) -> None:
    """With `examine_runs_without_tasks` the query joins no task instances; a run still loads them on access."""
    from airflow.models.dagrun import DagRun
    from sqlalchemy import event

    dag = flat_dag(tasks=2)
    store_dag(sqlite_metadata, dag)
    start_run(sqlite_metadata, dag)
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_others: object) -> None:
        statements.append(statement)

    def examine() -> str:
        statements.clear()
        with sqlite_metadata.session() as session:
            [run] = DagRun.get_running_dag_runs_to_examine(session=session)
            joined = statements[0]
            assert {ti.task_id for ti in run.task_instances} == {"t0", "t1"}
        return joined

    event.listen(sqlite_metadata.engine, "before_cursor_execute", note)
    assert "task_instance" in examine()
    undo = _airflow.examine_runs_without_tasks()
    again = _airflow.examine_runs_without_tasks()
    try:
        assert "task_instance" not in examine()
        again()
        assert "task_instance" not in examine()
    finally:
        undo()
    assert "task_instance" in examine()
    event.remove(sqlite_metadata.engine, "before_cursor_execute", note)


def test_runs_tasks_are_read_once() -> None:
    """Only the check of a run without a bundle version, whose DAG has changed, uses the tasks that came with the run."""
    from airflow.jobs import scheduler_job_runner as runner
    from airflow.models import dagrun

    assert inspect.getsource(dagrun).count(".task_instances") == 1  # the eager load
    uses = [line for line in inspect.getsource(runner).splitlines() if ".task_instances" in line]
    assert uses == ["        for ti in dag_run.task_instances:"]
    integrity = inspect.getsource(runner.SchedulerJobRunner._verify_integrity_if_dag_changed)
    assert uses[0] in integrity
