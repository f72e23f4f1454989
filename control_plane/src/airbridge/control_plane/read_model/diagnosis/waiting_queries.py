"""Queries of `waiting`: rows around a work item that has not been claimed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import and_, func, or_, select

from airbridge.control_plane.read_model.work import ItemView
from airbridge.core.protocol import ItemKind
from airbridge.core.regions import Limit
from airbridge.executor.ledger import events
from airbridge.executor.ledger.models import EventRow, ItemState, WorkItemRow
from airbridge.executor.ledger.sharing import fair_shares
from airbridge.executor.ledger.sharing.fair_shares import TeamLoad
from airbridge.executor.ledger.sharing.held_back import UNSENT
from airbridge.executor.ledger.sharing.limits import LimitLoad, Limits

# Bounds the IN list; events of a hundred workers are enough to tell whether a queue works.
MAX_WORKERS: Final = 100


def unsent_detail(session: Any, item: ItemView) -> str | None:
    """Return the error of any item of the pool that could not be sent; None without one."""
    row = WorkItemRow
    query = select(row.detail).where(
        _unclaimed_of_pool(item), row.sent_at.is_(None), row.detail.startswith(UNSENT, autoescape=True)
    )
    found: str | None = session.scalars(query.limit(1)).first()
    return found


def items_before(session: Any, item: ItemView) -> int:
    """Return the number of unclaimed items of the pool that are sent or claimed before this one."""
    row = WorkItemRow
    earlier = and_(row.priority == item.priority, row.placed_at < item.placed_at)
    query = select(func.count()).where(_unclaimed_of_pool(item), or_(row.priority > item.priority, earlier))
    return int(session.execute(query).scalar_one())


def limits(session: Any, catalogue: Sequence[Limit], item: ItemView, now: datetime) -> tuple[LimitLoad, ...]:
    """Return the loads of the limits that the item counts towards."""
    if not catalogue:
        return ()
    names = session.scalars(select(WorkItemRow.limits).where(WorkItemRow.id == item.id)).first()
    counted = Limits(catalogue).of(names, (item.region, item.pool))
    return Limits(counted).loads(session, now)


def team_load(session: Any, item: ItemView) -> TeamLoad:
    """Return the load of the item's team in the item's pool."""
    ref = (item.region, item.pool)
    return fair_shares.loads(session, [ref]).get(ref, {}).get(item.team, TeamLoad())


def next_slots(session: Any, item: ItemView, now: datetime) -> int:
    """Return the slots of the work that the item's team sends next to the item's pool: the rest of the team's waits for it."""
    row = WorkItemRow
    query = (
        select(row.slots)
        .where(
            _unclaimed_of_pool(item),
            row.state == ItemState.PLACED,
            row.team == item.team,
            row.not_before <= now,
        )
        .order_by(row.priority.desc(), row.placed_at, row.id)
    )
    found = session.scalars(query.limit(1)).first()
    return item.slots if found is None else int(found)


def latest_event(session: Any, worker_ids: Sequence[str], names: Sequence[str]) -> EventRow | None:
    """Return the newest event with one of these names, of any of the workers."""
    query = select(EventRow).where(
        EventRow.worker_id.in_(worker_ids[:MAX_WORKERS]), EventRow.event.in_(names)
    )
    found: EventRow | None = session.scalars(query.order_by(EventRow.id.desc()).limit(1)).first()
    return found


def refused_enrolment(session: Any, item: ItemView, since: datetime) -> EventRow | None:
    """Return the newest refused enrolment of the item's pool."""
    refused = events.since(session, "enrol.refused", since, region=item.region)
    return next((each for each in refused if each.detail.get("pool") == item.pool), None)


def fallback(session: Any, item: ItemView) -> tuple[str, datetime] | None:
    """Return the pool that the item moves to next, as ``pool@region``, and the time of the move."""
    row = session.get(WorkItemRow, item.id)
    if row is None or row.fallback_at is None or not row.placement.get("fallback"):
        return None
    target = row.placement["fallback"][0]
    return f"{target['pool']}@{target['region']}", row.fallback_at


def _unclaimed_of_pool(item: ItemView) -> Any:
    row = WorkItemRow
    unclaimed = row.state.in_((ItemState.PLACED, ItemState.SENT))
    return and_(unclaimed, row.region == item.region, row.pool == item.pool, row.kind == ItemKind.TASK)
