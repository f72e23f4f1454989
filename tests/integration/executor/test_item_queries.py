"""Queries of work items: the states, places, bounds and order that each of them keeps to."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import delete
from tests.integration.executor.test_ledger import beat, enrol
from tests.support.airflow_home import Metadata
from tests.support.items import new_item, send

from airbridge.executor.ledger import backlogs, clock, items, leases
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow

HOME, AWAY = "eu-west-1", "us-east-1"
MINUTE = timedelta(minutes=1)


@pytest.fixture
def session(sqlite_metadata: Metadata) -> Iterator[Any]:
    with sqlite_metadata.session() as session:
        yield session
        session.rollback()


def placed(session: Any, count: int, **values: Any) -> list[WorkItemRow]:
    rows = items.place(session, [new_item(**values) for _ in range(count)], 1)
    session.flush()
    return rows


def in_each_state(session: Any) -> dict[ItemState, WorkItemRow]:
    """One row in each state, whose message has expired and whose fallback is due."""
    now = clock.now(session)
    fallback = {"fallback": [{"region": AWAY, "pool": "default"}], "fallback_after": -60.0}
    rows = dict(zip(ItemState, placed(session, 4, placement=fallback), strict=True))
    for state in (ItemState.SENT, ItemState.CLAIMED, ItemState.SETTLED):
        send(session, [rows[state].id], now - MINUTE, at=now - 2 * MINUTE)
    for state in (ItemState.CLAIMED, ItemState.SETTLED):
        leases.claim(session, rows[state], "w1", 60.0, 600.0, {})
    leases.settle(session, rows[ItemState.SETTLED], Outcome.SUCCESS)
    session.flush()
    for row in rows.values():
        session.refresh(row)
    return rows


def test_queries_by_state(session: Any) -> None:
    """Each query returns rows of its own states, and no others."""
    rows = in_each_state(session)
    unclaimed = {rows[ItemState.PLACED].id, rows[ItemState.SENT].id}
    assert {row.id for row in items.stranded(session, HOME, 9)} == unclaimed
    assert [row.id for row in items.sendable(session, {(HOME, "default"): 9}, 9)] == [
        rows[ItemState.PLACED].id
    ]
    assert items.sent_before(session, HOME, "default", clock.now(session)) == [rows[ItemState.SENT].id]
    everyone = {row.ti_id for row in rows.values()}
    assert set(items.opened(session, everyone)) == everyone - {rows[ItemState.SETTLED].ti_id}
    assert items.return_expired(session, 9, region=HOME) == 1
    assert rows[ItemState.SENT].state == ItemState.PLACED
    assert rows[ItemState.SENT].detail == "its message expired unclaimed"


def test_other_places_are_left_alone(session: Any) -> None:
    """Another region's and another pool's rows are not returned."""
    in_each_state(session)
    now = clock.now(session)
    assert items.stranded(session, AWAY, 9) == []
    assert items.return_expired(session, 9, region=AWAY) == 0
    assert items.sent_before(session, AWAY, "default", now) == []
    assert items.sent_before(session, HOME, "gpu", now) == []
    assert items.sendable(session, {(HOME, "gpu"): 9, (AWAY, "default"): 9}, 9) == []


def test_time_decides(session: Any) -> None:
    """Fallbacks, expiries, postponed rows and fresh messages stay unchanged until they are due."""
    fallback = {"fallback": [{"region": AWAY, "pool": "default"}], "fallback_after": 60.0}
    [row] = placed(session, 1, placement=fallback)
    now = clock.now(session)
    assert items.stranded(session, HOME, 9) == []
    send(session, [row.id], now + MINUTE, at=now)
    assert items.return_expired(session, 9, region=HOME) == 0
    assert items.sent_before(session, HOME, "default", now) == []
    items.postpone(session, [row.id], now + MINUTE, "later")
    assert items.sendable(session, {(HOME, "default"): 9}, 9, at=now) == []
    assert [each.id for each in items.sendable(session, {(HOME, "default"): 9}, 9, at=now + MINUTE)] == [
        row.id
    ]


def test_bounds_are_kept(session: Any) -> None:
    """No query takes more rows than its limit, so that a loop's turn stays short."""
    fallback = {"fallback": [{"region": AWAY, "pool": "default"}], "fallback_after": -60.0}
    rows = placed(session, 3, placement=fallback)
    assert len(items.stranded(session, HOME, 2)) == 2
    assert len(items.sendable(session, {(HOME, "default"): 9}, 2)) == 2
    assert len(items.sendable(session, {(HOME, "default"): 2}, 9)) == 2
    send(session, [row.id for row in rows], clock.now(session) - MINUTE)
    assert items.return_expired(session, 2, region=HOME) == 2
    assert items.return_expired(session, 2, region=HOME) == 1


def test_expired_rows_return_by_id(session: Any) -> None:
    """Of more rows than one turn takes, those with the lowest ids, however they were placed."""
    ids = [f"00000000-0000-0000-0000-00000000000{digit}" for digit in (4, 2, 3, 1)]
    rows = [row for row_id in ids for row in placed(session, 1, id=row_id)]
    send(session, ids, clock.now(session) - MINUTE)
    assert items.return_expired(session, 2, region=HOME) == 2
    for row in rows:
        session.refresh(row)
    assert {row.id for row in rows if row.state == ItemState.PLACED} == {ids[3], ids[1]}


def test_reservation_counts_as_a_send(session: Any) -> None:
    """A reserved row is sent, not confirmed, good until the given time; one that was sent before is not reserved again."""
    rows = in_each_state(session)
    until = clock.now(session) + MINUTE
    items.reserve(session, [row.id for row in rows.values()], until)
    for row in rows.values():
        session.refresh(row)
    reserved = rows[ItemState.PLACED]
    assert (reserved.state, reserved.sent_at, reserved.expires_at, reserved.sends) == (
        ItemState.SENT,
        None,
        until,
        1,
    )
    assert [rows[state].sends for state in (ItemState.SENT, ItemState.CLAIMED, ItemState.SETTLED)] == [1] * 3


def test_postponing_takes_the_message_back(session: Any) -> None:
    """An unclaimed row is placed again, without a message, with the reason; claimed and settled ones stay."""
    rows = in_each_state(session)
    later = clock.now(session) + MINUTE
    items.postpone(session, [row.id for row in rows.values()], later, "out of reach")
    for row in rows.values():
        session.refresh(row)
    for state in (ItemState.PLACED, ItemState.SENT):
        row = rows[state]
        assert (row.state, row.sent_at, row.expires_at, row.not_before, row.detail) == (
            ItemState.PLACED,
            None,
            None,
            later,
            "out of reach",
        )
    assert rows[ItemState.CLAIMED].state == ItemState.CLAIMED
    assert rows[ItemState.SETTLED].state == ItemState.SETTLED


def test_work_without_workers_has_no_slots(session: Any) -> None:
    """A pool with work and no workers is in the backlog, with zero slots and workers."""
    placed(session, 2, pool="gpu")
    found = backlogs.backlog(session)[HOME, "gpu"]
    assert (found.placed, found.sent, found.claimed, found.slots, found.workers_alive) == (2, 0, 0, 0, 0)


def test_workers_without_work_are_counted(session: Any) -> None:
    """A pool with workers and no work is in the backlog too; a worker that fell silent is not counted."""
    now = clock.now(session)
    for name in ("w1", "w2"):
        enrol(session, name)
        beat(session, name, slots_total=3)
    found = backlogs.backlog(session, region=HOME, at=now + timedelta(seconds=89))[HOME, "default"]
    assert (found.placed, found.sent, found.slots, found.workers_alive) == (0, 0, 6, 2)
    assert found.oldest_placed_at is None
    assert backlogs.backlog(session, region=HOME, at=now + timedelta(seconds=91)) == {}
    assert backlogs.backlog(session, region=HOME, alive_seconds=10, at=now + timedelta(seconds=11)) == {}
    assert backlogs.backlog(session, region=AWAY) == {}


def test_attempts_that_wait_for_an_earlier_one(session: Any) -> None:
    """A retry waits while an attempt of the same task of the same run holds a lease, and for no other."""
    [first] = placed(session, 1)
    send(session, [first.id], clock.now(session) + MINUTE)
    session.refresh(first)
    leases.claim(session, first, "w1", 60.0, 600.0, {})
    [retry] = placed(session, 1, try_number=2)
    others = [
        placed(session, 1, try_number=2, **different)[0]
        for different in ({"run_id": "other"}, {"task_id": "other"}, {"dag_id": "other"}, {"map_index": 3})
    ]
    now = clock.now(session)
    assert items.running_before(session, [first, retry, *others], now) == {retry.id}
    assert items.running_before(session, [first, *others], now) == set()
    assert items.running_before(session, [retry], now + 2 * MINUTE) == set()


def test_writing_looks_at_no_other_row(session: Any) -> None:
    """A row that the session holds and that was deleted meanwhile is no error of a write to others."""
    gone, row = placed(session, 2)
    gone_id, row_id = gone.id, row.id
    session.execute(
        delete(WorkItemRow).where(WorkItemRow.id == gone_id).execution_options(synchronize_session=False)
    )
    session.expire(gone)
    items.reserve(session, [row_id], clock.now(session) + MINUTE)
    assert row.state == ItemState.SENT
