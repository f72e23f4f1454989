"""Audit of leases that a worker names but never held. The answer stays neutral: a late message looks the same."""

from __future__ import annotations

from typing import Any

from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.work.fencing import Fence
from airbridge.core.protocol import LeaseRef
from airbridge.executor.ledger import audit
from airbridge.executor.ledger.models import WorkItemRow


def record(
    session: Any, caller: Caller, request: str, lease: LeaseRef, *, row: WorkItemRow | None, verdict: Fence
) -> bool:
    """Record the denial, unless the caller held the lease under that epoch, which is an ordinary late request.

    Return whether it was recorded.
    """
    if verdict.reason is None or verdict.was_holder:
        return False
    audit.record(
        session,
        "lease.refused",
        "denied",
        caller.name.uri,
        address=caller.address,
        rule=f"lease: {verdict.reason}",
        row=row,
        region=caller.name.region,
        worker_id=caller.name.worker,
        request=request,
        item=str(lease.item_id),
        under_epoch=lease.epoch,
        why=verdict.detail,
    )
    return True
