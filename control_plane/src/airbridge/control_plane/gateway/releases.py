"""Release: claimed work items that were never started go back to be sent; what Airflow no longer wants is settled.

So do those that their worker turns out to know nothing of; or, if it did once, they are given up as lost.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import structlog
from sqlalchemy import update

from airbridge.control_plane import _airflow
from airbridge.control_plane.gateway import lease_denials
from airbridge.control_plane.gateway.authentication import Caller, check_revocation
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.fencing import fence
from airbridge.executor.ledger import events, items, records
from airbridge.executor.ledger.models import Outcome, WorkItemRow
from airbridge.executor.protocol import LeaseRef, ReleaseRequest, ReleaseResponse

log = structlog.get_logger()


def release(caller: Caller, request: ReleaseRequest) -> ReleaseResponse:
    """Give up leases. Those that are not this worker's any more count as given up too."""
    caller.require("work:report", worker=caller.name.worker)
    with unit() as work:
        session = work.session
        check_revocation(session, caller)
        rows = items.lock(session, [lease.item_id for lease in request.items])
        for lease in request.items:
            row = rows.get(str(lease.item_id))
            judged = fence(row, caller.name.worker, lease.epoch)
            if row is not None and judged.reason is None:
                _release(session, caller, row, request.detail)
            lease_denials.note(session, caller, "release", lease, row=row, judged=judged)
        return ReleaseResponse(released=request.items)


def take_back(session: Any, caller: Caller, lease: LeaseRef, now: datetime) -> None:
    """Take a work item back from a worker that does not know of its grant.

    If nothing was ever heard of it under this epoch it goes back to the queue: a task is journalled before it starts.
    Otherwise the worker has lost its journal, and with it the task: the keeper fences the attempt at its next turn,
    as it does for work that is not to be replaced.
    """
    row = items.lock(session, [lease.item_id]).get(str(lease.item_id))
    if row is None or fence(row, caller.name.worker, lease.epoch).reason is not None:
        return
    unheard = row.renewed_at == row.claimed_at and not records.find(session, row.id, row.epoch)
    if unheard and row.disconnect["replace"]:
        _release(session, caller, row, f"worker {row.worker_id} ended before it took note of the grant")
        return
    row.lost_at = now
    row.detail = f"lost: worker {row.worker_id} in {row.region} no longer knows of it (its journal was lost)"
    events.record(session, "lease.disowned", caller.name.uri, row=row, at=now, reason=row.detail)
    session.flush()
    log.warning("lease.disowned", worker=row.worker_id, item_id=row.id, ti_id=row.ti_id, epoch=row.epoch)


def _release(session: Any, caller: Caller, row: WorkItemRow, detail: str) -> None:
    if _queue_again(session, row):
        events.record(session, "item.released", caller.name.uri, row=row, why=detail[:500])
        items.release(session, row, detail[:500])
    else:
        items.settle(session, row, Outcome.CANCELLED, "released after Airflow had given it up")
    log.info("item.released", worker=caller.name.worker, item_id=row.id, ti_id=row.ti_id, detail=detail[:500])


def _queue_again(session: Any, row: WorkItemRow) -> bool:
    """Put the task instance back to queued if it is still the one that this claim started."""
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
