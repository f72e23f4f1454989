"""Audit of leases that a worker names but never held. The answer stays neutral: a late message looks the same."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select

from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.work.fencing import Fence
from airbridge.core.protocol import LeaseRef
from airbridge.executor.ledger import audit
from airbridge.executor.ledger.models import CLAIM_GRANTED, EventRow, WorkItemRow


@dataclass(frozen=True, slots=True)
class Named:
    """Lease that a worker named, the item's row, and the verdict on it."""

    lease: LeaseRef
    row: WorkItemRow | None
    verdict: Fence


def record(
    session: Any, caller: Caller, request: str, named: Sequence[Named], most: int | None = None
) -> int:
    """Record the denials, up to `most`, of leases that the caller never held; return how many there are.

    A late or repeated request about a lease that it was granted, and has released since, is an ordinary one.
    """
    suspect = [each for each in named if each.verdict.reason is not None and not each.verdict.was_holder]
    granted = _granted(session, caller, {str(each.lease.item_id) for each in suspect}) if suspect else ()
    denied = [each for each in suspect if (str(each.lease.item_id), each.lease.epoch) not in granted]
    for each in denied[:most]:
        audit.record(
            session,
            "lease.refused",
            "denied",
            caller.name.uri,
            address=caller.address,
            rule=f"lease: {each.verdict.reason}",
            row=each.row,
            region=caller.name.region,
            worker_id=caller.name.worker,
            request=request,
            item=str(each.lease.item_id),
            under_epoch=each.lease.epoch,
            why=each.verdict.detail,
        )
    return len(denied)


def _granted(session: Any, caller: Caller, item_ids: Collection[str]) -> set[tuple[str, int]]:
    """Return the items and epochs of the caller's grants, by their events, which are kept as long as the items."""
    query = select(EventRow.item_id, EventRow.epoch).where(
        EventRow.item_id.in_(sorted(item_ids)),
        EventRow.event == CLAIM_GRANTED,
        EventRow.source == "control",
        EventRow.worker_id == caller.name.worker,
    )
    return {(item_id, epoch) for item_id, epoch in session.execute(query)}
