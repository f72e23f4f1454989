"""Airflow's own scheduler with paced steps: what an iteration leaves out, and what must not wait for it."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import pytest
from tests.support.airflow_home import Metadata
from tests.support.scheduler import Scheduler, flat_dag, start_run, store_dag

from airbridge.executor._airflow import utcnow
from airbridge.executor.scheduling import _airflow

STEPS = ("_end_spans_of_externally_ended_ops", "_create_dagruns_for_dags", "_start_queued_dagruns")
SPANS, CREATE, START = STEPS


class Paced:
    """A scheduler with paced steps, on a clock that stands still until a test moves it."""

    def __init__(self, metadata: Metadata, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> None:
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner

        self.now = 1000.0
        self._metadata = metadata
        self._runner = scheduler.runner
        self._scheduler = scheduler
        self._ran: list[str] = []
        for name in STEPS:
            monkeypatch.setattr(SchedulerJobRunner, name, self._noted(getattr(SchedulerJobRunner, name)))
        self.undo = _airflow.pace_timed_steps(lambda: self.now)

    def _noted(self, step: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(step)
        def noted(*arguments: Any, **named: Any) -> None:
            self._ran.append(step.__name__)
            step(*arguments, **named)

        return noted

    def idle_sleep(self, seconds: float) -> None:
        """Set `[scheduler] scheduler_idle_sleep_time`."""
        self._runner._scheduler_idle_sleep_time = seconds

    def iterate(self) -> list[str]:
        """Run one iteration of the loop; return the steps that it ran."""
        from airflow.utils.session import create_session

        self._ran.clear()
        with create_session() as session:
            self._runner._end_spans_of_externally_ended_ops(session)
        self._scheduler.loop()
        return list(self._ran)

    def settle(self) -> None:
        """Iterate until nothing is due: what was started before has been dealt with."""
        while self.iterate():
            pass

    def states(self) -> list[str]:
        """Return the state of each run, oldest first."""
        from airflow.models.dagrun import DagRun
        from sqlalchemy import select

        with self._metadata.session() as session:
            return [str(state) for state in session.scalars(select(DagRun.state).order_by(DagRun.id))]


@pytest.fixture
def paced(metadata: Metadata, scheduler: Scheduler, monkeypatch: pytest.MonkeyPatch) -> Iterator[Paced]:
    paced = Paced(metadata, scheduler, monkeypatch)
    paced.idle_sleep(1.0)
    yield paced
    paced.undo()


def test_timed_steps_run_once_an_interval(paced: Paced) -> None:
    """A busy loop runs the three steps once an idle sleep; tasks are scheduled in every iteration."""
    assert paced.iterate() == [SPANS, CREATE, START]
    paced.now += 0.9
    assert paced.iterate() == []
    paced.now += 0.1
    assert paced.iterate() == [SPANS, CREATE, START]


def test_no_interval_runs_every_step(paced: Paced) -> None:
    """With an idle sleep of 0 nothing is left out."""
    paced.idle_sleep(0.0)
    assert [paced.iterate(), paced.iterate()] == [[SPANS, CREATE, START]] * 2


def test_tasks_are_scheduled_between_the_steps(paced: Paced, metadata: Metadata, hand: Any) -> None:
    """An iteration without the steps schedules and places the tasks of running runs."""
    paced.settle()
    dag = flat_dag()
    store_dag(metadata, dag)
    start_run(metadata, dag)
    paced.settle()
    paced.iterate()
    assert len(hand.rows("placed")) == 1


def test_triggered_run_waits_an_interval(paced: Paced, metadata: Metadata) -> None:
    """A run that was triggered while the loop is busy starts when the interval is over, and not later."""
    dag = flat_dag()
    store_dag(metadata, dag)
    start_run(metadata, dag, "queued")
    write(metadata, "dag_run", state="success")
    paced.settle()
    write(metadata, "dag_run", state="queued")
    assert paced.iterate() == []
    assert paced.states() == ["queued"]
    paced.now += 1.0
    paced.iterate()
    assert paced.states() == ["running"]


def test_ended_run_lets_the_next_start(paced: Paced, metadata: Metadata) -> None:
    """Under `max_active_runs` the iteration after the one that ended a run starts the next."""
    dag = flat_dag()
    dag.max_active_runs = 1
    store_dag(metadata, dag)
    first, _ = (start_run(metadata, dag, "queued") for _ in range(2))
    paced.settle()
    assert paced.states() == ["running", "queued"]
    write(metadata, "task_instance", where={"run_id": first}, state="success")
    assert paced.iterate() == []
    assert paced.states() == ["success", "queued"]
    assert paced.iterate() == [CREATE, START]
    assert paced.states() == ["success", "running"]


def test_timed_out_run_lets_the_next_start(paced: Paced, metadata: Metadata) -> None:
    """A run that the scheduler fails for its `dagrun_timeout` makes room as one that ends by its tasks."""
    dag = flat_dag()
    dag.max_active_runs = 1
    dag.dagrun_timeout = timedelta(hours=1)
    store_dag(metadata, dag)
    first, _ = (start_run(metadata, dag, "queued") for _ in range(2))
    paced.settle()
    write(metadata, "dag_run", where={"run_id": first}, start_date=utcnow() - timedelta(hours=2))
    assert paced.iterate() == []
    assert paced.states() == ["failed", "queued"]
    paced.iterate()
    assert paced.states() == ["failed", "running"]


def test_more_queued_runs_than_a_batch(paced: Paced, metadata: Metadata) -> None:
    """An iteration starts twenty runs; the others start in those that follow at once."""
    dag = flat_dag()
    dag.max_active_runs = 100
    store_dag(metadata, dag)
    for _ in range(25):
        start_run(metadata, dag, "queued")
    paced.iterate()
    assert paced.states().count("running") == 20
    paced.iterate()
    assert paced.states().count("running") == 25


def test_missed_intervals_are_caught_up(paced: Paced, metadata: Metadata) -> None:
    """The loop creates one run of a DAG in an iteration; those of the intervals that it missed follow at once."""
    dag = scheduled_dag()
    store_dag(metadata, dag)
    write(metadata, "dag", is_paused=False)
    paced.settle()
    assert paced.states() == ["running"] * 4


def test_asset_event_waits_an_interval(paced: Paced, metadata: Metadata) -> None:
    """A run whose asset was updated while the loop is busy is created and started when the interval is over."""
    from airflow.sdk import Asset

    asset = Asset("table")
    dag = flat_dag("consumer", schedule=[asset])
    store_dag(metadata, dag)
    write(metadata, "dag", is_paused=False)
    paced.settle()
    update_asset(metadata, asset)
    paced.settle()
    assert paced.states() == []
    paced.now += 1.0
    assert paced.iterate()[1:] == [CREATE, START]
    assert paced.states() == ["running"]


def test_idle_sleep_ends_when_steps_are_due(paced: Paced, monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that goes idle between two intervals sleeps for the rest of one: a triggered run waits no longer than in an idle loop."""
    from airflow.jobs import scheduler_job_runner

    slept: list[float] = []
    paced.undo()
    undo_sleep = _airflow.replace_idle_sleep(slept.append)
    paced.undo = _airflow.pace_timed_steps(lambda: paced.now)
    paced.settle()
    paced.now += 0.75
    scheduler_job_runner.time.sleep(1.0)
    scheduler_job_runner.time.sleep(0.125)
    paced.now += 5.0
    scheduler_job_runner.time.sleep(1.0)
    assert slept == [0.25, 0.125, 0.0]
    assert START in paced.iterate()
    paced.now += 1.25
    scheduler_job_runner.time.sleep(1.0)
    assert slept[-1] == 1.0, "an iteration as long as the interval, with nothing left out"
    paced.undo()
    undo_sleep()


def test_failing_creation_lets_the_loop_sleep(
    paced: Paced, metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A DAG whose runs cannot be created is tried in each iteration, as in plain Airflow, and keeps none from its idle sleep."""
    from airflow.jobs import scheduler_job_runner
    from airflow.models.dagrun import DagRun

    def fail(*_arguments: object, **_named: object) -> None:
        raise ValueError("no run of this DAG can be stored")

    slept: list[float] = []
    monkeypatch.setattr(DagRun, "verify_integrity", fail)
    paced.undo()
    undo_sleep = _airflow.replace_idle_sleep(slept.append)
    paced.undo = _airflow.pace_timed_steps(lambda: paced.now)
    dag = scheduled_dag()
    store_dag(metadata, dag)
    write(metadata, "dag", is_paused=False)
    for _ in range(2):
        assert CREATE in paced.iterate()
        scheduler_job_runner.time.sleep(1.0)
    assert slept[0] == 1.0
    paced.undo()
    undo_sleep()


def scheduled_dag() -> Any:
    """Return a DAG with four intervals in the past."""
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG
    from airflow.timetables.interval import DeltaDataIntervalTimetable
    from airflow.utils import timezone

    began = timezone.utcnow() - timedelta(hours=4, minutes=30)
    with DAG(
        "hourly", schedule=DeltaDataIntervalTimetable(timedelta(hours=1)), start_date=began, catchup=True
    ) as dag:
        EmptyOperator(task_id="t0", on_success_callback=lambda context: None)
    dag.relative_fileloc = "hourly.py"
    return dag


def write(metadata: Metadata, table: str, where: Mapping[str, Any] | None = None, **values: Any) -> None:
    """Write columns of rows of a table as another process does: nothing in this one observes it."""
    from airflow.models.base import Base
    from sqlalchemy import update

    with metadata.session() as session:
        session.execute(update(Base.metadata.tables[table]).filter_by(**(where or {})).values(values))
        session.commit()


def update_asset(metadata: Metadata, asset: Any) -> None:
    """Register an event of an asset, as the Execution API does when a task with that outlet succeeds, a minute ago."""
    from airflow.assets.manager import asset_manager
    from airflow.utils import timezone

    with metadata.session() as session:
        asset_manager.register_asset_change(asset=asset, session=session)
        session.commit()
    # SQLite's now() has whole seconds, and a run starts when it is past the event.
    write(metadata, "asset_dag_run_queue", created_at=timezone.utcnow() - timedelta(minutes=1))
