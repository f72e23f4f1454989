"""How much waits, and who is there to take it: for the outbox, the metrics and the dashboard."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import func, select

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import ItemState, WorkerRow, WorkItemRow
from airbridge.executor.protocol import WorkerState

WORKER_ALIVE_SECONDS = 90.0
"""A worker that has not been heard of for longer is not counted on for new work."""


@dataclass(frozen=True, slots=True)
class Backlog:
    """What waits and runs in one pool of a region. Counts of work items, except `slots`."""

    placed: int = 0
    sent: int = 0
    claimed: int = 0
    oldest_placed_at: datetime | None = None
    """Since when the oldest unclaimed item has been waiting."""
    slots: int = 0
    """Slots, busy or not, of the workers that take new work."""
    workers_alive: int = 0


def backlog(
    session: Any,
    *,
    region: str | None = None,
    alive_seconds: float = WORKER_ALIVE_SECONDS,
    at: datetime | None = None,
) -> dict[tuple[str, str], Backlog]:
    """Return the backlog of every (region, pool) that has open items or live workers.

    `at` saves asking the database for the time again.
    """
    counts = _counts(session, region)
    capacity = _capacity(session, region, (at or clock.now(session)) - timedelta(seconds=alive_seconds))
    return {place: _one(counts.get(place, {}), capacity.get(place, (0, 0))) for place in {*counts, *capacity}}


def _one(states: Mapping[str, tuple[int, datetime | None]], capacity: tuple[int, int]) -> Backlog:
    none = (0, None)
    placed, sent = states.get(ItemState.PLACED, none), states.get(ItemState.SENT, none)
    waiting_since = [since for _, since in (placed, sent) if since is not None]
    return Backlog(
        placed=placed[0],
        sent=sent[0],
        claimed=states.get(ItemState.CLAIMED, none)[0],
        oldest_placed_at=min(waiting_since, default=None),
        workers_alive=capacity[0],
        slots=capacity[1],
    )


def _counts(
    session: Any, region: str | None
) -> dict[tuple[str, str], dict[str, tuple[int, datetime | None]]]:
    row = WorkItemRow
    query = (
        select(row.region, row.pool, row.state, func.count(), func.min(row.placed_at))
        .where(row.state.in_((ItemState.PLACED, ItemState.SENT, ItemState.CLAIMED)))
        .group_by(row.region, row.pool, row.state)
    )
    if region is not None:
        query = query.where(row.region == region)
    found: defaultdict[tuple[str, str], dict[str, tuple[int, datetime | None]]] = defaultdict(dict)
    for where, pool, state, count, oldest in session.execute(query):
        found[where, pool][state] = (count, oldest)
    return found


def _capacity(
    session: Any, region: str | None, alive_since: datetime
) -> dict[tuple[str, str], tuple[int, int]]:
    row = WorkerRow
    query = (
        select(row.region, row.pool, func.count(), func.sum(row.slots_total))
        .where(
            row.last_heartbeat_at > alive_since,
            row.state == WorkerState.ACTIVE,
            row.wanted == "active",
        )
        .group_by(row.region, row.pool)
    )
    if region is not None:
        query = query.where(row.region == region)
    return {(where, pool): (count, int(slots)) for where, pool, count, slots in session.execute(query)}
