"""Held leases of workers: claimed rows of the ledger, joined with Airflow's task instances."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import and_, bindparam, case, select, update

from airbridge.control_plane import _airflow
from airbridge.core.protocol import ItemKind, LeaseRef
from airbridge.executor.ledger import leases
from airbridge.executor.ledger.models import ItemState, WorkItemRow


@dataclass(frozen=True, slots=True)
class Held:
    """Claimed row of a worker, with the state of its task instance in Airflow.

    The state is ``running`` for a trigger too, as long as its task instance is deferred on it.
    """

    lease: LeaseRef
    ti_id: str
    ti_state: str | None
    claimed_at: datetime
    #: Last renewal of a trigger's lease, which is not renewed at every heartbeat; None for a task's.
    trigger_renewed_at: datetime | None
    lost_after: float
    stop_after: float | None


@cache
def _held() -> Any:
    """Return the query of `held`: built at its first use, because it needs Airflow's model."""
    task, item = _airflow.task_instance_model().__table__.c, WorkItemRow.__table__.c
    waits_on_it = and_(task.state == "deferred", task.trigger_id == item.trigger_id)
    return (
        select(
            item.worker_id,
            item.id,
            item.epoch,
            item.ti_id,
            case((waits_on_it, "running"), else_=task.state),
            item.claimed_at,
            case((item.kind == ItemKind.TRIGGER, item.renewed_at)),
            item.disconnect,
        )
        .select_from(WorkItemRow.__table__.outerjoin(task.id.table, task.id == item.ti_id))
        .where(item.worker_id.in_(bindparam("workers", expanding=True)), item.state == ItemState.CLAIMED)
    )


@cache
def _keep_alive(*, skip_locked: bool) -> Any:
    """Return the statement of `keep_alive`."""
    table = _airflow.task_instance_model().__table__
    task, ids = table.c, bindparam("ids", expanding=True)
    running = [task.id.in_(ids), task.state == "running"]
    if skip_locked:
        free = select(task.id).where(*running).order_by(task.id).with_for_update(skip_locked=True)
        running = [task.id.in_(free.cte("free").select()), task.state == "running"]
    return update(table).where(*running).values(last_heartbeat_at=bindparam("now"))


def held(session: Any, workers: Collection[str]) -> dict[str, list[Held]]:
    """Return the leases of each worker; workers without leases are left out."""
    found: defaultdict[str, list[Held]] = defaultdict(list)
    rows = session.execute(_held(), {"workers": sorted(workers)})
    for worker, item_id, epoch, ti_id, state, claimed_at, renewed_at, disconnect in rows:
        lease = LeaseRef(item_id=UUID(item_id), epoch=epoch)
        lost_after, stop_after = disconnect["lost_after"], disconnect["stop_after"]
        found[worker].append(Held(lease, ti_id, state, claimed_at, renewed_at, lost_after, stop_after))
    return dict(found)


def fresh_triggers(
    held: Iterable[Held], listed: Collection[LeaseRef], now: datetime, lease_seconds: float
) -> set[LeaseRef]:
    """Return the listed leases of triggers that need no renewal yet: a worker may hold thousands."""
    return {
        each.lease
        for each in held
        if each.lease in listed
        and each.trigger_renewed_at is not None
        and (now - each.trigger_renewed_at).total_seconds()
        < leases.trigger_renewal(lease_seconds, each.lost_after)
    }


def tasks_of(held: Iterable[Held]) -> list[str]:
    """Return the task instances that run, without those that are deferred on triggers."""
    return [each.ti_id for each in held if each.trigger_renewed_at is None]


def keep_alive(session: Any, ti_ids: Sequence[str], now: datetime, *, skip_locked: bool = False) -> None:
    """Update the task instances' heartbeats to `now`, so that Airflow's scheduler does not consider them lost.

    With `skip_locked`, rows that another transaction has locked are left to the next heartbeat.
    """
    if not ti_ids:
        return
    session.execute(_keep_alive(skip_locked=skip_locked), {"ids": sorted(ti_ids), "now": now})
