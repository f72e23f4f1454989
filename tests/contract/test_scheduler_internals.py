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


TIMED_STEPS = {
    "_end_spans_of_externally_ended_ops": ["self", "session"],
    "_create_dagruns_for_dags": ["self", "guard", "session"],
    "_start_queued_dagruns": ["self", "session"],
}


def test_timed_steps_can_be_skipped() -> None:
    """`pace_timed_steps`: the loop calls each step once, uses nothing that it returns, and commits after the last by itself."""
    from airflow.jobs import scheduler_job_runner
    from airflow.jobs.job import Job

    runner = scheduler_job_runner.SchedulerJobRunner
    assert {
        name: list(inspect.signature(getattr(runner, name)).parameters) for name in TIMED_STEPS
    } == TIMED_STEPS
    assert {getattr(runner, name).__name__ for name in TIMED_STEPS} == set(TIMED_STEPS)
    assert "self._end_spans_of_externally_ended_ops(session)" in lines_of(runner._run_scheduler_loop)
    iteration = lines_of(runner._do_scheduling)
    at = iteration.index("self._create_dagruns_for_dags(guard, session)")
    assert iteration[at - 1 : at + 3] == [
        "if settings.USE_JOB_SCHEDULE:",
        "self._create_dagruns_for_dags(guard, session)",
        "self._start_queued_dagruns(session)",
        "guard.commit()",
    ]
    source = inspect.getsource(scheduler_job_runner)
    assert [source.count(f"self.{name}(") for name in TIMED_STEPS] == [1, 1, 1]
    job = Job(job_type="SchedulerJob")
    assert runner(job, scheduler_idle_sleep_time=7.0)._scheduler_idle_sleep_time == 7.0


def lines_of(function: Any) -> list[str]:
    lines = (line.strip() for line in inspect.getsource(function).splitlines())
    return [line for line in lines if line]


def test_run_states_are_observed() -> None:
    """Each change of a run's state passes SQLAlchemy's event of its column; setting the same state again does not."""
    from airflow.models.dagrun import DagRun
    from sqlalchemy import event

    states: list[str] = []

    def note(_run: Any, state: str, *_others: object) -> None:
        states.append(str(state))

    event.listen(DagRun._state, "set", note)
    try:
        run = DagRun(dag_id="d", run_id="r", state="queued")
        run.state = "running"
        run.set_state("running")
        run.set_state("success")
    finally:
        event.remove(DagRun._state, "set", note)
    run.set_state("failed")
    assert states == ["queued", "running", "success"]


def test_pacing_is_undone() -> None:
    """The scheduler has its own steps and sleep again; a second executor of the process changes and undoes nothing."""
    from airflow.jobs import scheduler_job_runner as module

    before = [getattr(module.SchedulerJobRunner, name) for name in TIMED_STEPS]
    undo = _airflow.pace_timed_steps()
    paced = [getattr(module.SchedulerJobRunner, name) for name in TIMED_STEPS]
    _airflow.pace_timed_steps()()
    assert paced == [getattr(module.SchedulerJobRunner, name) for name in TIMED_STEPS]
    assert not set(paced) & set(before)
    undo()
    assert before == [getattr(module.SchedulerJobRunner, name) for name in TIMED_STEPS]
    assert module.time is time
