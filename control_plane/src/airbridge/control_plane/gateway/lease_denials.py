"""Leases that a worker names and never held: answered mildly, since a late message looks the same, and written down."""

from __future__ import annotations

from typing import Any

from airbridge.control_plane.gateway.authentication import Caller
from airbridge.control_plane.gateway.fencing import Fence
from airbridge.executor.ledger import audit
from airbridge.executor.ledger.models import WorkItemRow
from airbridge.executor.protocol import LeaseRef


def note(
    session: Any, caller: Caller, request: str, lease: LeaseRef, *, row: WorkItemRow | None, judged: Fence
) -> None:
    """Write it down, unless the caller was the holder of that very epoch: it is then told how it ended."""
    if judged.reason is None or judged.held_once:
        return
    audit.record(
        session,
        "lease.refused",
        "denied",
        caller.name.uri,
        address=caller.address,
        rule=f"lease: {judged.reason}",
        row=row,
        region=caller.name.region,
        worker_id=caller.name.worker,
        request=request,
        item=str(lease.item_id),
        under_epoch=lease.epoch,
        why=judged.detail,
    )
