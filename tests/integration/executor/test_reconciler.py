"""The reconciler's turn: every duty, each when it is due."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.integration.gateway import seeding
from tests.support.airflow_home import Metadata
from tests.support.items import new_item

from airbridge.executor import _airflow
from airbridge.executor.ledger import clock, events, items, leases
from airbridge.executor.ledger.models import EventRow, Outcome, WorkItemRow
from airbridge.executor.scheduling.reconciler import PURGE_SECONDS, Reconciler
from airbridge.executor.settings import Settings

DAY = timedelta(days=1)


@dataclass
class Time:
    """A monotonic clock that a test moves on."""

    seconds: float = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def session(sqlite_metadata: Metadata) -> Iterator[Any]:
    with sqlite_metadata.session() as session:
        yield session
        session.rollback()


def reconciler(settings: Settings, monotonic: Time | None = None) -> Reconciler:
    return Reconciler(
        settings=settings,
        owner_job_id=1,
        new_session=_airflow.new_session,
        heartbeat_timeout=300.0,
        monotonic=monotonic or Time(),
    )


def settled(session: Any, age: timedelta) -> str:
    """A row that was settled this long ago, without events."""
    [row] = items.place(session, [new_item()], 1)
    leases.settle(session, row, Outcome.SUCCESS, at=clock.now(session) - age)
    session.flush()
    session.query(EventRow).delete()
    session.commit()
    return str(row.id)


def kept(session: Any, item_id: str) -> bool:
    session.rollback()
    return session.query(WorkItemRow).filter_by(id=item_id).count() == 1


def test_retention_decides_what_is_purged(session: Any, settings: Settings) -> None:
    """Only what is older than the retention goes."""
    old, young = settled(session, 8 * DAY), settled(session, 6 * DAY)
    reconciler(replace(settings, retention_days=7.0)).purge()
    assert not kept(session, old)
    assert kept(session, young)


def test_events_stay_as_long_as_their_item(session: Any, settings: Settings) -> None:
    """An event is older than the end of its item, by the hours of a cut or of a long task; the usage is counted from it."""
    item_id = settled(session, 6.9 * DAY)
    row = session.get(WorkItemRow, item_id)
    events.record(session, "task.ended", "w1", row=row, at=clock.now(session) - 7.1 * DAY)
    session.commit()
    reconciler(replace(settings, retention_days=7.0)).purge()
    assert kept(session, item_id)
    assert session.query(EventRow).filter_by(item_id=item_id).count() == 1
    reconciler(replace(settings, retention_days=6.0)).purge()
    assert not kept(session, item_id)
    assert session.query(EventRow).filter_by(item_id=item_id).count() == 0


def test_purge_is_hourly(session: Any, settings: Settings) -> None:
    """The first purge is after one interval, not at the start of every scheduler; each later one an hour after it."""
    monotonic = Time()
    turning = reconciler(settings, monotonic)
    purged_at = []
    old = settled(session, 365 * DAY)
    first = settings.reconcile_interval
    for seconds in (0.0, first, first + PURGE_SECONDS - 1, first + PURGE_SECONDS):
        monotonic.seconds = seconds
        turning.turn()
        if not kept(session, old):
            purged_at.append(seconds)
            old = settled(session, 365 * DAY)
    assert purged_at == [first, first + PURGE_SECONDS]


@pytest.mark.parametrize("what", ["item", "event", "nothing"])
def test_purge_is_logged(session: Any, settings: Settings, what: str) -> None:
    """A purge that deleted something says how many items and events; one that found nothing says nothing."""
    if what == "item":
        settled(session, 365 * DAY)
    elif what == "event":
        events.record(session, "worker.enrolled", "w1", at=clock.now(session) - 365 * DAY)
        session.commit()
    with capture_logs() as logs:
        reconciler(settings).purge()
    counts = [(each["items"], each["events"]) for each in logs if each["event"] == "ledger.purged"]
    assert counts == {"item": [(1, 0)], "event": [(0, 1)], "nothing": []}[what]


def test_failed_duty_keeps_no_other(session: Any, settings: Settings) -> None:
    """A duty that fails is logged by its name; those after it are done in the same turn."""

    class Failing(Reconciler):
        def fence(self) -> int:
            raise RuntimeError("it failed")

    monotonic = Time()
    turning = Failing(
        settings=settings,
        owner_job_id=1,
        new_session=_airflow.new_session,
        heartbeat_timeout=300.0,
        monotonic=monotonic,
    )
    old = settled(session, 365 * DAY)
    monotonic.seconds = settings.reconcile_interval
    with capture_logs() as logs:
        turning.turn()
    assert [each["step"] for each in logs if each["event"] == "reconciler.failed"] == ["fence"]
    assert not kept(session, old)


def test_every_overdue_attempt_is_fenced(session: Any, settings: Settings) -> None:
    """More than one batch at once; the number is that of the attempts."""
    rows = items.place(session, [new_item() for _ in range(101)], 1)
    session.flush()
    for row in rows[:100]:
        leases.claim(session, row, "w1", 60.0, -1.0, {})
    session.commit()
    fencing = reconciler(settings)
    assert fencing.fence() == 100
    assert fencing.fence() == 0
    leases.claim(session, rows[100], "w1", 60.0, -1.0, {})
    session.commit()
    fencing.turn()
    session.refresh(rows[100])
    assert (rows[100].state, rows[100].outcome) == ("settled", Outcome.LOST)


def test_unwanted_items_are_cancelled(session: Any, settings: Settings) -> None:
    """A turn cancels an open item whose task instance Airflow does not have."""
    [row] = items.place(session, [new_item()], 1)
    session.commit()
    reconciler(settings).turn()
    session.refresh(row)
    assert (row.state, row.outcome) == ("settled", Outcome.CANCELLED)


def running_tasks(session: Any, count: int) -> tuple[list[Any], list[WorkItemRow]]:
    """Task instances that a worker has claimed, and their work items."""
    tasks = seeding.queued_tasks(session, count)
    rows = seeding.placed_items(session, tasks, region="eu-west-1")
    for task, row in zip(tasks, rows, strict=True):
        leases.claim(session, row, "w1", 60.0, 600.0, {})
        task.state, task.queued_by_job_id = "running", 1
    session.commit()
    return tasks, rows


def test_heartbeats_are_renewed_in_time(session: Any, settings: Settings) -> None:
    """A heartbeat older than a fifth of the scheduler's timeout (300 s) is renewed in a turn, a younger one is left."""
    tasks, _ = running_tasks(session, 2)
    now = clock.now(session)
    ages = [timedelta(seconds=90), timedelta(seconds=10)]
    for task, age in zip(tasks, ages, strict=True):
        task.last_heartbeat_at = now - age
    session.commit()
    reconciler(settings).turn()
    for task in tasks:
        session.refresh(task)
    assert tasks[0].last_heartbeat_at >= now
    assert tasks[1].last_heartbeat_at == now - ages[1]


@pytest.mark.parametrize("by_turn", [True, False])
def test_cleared_tasks_are_queued_again(session: Any, settings: Settings, by_turn: bool) -> None:
    """A task that was cleared while it ran waits for nothing once its attempt is closed."""
    tasks, rows = running_tasks(session, 1)
    tasks[0].state = "restarting"
    leases.settle(session, rows[0], Outcome.CANCELLED)
    session.commit()
    restarting = reconciler(settings)
    if by_turn:
        restarting.turn()
    else:
        assert restarting.restart() == 1
    session.refresh(tasks[0])
    assert tasks[0].state is None


def test_stop_ends_the_loop(session: Any, settings: Settings) -> None:
    """The loop turns by itself until it is stopped, and its thread has ended then."""
    [row] = items.place(session, [new_item()], 1)
    session.commit()
    running = reconciler(settings)
    running.start()
    deadline = time.monotonic() + 30
    while row.state != "settled" and time.monotonic() < deadline:
        time.sleep(0.02)
        session.rollback()
        session.refresh(row)
    running.stop(30)
    assert row.state == "settled"
    assert "airbridge-reconciler" not in {thread.name for thread in threading.enumerate()}
