"""Regions: the health of each on one line, pool by pool."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import func, select

from airbridge.control_plane.observe import workers
from airbridge.control_plane.observe.platform import Platform
from airbridge.control_plane.observe.workers import Standing, Summary
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.backlogs import Backlog, backlog
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow

RECENT: Final = timedelta(minutes=5)
"""Throughput and failures are those of the last minutes."""

SLOW_AFTER: Final = timedelta(minutes=2)
"""Work that waits for longer than this in a region with room degrades it."""


class Health(StrEnum):
    """How a region or a pool is."""

    HEALTHY = "healthy"
    IDLE = "idle"
    """Nobody is there, and nothing waits."""
    DEGRADED = "degraded"
    CUT_OFF = "cut_off"
    """Workers are enrolled there and none has been heard of lately."""
    NO_WORKERS = "no_workers"
    """Work waits and nobody may take it."""


@dataclass(frozen=True, slots=True)
class PoolView:
    """One pool of a region, now. Counts are of work items, unless they say otherwise."""

    region: str
    pool: str
    health: Health
    why: str
    """The health in words; empty if there is nothing to say."""
    placed: int
    """Waiting to be sent."""
    sent: int
    """On the queue."""
    running: int
    oldest_waiting_since: datetime | None
    slots: int
    """Slots of the workers that take new work."""
    slots_used: int
    workers: Counter[Standing]
    """Workers by what they may do."""
    settled: int
    """Ended in the last `RECENT`."""
    failed: int
    """Of these, lost, failed or unplaceable (a task's own failure is reported like a success)."""

    @property
    def waiting(self) -> int:
        """Unclaimed items."""
        return self.placed + self.sent

    @property
    def backlog_per_slot(self) -> float | None:
        """What the autoscaling group scales by; None without slots."""
        return self.waiting / self.slots if self.slots else None

    @property
    def alive(self) -> int:
        """Workers heard of lately."""
        return sum(count for standing, count in self.workers.items() if standing.alive)


@dataclass(frozen=True, slots=True)
class RegionView:
    """A region: its pools, and the worst of their healths."""

    name: str
    home: bool
    known: bool
    """Whether the catalogue has it; work and workers may be left of one that it no longer has."""
    health: Health
    why: str
    last_heard_at: datetime | None
    """When any of its workers was last heard of."""
    pools: tuple[PoolView, ...]

    @property
    def waiting(self) -> int:
        """Unclaimed items of all pools."""
        return sum(pool.waiting for pool in self.pools)

    @property
    def running(self) -> int:
        """Claimed items of all pools."""
        return sum(pool.running for pool in self.pools)

    @property
    def slots(self) -> int:
        """Slots of all pools."""
        return sum(pool.slots for pool in self.pools)

    @property
    def slots_used(self) -> int:
        """Slots in use in all pools."""
        return sum(pool.slots_used for pool in self.pools)

    @property
    def alive(self) -> int:
        """Workers heard of lately."""
        return sum(pool.alive for pool in self.pools)

    @property
    def settled(self) -> int:
        """Items that ended in the last `RECENT`."""
        return sum(pool.settled for pool in self.pools)

    @property
    def oldest_waiting_since(self) -> datetime | None:
        """Since when the oldest unclaimed item has been waiting."""
        found = [pool.oldest_waiting_since for pool in self.pools if pool.oldest_waiting_since]
        return min(found, default=None)


_WORST: Final = (Health.NO_WORKERS, Health.CUT_OFF, Health.DEGRADED, Health.HEALTHY, Health.IDLE)


def listing(session: Any, platform: Platform) -> tuple[RegionView, ...]:
    """Return every region of the catalogue, and any other that has work or workers, the home region first."""
    now = clock.now(session)
    waiting = backlog(session, alive_seconds=platform.alive_after.total_seconds())
    ended = _ended(session, now - RECENT)
    fleet = workers.summary(session, platform)
    places = {(region.name, pool.name) for region in platform.catalogue.regions for pool in region.pools}
    places |= {*waiting, *fleet}
    pools = [
        _pool(
            place, waiting.get(place, Backlog()), fleet.get(place, Summary()), ended.get(place, (0, 0)), now
        )
        for place in sorted(places)
    ]
    names = dict.fromkeys([*platform.catalogue.names, *sorted({region for region, _ in places})])
    return tuple(
        _region(name, platform, [pool for pool in pools if pool.region == name], fleet) for name in names
    )


def _region(
    name: str, platform: Platform, pools: Sequence[PoolView], fleet: dict[tuple[str, str], Summary]
) -> RegionView:
    worst = min((pool.health for pool in pools), key=_WORST.index, default=Health.IDLE)
    heard = [fleet[pool.region, pool.pool].last_heard_at for pool in pools if (name, pool.pool) in fleet]
    known = platform.catalogue.region(name) is not None
    why = [f"{pool.pool}: {pool.why}" if len(pools) > 1 else pool.why for pool in pools if pool.why]
    return RegionView(
        name=name,
        home=name == platform.catalogue.home_region,
        known=known,
        health=worst,
        why="; ".join(why if known else [*why, "it is not in the region catalogue"]),
        last_heard_at=max((at for at in heard if at is not None), default=None),
        pools=tuple(pools),
    )


def _pool(
    place: tuple[str, str], work: Backlog, fleet: Summary, ended: tuple[int, int], now: datetime
) -> PoolView:
    health, why = _health(work, fleet, now)
    return PoolView(
        region=place[0],
        pool=place[1],
        health=health,
        why=why,
        placed=work.placed,
        sent=work.sent,
        running=work.claimed,
        oldest_waiting_since=work.oldest_placed_at,
        slots=fleet.slots,
        slots_used=fleet.slots_used,
        workers=Counter(fleet.standings),
        settled=ended[0],
        failed=ended[1],
    )


def _health(work: Backlog, fleet: Summary, now: datetime) -> tuple[Health, str]:
    standings = fleet.standings
    waits = work.placed + work.sent
    serving, silent = standings[Standing.SERVING], standings[Standing.SILENT]
    alive = sum(count for standing, count in standings.items() if standing.alive)
    if silent and not alive:
        return Health.CUT_OFF, f"none of {silent} {_workers(silent)} is heard of"
    if not serving:
        if waits:
            return Health.NO_WORKERS, f"{waits} wait and no worker may take them{_others(standings)}"
        return (
            (Health.DEGRADED, f"no worker takes new work{_others(standings)}") if alive else (Health.IDLE, "")
        )
    if silent:
        return Health.DEGRADED, f"{silent} {_workers(silent)} not heard of"
    waited = now - work.oldest_placed_at if work.oldest_placed_at else timedelta(0)
    if waited > SLOW_AFTER and fleet.slots_used < fleet.slots:
        return Health.DEGRADED, f"work has waited {int(waited.total_seconds())} s though slots are free"
    return Health.HEALTHY, _others(standings).removeprefix(": ")


def _others(standings: Counter[Standing]) -> str:
    kinds = (Standing.REFUSED, Standing.DRAIN_ONLY, Standing.DRAINING)
    said = [f"{standings[kind]} {kind.words}" for kind in kinds if standings[kind]]
    return f": {', '.join(said)}" if said else ""


def _workers(count: int) -> str:
    return "worker" if count == 1 else "workers"


def _ended(session: Any, since: datetime) -> dict[tuple[str, str], tuple[int, int]]:
    row = WorkItemRow
    query = (
        select(row.region, row.pool, row.outcome, func.count())
        .where(row.settled_at > since, row.state == ItemState.SETTLED)
        .group_by(row.region, row.pool, row.outcome)
    )
    bad = {Outcome.LOST, Outcome.FAILED, Outcome.UNPLACEABLE}
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for region, pool, outcome, count in session.execute(query):
        total, failed = found.get((region, pool), (0, 0))
        found[region, pool] = (total + count, failed + (count if outcome in bad else 0))
    return found
