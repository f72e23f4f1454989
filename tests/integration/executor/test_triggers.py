"""Triggers in the scheduler's part: the outbox, the reconciler, and the rows of their tasks beside them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text, update
from tests.integration.executor.test_outbox import Bench
from tests.integration.gateway import seeding
from tests.support.airflow_home import Metadata
from tests.support.items import new_item

from airbridge.core.protocol import ItemKind
from airbridge.executor import _airflow
from airbridge.executor.ledger import backlogs, clock, items, leases
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow
from airbridge.executor.scheduling.reconciler import Reconciler
from airbridge.executor.settings import Settings


@pytest.fixture
def session(metadata: Metadata) -> Iterator[Any]:
    with metadata.session() as session:
        yield session
        session.rollback()


@pytest.fixture
def bench(metadata: Metadata, settings: Settings) -> Bench:
    return Bench(metadata, replace(settings, outbox_floor=20))


@pytest.fixture
def reconciler(settings: Settings) -> Reconciler:
    return Reconciler(
        settings=settings, owner_job_id=1, new_session=_airflow.new_session, heartbeat_timeout=300.0
    )


def deferred(session: Any, count: int = 1, **values: Any) -> list[WorkItemRow]:
    """Rows of triggers whose tasks were settled."""
    tasks = items.place(session, [new_item(**values) for _ in range(count)], 1)
    for row in tasks:
        leases.settle(session, row, Outcome.SUCCESS, "deferred")
    first = (session.query(WorkItemRow.trigger_id).filter(WorkItemRow.trigger_id.is_not(None)).count()) + 1
    rows = [items.place_trigger(session, row, number) for number, row in enumerate(tasks, first)]
    session.commit()
    return rows


def waiting(session: Any, trigger_id: int) -> Any:
    """A task instance that Airflow has deferred on a trigger."""
    [ti] = seeding.queued_tasks(session)
    ti.state, ti.trigger_id = "deferred", trigger(session, trigger_id)
    session.commit()
    return ti


def trigger(session: Any, trigger_id: int) -> int:
    from airflow.models.trigger import Trigger

    row = Trigger(classpath="mine.Waits", kwargs={})
    row.id = trigger_id
    session.add(row)
    session.flush()
    return trigger_id


def claim(session: Any, row: WorkItemRow) -> None:
    [locked] = leases.lock(session, [row.id]).values()
    leases.claim(session, locked, "w", 60, 600, {"ti_context": {}})
    session.commit()


def test_triggers_are_sent_beyond_the_pools_capacity(bench: Bench, session: Any) -> None:
    """A pool whose queue is full of tasks still gets its triggers, signed as such, and they are none of its backlog."""
    bench.place(*(new_item() for _ in range(40)))
    rows = deferred(session, 30)
    bench.loop.turn()
    sent = bench.queued()
    found = {str(each.item_id) for each in sent if each.kind is ItemKind.TRIGGER}
    assert found == {row.id for row in rows}
    assert len(sent) == 30 + 20
    backlog = backlogs.backlog(session)["eu-west-1", "default"]
    assert (backlog.placed, backlog.sent, backlog.triggers) == (20, 20, 30)


def test_triggers_leave_half_a_turn_to_tasks(bench: Bench, session: Any) -> None:
    """Thousands of triggers do not keep tasks from being sent."""
    deferred(session, 120)
    bench.place(*(new_item() for _ in range(10)))
    bench.loop.turn()
    kinds = [each.kind for each in bench.queued()]
    assert (kinds.count(ItemKind.TRIGGER), kinds.count(ItemKind.TASK)) == (50, 10)


def test_lost_trigger_is_sent_again(session: Any, reconciler: Reconciler) -> None:
    """The trigger of a silent worker goes back to its queue; its task goes on waiting, and nothing is reported to Airflow."""
    [row] = deferred(session)
    claim(session, row)
    session.execute(update(WorkItemRow).values(lost_at=clock.now(session) - timedelta(seconds=1)))
    session.commit()
    assert reconciler.fence() == 1
    session.expire_all()
    found = session.get(WorkItemRow, row.id)
    assert (found.state, found.worker_id, found.epoch, found.outcome) == (ItemState.PLACED, None, 1, None)


def test_unwanted_trigger_is_cancelled(session: Any, reconciler: Reconciler) -> None:
    """An open trigger is kept as long as its task instance is deferred on it, and cancelled after that."""
    ti = waiting(session, 71)
    [row] = deferred(session, ti_id=str(ti.id))
    session.execute(update(WorkItemRow).where(WorkItemRow.id == row.id).values(trigger_id=71))
    session.commit()
    assert reconciler.cancel() == 0
    ti.state, ti.trigger_id = "scheduled", None
    session.merge(ti)
    session.commit()
    assert reconciler.cancel() == 1
    session.expire_all()
    assert session.get(WorkItemRow, row.id).outcome == Outcome.CANCELLED


def test_task_is_queued_beside_its_trigger(session: Any) -> None:
    """A task whose trigger timed out is placed while a worker still holds the trigger's row; both stay as they are."""
    [row] = deferred(session)
    claim(session, row)
    [task] = items.place(session, [new_item(ti_id=row.ti_id)], 1)
    session.commit()
    session.expire_all()
    assert task.id != row.id
    assert session.get(WorkItemRow, row.id).state == ItemState.CLAIMED
    assert set(items.opened(session, [row.ti_id])) == {row.ti_id}
    assert items.running_before(session, [task], clock.now(session)) == set()


def test_trigger_has_a_policy_of_its_own(session: Any) -> None:
    """A trigger may run twice and goes on through a cut, whatever its task's policy is; its `lost_after` is the task's."""
    policy = {"lost_after": 30.0, "stop_after": 10.0, "replace": False}
    [row] = deferred(session, disconnect=policy, slots=4)
    assert row.disconnect == {"lost_after": 30.0, "stop_after": None, "replace": True}
    assert (row.slots, row.kind) == (0, ItemKind.TRIGGER)


def test_triggerers_job_is_kept(session: Any, reconciler: Reconciler) -> None:
    """There is one job of edge triggers, whatever is called how often, with a heartbeat that stays fresh for years."""
    from airflow.jobs.job import Job

    reconciler.keep_triggerer()
    reconciler.keep_triggerer()
    [job] = session.query(Job).filter(Job.hostname == _airflow.EDGE_TRIGGERER).all()
    assert job.id == _airflow.edge_triggerer_id(session)
    job.latest_heartbeat = _airflow.utcnow()
    session.commit()
    reconciler.keep_triggerer()
    session.expire_all()
    assert session.get(Job, job.id).latest_heartbeat > _airflow.utcnow() + timedelta(days=1000)


def test_outbox_and_claims_lock_in_one_order(metadata: Metadata) -> None:
    """Noting that rows were sent locks them in the order of their ids, as claims do: otherwise both could wait for each other."""
    if metadata.engine.dialect.name != "postgresql":
        pytest.skip("only Postgres locks rows")
    with metadata.session() as session:
        ids = sorted(row.id for row in items.place(session, [new_item() for _ in range(40)], 1))
        until = clock.now(session) + timedelta(minutes=1)
        items.reserve(session, ids, until)
        session.commit()
    with metadata.session() as holder:
        leases.lock(holder, ids[:1])
        sending = threading.Thread(target=confirm, args=(metadata, ids, until))
        sending.start()
        time.sleep(1)
        # The update waits for the first row, and holds none of the others.
        holder.execute(text("SET LOCAL lock_timeout = '2s'"))
        assert len(leases.lock(holder, ids)) == 40
        holder.rollback()
    sending.join(30)
    with metadata.session() as session:
        rows = session.query(WorkItemRow).filter(WorkItemRow.id.in_(ids))
        assert all(row.sent_at is not None for row in rows)


def confirm(metadata: Metadata, ids: list[str], reserved_until: datetime) -> None:
    with metadata.session() as session:
        now = clock.now(session)
        items.mark_sent(session, ids, now, at=now, reserved_until=reserved_until)
        session.commit()
