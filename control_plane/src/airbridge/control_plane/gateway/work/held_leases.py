"""Held leases of workers: claimed rows of the ledger, joined with Airflow's task instances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, update

from airbridge.control_plane import _airflow
from airbridge.core.protocol import LeaseRef
from airbridge.executor.ledger.models import ItemState, WorkItemRow


@dataclass(frozen=True, slots=True)
class Held:
    """Claimed row of a worker, with the state of its task instance in Airflow."""

    lease: LeaseRef
    ti_id: str
    ti_state: str | None
    claimed_at: datetime
    stop_after: float | None


def held(session: Any, workers: Collection[str]) -> dict[str, list[Held]]:
    """Return the leases of each worker; workers without leases are left out."""
    task = _airflow.task_instance_model()
    query = (
        select(
            WorkItemRow.worker_id,
            WorkItemRow.id,
            WorkItemRow.epoch,
            WorkItemRow.ti_id,
            task.state,
            WorkItemRow.claimed_at,
            WorkItemRow.disconnect,
        )
        .outerjoin(task, task.id == WorkItemRow.ti_id)
        .where(WorkItemRow.worker_id.in_(sorted(workers)), WorkItemRow.state == ItemState.CLAIMED)
    )
    found: defaultdict[str, list[Held]] = defaultdict(list)
    for worker, item_id, epoch, ti_id, state, claimed_at, disconnect in session.execute(query):
        lease = LeaseRef(item_id=UUID(item_id), epoch=epoch)
        found[worker].append(Held(lease, ti_id, state, claimed_at, disconnect["stop_after"]))
    return dict(found)


def keep_alive(session: Any, ti_ids: Sequence[str], now: datetime, *, skip_locked: bool = False) -> None:
    """Update the task instances' heartbeats to `now`, so that Airflow's scheduler does not consider them lost.

    With `skip_locked`, rows that another transaction has locked are left to the next heartbeat.
    """
    if not ti_ids:
        return
    task = _airflow.task_instance_model()
    wanted = select(task.id).where(task.id.in_(sorted(ti_ids)), task.state == "running").order_by(task.id)
    ids = session.scalars(wanted.with_for_update(skip_locked=True)).all() if skip_locked else ti_ids
    if not ids:
        return
    session.execute(
        update(task)
        .where(task.id.in_(ids), task.state == "running")
        .values(last_heartbeat_at=now)
        .execution_options(synchronize_session=False)
    )
