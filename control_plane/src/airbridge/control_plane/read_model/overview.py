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


@dataclass(frozen=True, slots=True)
class Overview:
    """Platform at one moment."""

    now: datetime
    scheduler_seen_at: datetime | None
    gateways: tuple[GatewayView, ...]
    regions: tuple[RegionView, ...]


def take(session: Any, platform: Platform) -> Overview:
    """Return the current state of the platform."""
    return Overview(
        now=clock.now(session),
        scheduler_seen_at=tasks.scheduler_seen_at(session),
        gateways=gateways.listing(session),
        regions=regions.listing(session, platform),
    )
