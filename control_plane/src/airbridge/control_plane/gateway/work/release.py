"""Release of claimed work items: items that never started are queued again, unwanted ones are settled.

`reclaim` does the same for items that their worker turns out not to hold, or marks them as lost if they had started.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import update

from airbridge.control_plane import _airflow
from airbridge.control_plane.gateway.auth.authentication import Caller, check_revocation
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.triggers.placing import is_trigger
from airbridge.control_plane.gateway.work import lease_denials
from airbridge.control_plane.gateway.work.fencing import fence, is_claimed
from airbridge.control_plane.gateway.work.lease_denials import Named
from airbridge.core.protocol import LeaseRef, ReleaseRequest, ReleaseResponse
from airbridge.executor.ledger import events, leases, records
from airbridge.executor.ledger.models import Outcome, WorkItemRow

log = structlog.get_logger()


def release(caller: Caller, request: ReleaseRequest) -> ReleaseResponse:
    """Release leases. Leases that the worker no longer holds count as released too."""
    caller.require("work:report", worker=caller.name.worker)
    with unit() as work:
        session = work.session
        check_revocation(session, caller)
        rows = leases.lock(session, [lease.item_id for lease in request.items])
        named: list[Named] = []
        for lease in request.items:
            row = rows.get(str(lease.item_id))
            named.append(Named(lease, row, fence(row, caller.name.worker, lease.epoch)))
            if row is not None and is_claimed(row, caller.name.worker, lease.epoch):
                _release(session, caller, row, request.detail)
        lease_denials.record(session, caller, "release", named)
        return ReleaseResponse(released=request.items)


def reclaim(session: Any, caller: Caller, lease: LeaseRef, now: datetime) -> None:
    """Reclaim a work item from a worker that has no record of its grant.

    Without any report under this epoch it is queued again: a task is journalled before it starts. Otherwise the worker
    has lost its journal and with it the task: the reconciler fences the attempt at its next pass, as it does for work
    that must not be replaced.
    """
    row = leases.lock(session, [lease.item_id]).get(str(lease.item_id))
    if row is None or fence(row, caller.name.worker, lease.epoch).reason is not None:
        return
    never_reported = row.renewed_at == row.claimed_at and not records.find(session, row.id, row.epoch)
    if (never_reported and row.disconnect["replace"]) or is_trigger(row):
        _release(session, caller, row, f"worker {row.worker_id} ended before it journalled the grant")
        return
    row.lost_at = now
    row.detail = f"lost: worker {row.worker_id} in {row.region} has no record of it (its journal was lost)"
    events.record(session, "lease.disowned", caller.name.uri, row=row, at=now, reason=row.detail)
    session.flush()
    log.warning("lease.disowned", worker=row.worker_id, item_id=row.id, ti_id=row.ti_id, epoch=row.epoch)


def _release(session: Any, caller: Caller, row: WorkItemRow, detail: str) -> None:
    # A trigger that is no longer wanted is cancelled by the reconciler, or refused at its next claim.
    if is_trigger(row) or _queue_again(session, row):
        events.record(session, "item.released", caller.name.uri, row=row, why=detail[:500])
        leases.release(session, row, detail[:500])
    else:
        leases.settle(session, row, Outcome.CANCELLED, "released after Airflow had given it up")
    log.info("item.released", worker=caller.name.worker, item_id=row.id, ti_id=row.ti_id, detail=detail[:500])


def _queue_again(session: Any, row: WorkItemRow) -> bool:
    """Set the task instance back to queued if it is still the one that this claim started."""
    task = _airflow.task_instance_model()
    found = session.execute(
        update(task)
        .where(
            task.id == row.ti_id,
            task.state == "running",
            task.hostname == row.worker_id,
            task.pid == row.epoch,
        )
        .values(state="queued", hostname="", unixname=None, pid=None, last_heartbeat_at=None)
        .execution_options(synchronize_session=False)
    )
    return bool(found.rowcount)
