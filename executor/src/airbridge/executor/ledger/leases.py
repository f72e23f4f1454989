"""Leases on work items: claim, renew, release, settle. Callers see these as `airbridge.executor.ledger.items`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final
from uuid import UUID

from sqlalchemy import bindparam, select, update

from airbridge.core import json_text
from airbridge.core.protocol import ItemKind, LeaseRef
from airbridge.executor.ledger import clock, events, notices
from airbridge.executor.ledger._locking import LockingQuery, for_update
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow

_ITEM: Final = WorkItemRow.__table__
_LOCKED: Final = LockingQuery(
    select(WorkItemRow).where(WorkItemRow.id.in_(bindparam("ids", expanding=True))).order_by(WorkItemRow.id),
    entity=WorkItemRow,
)


def lock(session: Any, ids: Iterable[str | UUID]) -> dict[str, WorkItemRow]:
    """Lock rows, in the order of their ids so that no two transactions wait for each other; unknown ids are left out."""
    return {row[0].id: row[0] for row in _LOCKED.rows(session, _ids(ids))}


def lock_at(session: Any, ids: Iterable[str | UUID]) -> tuple[dict[str, WorkItemRow], datetime]:
    """Lock rows as `lock` does; return with them a time at which all of them were locked."""
    found, now = _LOCKED.rows_at(session, _ids(ids))
    return {row[0].id: row[0] for row in found}, now


def _ids(ids: Iterable[str | UUID]) -> dict[str, list[str]]:
    return {"ids": sorted({str(each) for each in ids})}


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
    row.lease_until = clock.after(now, lease_seconds)
    row.lost_at = clock.after(now, lost_after)
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
    wanted = dict.fromkeys(leases, worker_id)
    return _renew(session, wanted, lease_seconds, at or clock.now(session), skip_locked=False)


def renew_all(
    session: Any, wanted: Mapping[LeaseRef, str], lease_seconds: float, *, at: datetime
) -> set[LeaseRef]:
    """Renew leases of many workers, without waiting for any: those that another transaction holds are left out.

    Only what is returned is renewed. Any other is its worker's no longer, or is not to be had at this moment.
    """
    return _renew(session, wanted, lease_seconds, at, skip_locked=True)


# The rows of other workers are not so much as locked.
_WANTED: Final = (
    select(_ITEM.c.id, _ITEM.c.epoch, _ITEM.c.worker_id, _ITEM.c.disconnect, _ITEM.c.kind)
    .where(
        _ITEM.c.id.in_(bindparam("ids", expanding=True)),
        _ITEM.c.state == ItemState.CLAIMED,
        _ITEM.c.worker_id.in_(bindparam("workers", expanding=True)),
    )
    .order_by(_ITEM.c.id)
)
_CLAIMED: Final = LockingQuery(_WANTED)
_CLAIMED_AND_FREE: Final = LockingQuery(_WANTED, skip_locked=True)
_RENEWED: Final = ("renewed_at", "lease_until", "lost_at")
_RENEW: Final = (
    update(_ITEM)
    .where(_ITEM.c.id.in_(bindparam("ids", expanding=True)))
    .values({name: bindparam(name) for name in _RENEWED})
)


def _renew(
    session: Any, wanted: Mapping[LeaseRef, str], lease_seconds: float, now: datetime, *, skip_locked: bool
) -> set[LeaseRef]:
    requested = {(str(lease.item_id), lease.epoch, worker): lease for lease, worker in wanted.items()}
    session.flush()
    query = _CLAIMED_AND_FREE if skip_locked else _CLAIMED
    values = {
        "ids": sorted(item_id for item_id, _, _ in requested),
        "workers": sorted({*wanted.values()}),
    }
    renewed: set[LeaseRef] = set()
    by_policy: defaultdict[tuple[float, float], list[str]] = defaultdict(list)
    for found in query.rows(session, values):
        lease = requested.get((found.id, found.epoch, found.worker_id))
        if lease is not None:
            renewed.add(lease)
            # Not earlier than it says: up to the next renewal its worker may be heard from unnoticed.
            lost_after = float(found.disconnect["lost_after"])
            is_trigger = found.kind == ItemKind.TRIGGER
            by_policy[lost_after, trigger_renewal(lease_seconds, lost_after) if is_trigger else 0.0].append(
                found.id
            )
    for (lost_after, later), ids in by_policy.items():
        until = clock.after(now, lease_seconds + later)
        lost_at = clock.after(now, lost_after + later)
        session.execute(_RENEW, {"ids": ids, "renewed_at": now, "lease_until": until, "lost_at": lost_at})
    _expire(session, {lease.item_id for lease in renewed})
    return renewed


def _expire(session: Any, ids: set[UUID]) -> None:
    """Let the session read the renewals of those rows again that it holds."""
    for row in [each for each in session.identity_map.values() if isinstance(each, WorkItemRow)]:
        if UUID(row.id) in ids:
            session.expire(row, _RENEWED)


def trigger_renewal(lease_seconds: float, lost_after: float) -> float:
    """Return the seconds after which a trigger's lease is renewed in the ledger, while its worker lists it in each heartbeat."""
    return min(lease_seconds, lost_after / 4)


def release_lost(session: Any, row: WorkItemRow, detail: str) -> None:
    """Put a trigger back to be sent whose worker is silent: unlike a task, it may run again under a new epoch."""
    events.record(session, "trigger.lost", "reconciler", row=row, reason=detail)
    release(session, row, detail)


def release(session: Any, row: WorkItemRow, detail: str) -> None:
    """Put a claimed row back to be sent. The epoch stays: the next grant raises it. Its fallback waits as long as at first."""
    now = clock.now(session)
    _add_used(row, now)
    to_placed(row, now)
    row.fallback_at = fallback_due(row.placement, now)
    row.worker_id = None
    row.claimed_at = row.renewed_at = row.lease_until = row.lost_at = None
    row.started = None
    row.detail = json_text.storable_text(detail)
    session.flush()


def settle(
    session: Any, row: WorkItemRow, outcome: Outcome, detail: str | None = None, *, at: datetime | None = None
) -> None:
    """Close a row. What a worker still writes under its epoch is refused from now on. With `at`, the caller flushes."""
    now = at or clock.now(session)
    _add_used(row, now)
    row.state = ItemState.SETTLED
    row.outcome = outcome
    row.settled_at = now
    row.detail = json_text.storable_text(detail) if detail is not None else None
    what: dict[str, Any] = {"outcome": str(outcome), "reason": detail}
    events.add(session, [events.values("item.settled", "ledger", row=row, at=now, **what)])
    notices.announce(session, row)
    if at is None:
        session.flush()


def _add_used(row: WorkItemRow, now: datetime) -> None:
    """Add what the claim that ends now has used."""
    if row.state == ItemState.CLAIMED:
        row.slot_seconds = (row.slot_seconds or 0.0) + row.slots * max(
            0.0, (now - row.claimed_at).total_seconds()
        )


def overdue(session: Any, limit: int) -> list[WorkItemRow]:
    """Return claimed rows past `lost_at`, locked; those that another process is fencing are left out."""
    query = (
        select(WorkItemRow)
        .where(WorkItemRow.state == ItemState.CLAIMED, WorkItemRow.lost_at <= clock.now(session))
        .order_by(WorkItemRow.id)
        .limit(limit)
    )
    return list(session.scalars(for_update(session, query, skip_locked=True)))


def fallback_due(placement: Mapping[str, Any], at: datetime) -> datetime | None:
    """Return when work that waits since `at` moves to its fallback; None without one."""
    return clock.after(at, float(placement["fallback_after"])) if placement.get("fallback") else None


def to_placed(row: WorkItemRow, not_before: datetime) -> None:
    """Let a row wait to be sent again."""
    row.state = ItemState.PLACED
    row.not_before = not_before
    row.sent_at = None
    row.expires_at = None
