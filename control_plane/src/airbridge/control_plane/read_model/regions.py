"""Regions and their pools, with health."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import func, select

from airbridge.control_plane.read_model import gateways, workers
from airbridge.control_plane.read_model.diagnosis.cause import count
from airbridge.control_plane.read_model.platform import Platform
from airbridge.control_plane.read_model.standing import MISSING, Standing
from airbridge.control_plane.read_model.workers import Summary
from airbridge.core.protocol import ItemKind
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.backlogs import Backlog, backlog
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow
from airbridge.executor.ledger.sharing import held_back
from airbridge.executor.ledger.sharing.fair_shares import FairShares
from airbridge.executor.ledger.sharing.limits import Limits

# Window of throughput and failures.
RECENT: Final = timedelta(minutes=5)

# Work that waits for longer in a pool with free slots degrades the pool.
SLOW_AFTER: Final = timedelta(minutes=2)


class Health(StrEnum):
    """Health of a region or pool."""

    HEALTHY = "healthy"
    #: No workers and no waiting work.
    IDLE = "idle"
    DEGRADED = "degraded"
    #: Its workers finish their tasks and take no more.
    DRAINING = "draining"
    #: Its workers cannot receive from their queue.
    NO_QUEUE = "no_queue"
    #: Workers are enrolled, and all have missed two heartbeats.
    STALE = "stale"
    #: No gateway runs: its workers cannot claim.
    NO_GATEWAY = "no_gateway"
    #: Workers are enrolled, but none sends heartbeats.
    CUT_OFF = "cut_off"
    #: Work waits and no worker may claim it.
    NO_WORKERS = "no_workers"


@dataclass(frozen=True, slots=True)
class PoolView:
    """Current state of a region's pool. Counts are of work items unless noted otherwise."""

    region: str
    pool: str
    health: Health
    #: Explanation of the health; empty if there is none.
    why: str
    #: Items waiting to be sent.
    placed: int
    #: Items on the queue.
    sent: int
    running: int
    oldest_waiting_since: datetime | None
    #: Slots of workers that accept new work.
    slots: int
    slots_used: int
    #: Workers by standing.
    workers: Counter[Standing]
    #: Items that ended within `RECENT`.
    settled: int
    #: Of these, lost, failed or unplaceable. An attempt that failed and is retried has failed.
    failed: int
    #: Time since which the oldest unclaimed item waits that no limit and no quota holds back.
    oldest_ready_since: datetime | None = None

    @property
    def waiting(self) -> int:
        """Number of unclaimed items."""
        return self.placed + self.sent

    @property
    def backlog_per_slot(self) -> float | None:
        """Unclaimed items per slot, the autoscaling signal; None without slots."""
        return self.waiting / self.slots if self.slots else None

    @property
    def alive(self) -> int:
        """Number of workers with recent heartbeats."""
        return sum(count for standing, count in self.workers.items() if standing.alive)


@dataclass(frozen=True, slots=True)
class RegionView:
    """Region with its pools, and the worst of their health."""

    name: str
    home: bool
    #: True if the catalogue has it. Work and workers may remain of a removed region.
    known: bool
    health: Health
    why: str
    #: Time of the last heartbeat of any of its workers.
    last_heartbeat_at: datetime | None
    pools: tuple[PoolView, ...]

    @property
    def troubled(self) -> bool:
        """True if an operator should look into it."""
        return self.health not in {Health.HEALTHY, Health.IDLE, Health.DRAINING}

    @property
    def waiting(self) -> int:
        """Number of unclaimed items in all pools."""
        return sum(pool.waiting for pool in self.pools)

    @property
    def running(self) -> int:
        """Number of claimed items in all pools."""
        return sum(pool.running for pool in self.pools)

    @property
    def slots(self) -> int:
        """Number of slots in all pools."""
        return sum(pool.slots for pool in self.pools)

    @property
    def slots_used(self) -> int:
        """Number of used slots in all pools."""
        return sum(pool.slots_used for pool in self.pools)

    @property
    def alive(self) -> int:
        """Number of workers with recent heartbeats."""
        return sum(pool.alive for pool in self.pools)

    @property
    def settled(self) -> int:
        """Number of items that ended within `RECENT`, in all pools."""
        return sum(pool.settled for pool in self.pools)

    @property
    def oldest_waiting_since(self) -> datetime | None:
        """Time at which the oldest unclaimed item was placed."""
        found = [pool.oldest_waiting_since for pool in self.pools if pool.oldest_waiting_since]
        return min(found, default=None)


_WORST: Final = (
    *(Health.NO_GATEWAY, Health.NO_WORKERS, Health.CUT_OFF, Health.STALE, Health.NO_QUEUE),
    *(Health.DEGRADED, Health.DRAINING, Health.HEALTHY, Health.IDLE),
)


def listing(session: Any, platform: Platform) -> tuple[RegionView, ...]:
    """Return every region of the catalogue, the home region first, and any other that has work or workers."""
    now = clock.now(session)
    held = held_back.conditions(
        session, Limits(platform.catalogue.limits), FairShares(platform.catalogue.teams), now
    )
    waiting = backlog(session, alive_seconds=platform.alive_after.total_seconds(), at=now, held_back=held)
    ended = _ended(session, now - RECENT)
    fleet = workers.summary(session, platform)
    down = gateways.down(session)
    places = {(region.name, pool.name) for region in platform.catalogue.regions for pool in region.pools}
    places |= {*waiting, *fleet}
    pools = [
        _pool(
            place,
            waiting.get(place, Backlog()),
            fleet.get(place, Summary()),
            ended.get(place, (0, 0)),
            down=down,
            now=now,
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
    heartbeats = [
        fleet[pool.region, pool.pool].last_heartbeat_at for pool in pools if (name, pool.pool) in fleet
    ]
    known = platform.catalogue.region(name) is not None
    why = [f"{pool.pool}: {pool.why}" if len(pools) > 1 else pool.why for pool in pools if pool.why]
    return RegionView(
        name=name,
        home=name == platform.catalogue.home_region,
        known=known,
        health=worst,
        why="; ".join(why if known else [*why, "it is not in the region catalogue"]),
        last_heartbeat_at=max((at for at in heartbeats if at is not None), default=None),
        pools=tuple(pools),
    )


def _pool(
    place: tuple[str, str],
    work: Backlog,
    fleet: Summary,
    ended: tuple[int, int],
    *,
    down: str,
    now: datetime,
) -> PoolView:
    health, why = _without_heartbeats(fleet, down) or _health(work, fleet, now)
    return PoolView(
        region=place[0],
        pool=place[1],
        health=health,
        why=why,
        placed=work.placed,
        sent=work.sent,
        running=work.claimed,
        oldest_waiting_since=work.oldest_placed_at,
        oldest_ready_since=work.oldest_ready_at,
        slots=fleet.slots,
        slots_used=fleet.slots_used,
        workers=Counter(fleet.standings),
        settled=ended[0],
        failed=ended[1],
    )


def _without_heartbeats(fleet: Summary, down: str) -> tuple[Health, str] | None:
    """Return the health of a pool whose workers cannot be heard of; None if one of them sends heartbeats."""
    missing = _count(fleet, *MISSING)
    alive = sum(number for standing, number in fleet.standings.items() if standing.alive)
    if down and (missing or alive):
        return Health.NO_GATEWAY, f"{down}: workers cannot claim"
    if alive or not missing:
        return None
    if fleet.standings[Standing.STALE]:
        stale = _count(fleet, Standing.STALE)
        return Health.STALE, f"{_workers(stale)} missed two heartbeats: disconnected or dead"
    return Health.CUT_OFF, f"none of {_workers(missing)} sends heartbeats"


def _health(work: Backlog, fleet: Summary, now: datetime) -> tuple[Health, str]:
    """Return the health of a pool that has workers with heartbeats, or no workers."""
    if not _count(fleet, Standing.SERVING):
        return _not_serving(work.placed + work.sent, fleet)
    if _count(fleet, Standing.NO_QUEUE):
        return Health.DEGRADED, _queue_error(fleet)
    if missing := _count(fleet, *MISSING):
        return Health.DEGRADED, f"{_workers(missing)} without heartbeats"
    waited = now - work.oldest_ready_at if work.oldest_ready_at else timedelta(0)
    if waited > SLOW_AFTER and fleet.slots_used < fleet.slots:
        return Health.DEGRADED, f"work has waited {int(waited.total_seconds())} s though slots are free"
    return Health.HEALTHY, _others(fleet.standings).removeprefix(": ")


def _not_serving(waits: int, fleet: Summary) -> tuple[Health, str]:
    others = _others(fleet.standings)
    if _count(fleet, Standing.NO_QUEUE):
        return Health.NO_QUEUE, _queue_error(fleet)
    if _count(fleet, Standing.DRAINING, Standing.DRAIN_ONLY) and not _count(fleet, Standing.REFUSED):
        waiting = f"{waits} wait and " if waits else ""
        return Health.DRAINING, f"{waiting}no worker takes new work{others}"
    if waits:
        return Health.NO_WORKERS, f"{waits} wait and no worker may take them{others}"
    return (Health.DEGRADED, f"no worker takes new work{others}") if others else (Health.IDLE, "")


def _queue_error(fleet: Summary) -> str:
    failing = _count(fleet, Standing.NO_QUEUE)
    theirs = "its" if failing == 1 else "their"
    return f"{_workers(failing)} cannot receive from {theirs} queue: {fleet.queue_error}"


def _count(fleet: Summary, *standings: Standing) -> int:
    return sum(fleet.standings[standing] for standing in standings)


def _others(standings: Counter[Standing]) -> str:
    kinds = (Standing.REFUSED, Standing.DRAIN_ONLY, Standing.DRAINING)
    reported = [f"{standings[kind]} {kind.text}" for kind in kinds if standings[kind]]
    return f": {', '.join(reported)}" if reported else ""


def _workers(number: int) -> str:
    return count(number, "worker")


def _ended(session: Any, since: datetime) -> dict[tuple[str, str], tuple[int, int]]:
    row = WorkItemRow
    query = (
        select(row.region, row.pool, row.outcome, func.count())
        .where(row.settled_at > since, row.state == ItemState.SETTLED, row.kind == ItemKind.TASK)
        .group_by(row.region, row.pool, row.outcome)
    )
    bad = {Outcome.LOST, Outcome.FAILED, Outcome.UNPLACEABLE}
    found: dict[tuple[str, str], tuple[int, int]] = {}
    for region, pool, outcome, number in session.execute(query):
        total, failed = found.get((region, pool), (0, 0))
        found[region, pool] = (total + number, failed + (number if outcome in bad else 0))
    return found
