"""Leases: every time that a claim, a renewal, a release and a settlement write."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from tests.support.airflow_home import Metadata
from tests.support.items import new_item, send

from airbridge.core.protocol import LeaseRef
from airbridge.executor.ledger import clock, items, leases
from airbridge.executor.ledger.models import Outcome, WorkItemRow

STARTED = {"start_date": "2026-01-01", "ti_context": {}}


@pytest.fixture
def session(sqlite_metadata: Metadata) -> Iterator[Any]:
    with sqlite_metadata.session() as session:
        yield session
        session.rollback()


def placed(session: Any, **values: Any) -> WorkItemRow:
    [row] = items.place(session, [new_item(**values)], 1)
    session.flush()
    return row


def seconds(count: float) -> timedelta:
    return timedelta(seconds=count)


def lease(row: WorkItemRow) -> LeaseRef:
    return LeaseRef(item_id=UUID(row.id), epoch=row.epoch)


def test_claim_writes_the_grant(session: Any) -> None:
    """All times count from the caller's `at`; the item's earlier detail is cleared."""
    row = placed(session)
    row.detail = "its message expired unclaimed"
    at = clock.now(session) - seconds(3600)
    leases.claim(session, row, "w1", 60.0, 600.0, STARTED, at=at)
    assert (row.claimed_at, row.renewed_at) == (at, at)
    assert (row.lease_until, row.lost_at) == (at + seconds(60), at + seconds(600))
    assert (row.started, row.detail) == (STARTED, None)


def test_renewal_counts_from_the_time_given(session: Any) -> None:
    """The lease by the gateway's setting, the fence by the task's own `lost_after`; the claim's time stays."""
    row = placed(session, disconnect={"lost_after": 30.0, "stop_after": None, "replace": True})
    claimed_at = clock.now(session) - seconds(100)
    leases.claim(session, row, "w1", 60.0, 30.0, STARTED, at=claimed_at)
    session.flush()
    at = claimed_at + seconds(20)
    assert leases.renew(session, "w1", [lease(row)], 45.0, at=at) == {lease(row)}
    session.refresh(row)
    assert (row.claimed_at, row.renewed_at) == (claimed_at, at)
    assert (row.lease_until, row.lost_at) == (at + seconds(45), at + seconds(30))


def test_renewals_of_many_workers(session: Any) -> None:
    """Each lease is renewed for its own worker and epoch only; a row that is not claimed is not."""
    mine, theirs, done = placed(session), placed(session), placed(session)
    for row, worker in ((mine, "w1"), (theirs, "w2"), (done, "w1")):
        leases.claim(session, row, worker, 60.0, 600.0, STARTED)
    leases.settle(session, done, Outcome.SUCCESS)
    wanted = {
        lease(mine): "w1",
        lease(theirs): "w2",
        lease(done): "w1",
        LeaseRef(item_id=UUID(theirs.id), epoch=theirs.epoch + 1): "w2",
        LeaseRef(item_id=uuid4(), epoch=1): "w1",
    }
    at = clock.now(session)
    assert leases.renew_all(session, wanted, 60.0, at=at) == {lease(mine), lease(theirs)}
    assert leases.renew_all(session, {lease(mine): "w2", lease(theirs): "w1"}, 60.0, at=at) == set()
    assert leases.renew_all(session, {lease(mine): "w2"}, 60.0, at=at) == set()


def test_release_clears_the_worker(session: Any) -> None:
    """The row waits to be sent at once, as if it had never been claimed, but for its epoch and the reason."""
    row = placed(session)
    send(session, [row.id], clock.now(session) + seconds(60))
    session.refresh(row)
    leases.claim(session, row, "w1", 60.0, 600.0, STARTED)
    leases.release(session, row, "drained")
    assert (row.state, row.epoch, row.detail) == ("placed", 1, "drained")
    assert (row.worker_id, row.claimed_at, row.renewed_at, row.lease_until, row.lost_at) == (None,) * 5
    assert (row.sent_at, row.expires_at, row.started) == (None, None, None)
    assert seconds(-5) < row.not_before - clock.now(session) <= seconds(0)


def test_released_row_is_sendable_at_once(session: Any) -> None:
    """The release is in the database when the function returns: Airflow's sessions do not flush before a query."""
    row = placed(session)
    leases.claim(session, row, "w1", 60.0, 600.0, STARTED)
    leases.release(session, row, "drained")
    assert items.sendable(session, {(row.region, row.pool): 9}, 9) == [row]


def test_settlement_keeps_outcome_and_time(session: Any) -> None:
    """The outcome, the reason and the time given are the row's; without a time it is the database's."""
    row, other = placed(session), placed(session)
    at = clock.now(session) - seconds(3600)
    leases.settle(session, row, Outcome.FAILED, "it broke", at=at)
    assert (row.state, row.outcome, row.detail, row.settled_at) == ("settled", Outcome.FAILED, "it broke", at)
    leases.settle(session, other, Outcome.SUCCESS)
    assert seconds(-5) < other.settled_at - clock.now(session) <= seconds(0)


def test_overdue_is_bounded_and_ordered(session: Any) -> None:
    """At most the limit is returned, ordered by id; unclaimed rows and rows not yet past their time are left out."""
    rows = [placed(session) for _ in range(4)]
    for row in rows[:3]:
        leases.claim(session, row, "w1", 60.0, -1.0, STARTED)
    rows[3].lost_at = clock.now(session) - seconds(60)
    session.flush()
    late = sorted(row.id for row in rows[:3])
    assert [row.id for row in leases.overdue(session, 2)] == late[:2]
    assert [row.id for row in leases.overdue(session, 9)] == late
