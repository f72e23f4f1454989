"""Times of a final state that a worker with a wrong clock reports: retries, sensors and durations follow the control plane's."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import select
from tests.integration.gateway.world import World, record

from airbridge.executor.ledger.models import WorkItemRow

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)
CLOSE = timedelta(seconds=5)


def report(
    world: World, skew: timedelta, state: str, *, since_end: timedelta = timedelta(), **more: Any
) -> Any:
    """Report a state from a worker whose clock is `skew` ahead; return the task instance."""
    from airflow.models.taskinstance import TaskInstance

    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    with world.metadata.session() as session:
        row = session.get(WorkItemRow, item)
        row.claimed_at -= 2 * HOUR
        session.commit()
        # Not its id, which a retry changes.
        names = {name: getattr(row, name) for name in ("dag_id", "run_id", "task_id")}
    there = datetime.now(UTC) + skew
    worker.beat(sent_at=there)
    body = {"state": state, "end_date": (there - since_end).isoformat(), **more}
    [answer] = worker.exchange(record(grant, 1, "PATCH", "task-instances/{ti}/state", body)).results
    assert answer.status == 204
    with world.metadata.session() as session:
        return session.scalars(select(TaskInstance).filter_by(**names)).one()


@pytest.mark.parametrize("skew", [-HOUR, HOUR], ids=["behind", "ahead"])
@pytest.mark.parametrize("state", ["up_for_retry", "failed", "success"])
def test_end_is_by_our_clock(world: World, skew: timedelta, state: str) -> None:
    """A task ends now, whatever its worker's clock: a retry waits its delay from here, and the duration is what it was."""
    task = report(world, skew, state)
    assert abs(task.end_date - datetime.now(UTC)) < CLOSE
    assert task.duration is None or 0 <= task.duration < 60


@pytest.mark.parametrize("skew", [-HOUR, HOUR], ids=["behind", "ahead"])
def test_end_during_a_cut_keeps_its_age(world: World, skew: timedelta) -> None:
    """A task that ended half an hour before its report did so by our clock, too."""
    task = report(world, skew, "failed", since_end=30 * MINUTE)
    assert abs(task.end_date - (datetime.now(UTC) - 30 * MINUTE)) < CLOSE


@pytest.mark.parametrize("skew", [-HOUR, HOUR], ids=["behind", "ahead"])
def test_sensor_is_rescheduled_by_our_clock(world: World, skew: timedelta) -> None:
    """A sensor runs again after its interval, neither at once nor an hour later."""
    from airflow.models.taskreschedule import TaskReschedule

    again = datetime.now(UTC) + skew + MINUTE
    task = report(world, skew, "up_for_reschedule", reschedule_date=again.isoformat())
    with world.metadata.session() as session:
        of_task = select(TaskReschedule.reschedule_date).where(TaskReschedule.ti_id == task.id)
        found = session.execute(of_task).scalar_one()
    assert abs(found - (datetime.now(UTC) + MINUTE)) < CLOSE


def test_a_late_heartbeat_is_no_skew(world: World) -> None:
    """A heartbeat that was long on its way looks like a clock that is behind: up to a request's time it changes nothing."""
    task = report(world, timedelta(seconds=-15), "failed", since_end=10 * MINUTE)
    assert abs(task.end_date - (datetime.now(UTC) - 10 * MINUTE - timedelta(seconds=15))) < CLOSE


def test_small_skew_changes_nothing(world: World) -> None:
    """Times of a clock that is right within seconds are kept as they are."""
    task = report(world, timedelta(seconds=-3), "failed", since_end=10 * MINUTE)
    assert abs(task.end_date - (datetime.now(UTC) - 10 * MINUTE - timedelta(seconds=3))) < timedelta(
        seconds=2
    )


def test_no_task_ends_in_the_future(world: World) -> None:
    """Without a known skew, too, an end later than now is now."""
    task = report(world, timedelta(), "failed", since_end=-HOUR)
    assert abs(task.end_date - datetime.now(UTC)) < CLOSE
