"""Backlog and live slots of each pool, for the outbox, the metrics and the dashboard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import and_, bindparam, case, func, not_, or_, select

from airbridge.core.protocol import ItemKind, WorkerState
from airbridge.executor.ledger import clock
from airbridge.executor.ledger._airflow import UtcDateTime
from airbridge.executor.ledger.models import ItemState, WorkerRow, WorkItemRow

# A region and a pool of it.
PoolRef = tuple[str, str]
# How many items, and since when the oldest has been waiting.
_Waiting = tuple[int, datetime | None]
# Age of the last heartbeat beyond which a worker does not count as live.
WORKER_ALIVE_SECONDS = 90.0


# Built once: SQLAlchemy takes longer to analyse a new statement than to run a known one.
_COUNTS: Final = (
    select(
        *(WorkItemRow.region, WorkItemRow.pool, WorkItemRow.kind, WorkItemRow.state),
        func.count(),
        func.min(WorkItemRow.placed_at),
    )
    .where(WorkItemRow.state.in_((ItemState.PLACED, ItemState.SENT, ItemState.CLAIMED)))
    .group_by(WorkItemRow.region, WorkItemRow.pool, WorkItemRow.kind, WorkItemRow.state)
)
_COUNTS_OF_REGION: Final = _COUNTS.where(WorkItemRow.region == bindparam("region"))
_CAPACITY: Final = (
    select(WorkerRow.region, WorkerRow.pool, func.count(), func.sum(WorkerRow.slots_total))
    .where(
        WorkerRow.last_heartbeat_at > bindparam("alive_since"),
        WorkerRow.state == WorkerState.ACTIVE,
        WorkerRow.wanted == "active",
    )
    .group_by(WorkerRow.region, WorkerRow.pool)
)
_CAPACITY_OF_REGION: Final = _CAPACITY.where(WorkerRow.region == bindparam("region"))


@dataclass(frozen=True, slots=True)
class Backlog:
    """Waiting and running work of one pool. Counts of work items, except `slots`."""

    placed: int = 0
    sent: int = 0
    claimed: int = 0
    # Since when the oldest unclaimed item has been waiting.
    oldest_placed_at: datetime | None = None
    # Slots, busy or not, of the workers that take new work.
    slots: int = 0
    workers_alive: int = 0
    # Open triggers of deferred tasks, waiting or running. They take no slots, and are in none of the other counts.
    triggers: int = 0
    triggers_placed: int = 0
    # Since when the oldest has been waiting that no limit and no quota holds back.
    oldest_ready_at: datetime | None = None


def backlog(
    session: Any,
    *,
    region: str | None = None,
    alive_seconds: float = WORKER_ALIVE_SECONDS,
    at: datetime | None = None,
    held_back: Sequence[Any] = (),
) -> dict[PoolRef, Backlog]:
    """Return the backlog of every (region, pool) that has open items or live workers.

    `at` saves reading the database's clock again. `held_back` are the conditions of work that waits for its turn (see
    `sharing.held_back`): one that has been sent waits for a worker since then.
    """
    counts, triggers = _counts(session, region)
    capacity = _capacity(session, region, (at or clock.now(session)) - timedelta(seconds=alive_seconds))
    found = {
        place: _one(counts.get(place, {}), triggers.get(place, {}), capacity.get(place, (0, 0)))
        for place in {*counts, *triggers, *capacity}
    }
    if not held_back:
        return found
    ready = _ready(session, held_back)
    return {place: replace(each, oldest_ready_at=ready.get(place)) for place, each in found.items()}


def _ready(session: Any, held_back: Sequence[Any]) -> dict[PoolRef, datetime]:
    """Return since when the oldest task of each pool has been waiting that is not held back."""
    row = WorkItemRow
    held = or_(*held_back)
    since = case((held, func.coalesce(row.sent_at, row.placed_at)), else_=row.placed_at)
    query = (
        select(row.region, row.pool, func.min(since, type_=UtcDateTime()))
        .where(
            row.kind == ItemKind.TASK,
            or_(row.state == ItemState.SENT, and_(row.state == ItemState.PLACED, not_(held))),
        )
        .group_by(row.region, row.pool)
    )
    return {(region, pool): oldest for region, pool, oldest in session.execute(query)}


def _one(
    states: Mapping[str, _Waiting], triggers: Mapping[str, _Waiting], capacity: tuple[int, int]
) -> Backlog:
    none = (0, None)
    placed, sent = states.get(ItemState.PLACED, none), states.get(ItemState.SENT, none)
    waiting_since = [since for _, since in (placed, sent) if since is not None]
    oldest = min(waiting_since, default=None)
    return Backlog(
        placed=placed[0],
        sent=sent[0],
        claimed=states.get(ItemState.CLAIMED, none)[0],
        oldest_placed_at=oldest,
        oldest_ready_at=oldest,
        workers_alive=capacity[0],
        slots=capacity[1],
        triggers=sum(count for count, _ in triggers.values()),
        triggers_placed=triggers.get(ItemState.PLACED, none)[0],
    )


def _counts(
    session: Any, region: str | None
) -> tuple[dict[PoolRef, dict[str, _Waiting]], dict[PoolRef, dict[str, _Waiting]]]:
    """Return the number and the oldest of each state: of tasks, and of triggers."""
    query = _COUNTS if region is None else _COUNTS_OF_REGION
    tasks: defaultdict[PoolRef, dict[str, _Waiting]] = defaultdict(dict)
    triggers: defaultdict[PoolRef, dict[str, _Waiting]] = defaultdict(dict)
    for where, pool, kind, state, count, oldest in session.execute(query, {"region": region}):
        found = triggers if kind == ItemKind.TRIGGER else tasks
        found[where, pool][state] = (count, oldest)
    return tasks, triggers


def _capacity(session: Any, region: str | None, alive_since: datetime) -> dict[PoolRef, tuple[int, int]]:
    query = _CAPACITY if region is None else _CAPACITY_OF_REGION
    found = session.execute(query, {"region": region, "alive_since": alive_since})
    return {(where, pool): (count, int(slots)) for where, pool, count, slots in found}
