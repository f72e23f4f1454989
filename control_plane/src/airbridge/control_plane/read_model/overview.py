"""Overview of the platform, for `airbridge status`, `airbridge top` and the dashboard's first page."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airbridge.control_plane.read_model import gateways, regions, tasks
from airbridge.control_plane.read_model.gateways import GatewayView
from airbridge.control_plane.read_model.platform import Platform
from airbridge.control_plane.read_model.regions import RegionView
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.sharing.limits import Limits


@dataclass(frozen=True, slots=True)
class LimitView:
    """Limit of the catalogue, and what counts towards it now."""

    name: str
    pools: tuple[str, ...]
    running: int
    max_running: int | None
    #: Starts within the last minute.
    starts: int
    starts_per_minute: int | None
    waiting: int
    #: True if nothing more may start at the moment.
    full: bool


@dataclass(frozen=True, slots=True)
class Overview:
    """Platform at one moment."""

    now: datetime
    scheduler_seen_at: datetime | None
    gateways: tuple[GatewayView, ...]
    regions: tuple[RegionView, ...]
    limits: tuple[LimitView, ...] = ()


def take(session: Any, platform: Platform) -> Overview:
    """Return the current state of the platform."""
    return Overview(
        now=clock.now(session),
        scheduler_seen_at=tasks.scheduler_seen_at(session),
        gateways=gateways.listing(session),
        regions=regions.listing(session, platform),
        limits=limits(session, platform),
    )


def limits(session: Any, platform: Platform) -> tuple[LimitView, ...]:
    """Return the limits, in the order of the catalogue."""
    loads = Limits(platform.catalogue.limits).loads(session, clock.now(session))
    return tuple(
        LimitView(
            name=load.limit.name,
            pools=load.limit.pools,
            running=load.running,
            max_running=load.limit.max_running,
            starts=load.starts,
            starts_per_minute=load.limit.starts_per_minute,
            waiting=load.waiting,
            full=bool(load.full),
        )
        for load in loads
    )
