"""What workers hold: claimed rows of the ledger beside what Airflow says of their task instances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import select, update

from airbridge.control_plane import _airflow
from airbridge.executor.ledger.models import ItemState, WorkItemRow
from airbridge.executor.protocol import LeaseRef


@dataclass(frozen=True, slots=True)
class Held:
    """A claimed row of a worker, and what Airflow says of its task instance."""

    lease: LeaseRef
    ti_id: str
    ti_state: str | None
    claimed_at: datetime
    stop_after: float | None


def held(session: Any, workers: Collection[str]) -> dict[str, list[Held]]:
    """Return what each of the workers holds; one that holds nothing is left out."""
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
    """Move the task instances' heartbeats, by the database's clock, so that the scheduler lets them be.

    With `skip_locked`, those that somebody is writing to are left to the next heartbeat.
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
