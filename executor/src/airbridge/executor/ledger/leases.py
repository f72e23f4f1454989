"""Leases on work items: claim, renew, release, settle. Callers see these as `airbridge.executor.ledger.items`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import select

from airbridge.executor.ledger import clock, events, notices
from airbridge.executor.ledger._locking import for_update, write
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow
from airbridge.executor.protocol import LeaseRef


def lock(session: Any, ids: Iterable[str | UUID]) -> dict[str, WorkItemRow]:
    """Lock rows, in the order of their ids so that no two transactions wait for each other; unknown ids are left out."""
    wanted = sorted({str(each) for each in ids})
    query = select(WorkItemRow).where(WorkItemRow.id.in_(wanted)).order_by(WorkItemRow.id)
    return {row.id: row for row in session.scalars(for_update(session, query))}


def claim(  # noqa: PLR0917 - the columns of one grant, in the order of the contract
    session: Any,
    row: WorkItemRow,
    worker_id: str,
    lease_seconds: float,
    lost_after: float,
    started: dict[str, Any],
    *,
    at: datetime | None = None,
) -> int:
    """Grant a locked row to a worker and return the new epoch. With `at`, the caller flushes, once for many rows."""
    now = at or clock.now(session)
    row.state = ItemState.CLAIMED
    row.epoch += 1
    row.worker_id = worker_id
    row.claimed_at = row.renewed_at = now
    row.lease_until = now + timedelta(seconds=lease_seconds)
    row.lost_at = now + timedelta(seconds=lost_after)
    row.started = started
    row.detail = None
    if at is None:
        session.flush()
    return int(row.epoch)


def renew(
    session: Any,
    worker_id: str,
    leases: Sequence[LeaseRef],
    lease_seconds: float,
    *,
    at: datetime | None = None,
) -> set[LeaseRef]:
    """Renew the leases that are this worker's under these epochs and return them. Any other is its no longer."""
    held = {(str(lease.item_id), lease.epoch): lease for lease in leases}
    row = WorkItemRow
    query = (
        select(row.id, row.epoch, row.disconnect)
        .where(
            row.id.in_([str(lease.item_id) for lease in leases]),
            row.worker_id == worker_id,
            row.state == ItemState.CLAIMED,
        )
        .order_by(row.id)
    )
    mine = [found for found in session.execute(for_update(session, query)) if (found.id, found.epoch) in held]
    by_patience: defaultdict[float, list[str]] = defaultdict(list)
    for found in mine:
        by_patience[float(found.disconnect["lost_after"])].append(found.id)
    now = at or clock.now(session)
    for lost_after, ids in by_patience.items():
        write(
            session,
            WorkItemRow.id.in_(ids),
            renewed_at=now,
            lease_until=now + timedelta(seconds=lease_seconds),
            lost_at=now + timedelta(seconds=lost_after),
        )
    return {held[found.id, found.epoch] for found in mine}


def release(session: Any, row: WorkItemRow, detail: str) -> None:
    """Put a claimed row back to be sent. The epoch stays: the next grant raises it."""
    to_placed(row, clock.now(session))
    row.worker_id = None
    row.claimed_at = row.renewed_at = row.lease_until = row.lost_at = None
    row.started = None
    row.detail = detail
    session.flush()


def settle(
    session: Any, row: WorkItemRow, outcome: Outcome, detail: str | None = None, *, at: datetime | None = None
) -> None:
    """Close a row. What a worker still writes under its epoch is refused from now on. With `at`, the caller flushes."""
    now = at or clock.now(session)
    row.state = ItemState.SETTLED
    row.outcome = outcome
    row.settled_at = now
    row.detail = detail
    events.record(session, "item.settled", "ledger", row=row, at=now, outcome=str(outcome), reason=detail)
    notices.announce(session, row)
    if at is None:
        session.flush()


def overdue(session: Any, limit: int) -> list[WorkItemRow]:
    """Return claimed rows past `lost_at`, locked; those that another process is fencing are left out."""
    query = (
        select(WorkItemRow)
        .where(WorkItemRow.state == ItemState.CLAIMED, WorkItemRow.lost_at <= clock.now(session))
        .order_by(WorkItemRow.id)
        .limit(limit)
    )
    return list(session.scalars(for_update(session, query, skip_locked=True)))


def to_placed(row: WorkItemRow, not_before: datetime) -> None:
    """Let a row wait to be sent again."""
    row.state = ItemState.PLACED
    row.not_before = not_before
    row.sent_at = None
    row.expires_at = None
