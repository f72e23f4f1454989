"""Gateways: which processes of them are there. Each writes a sign of life into the database."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from airbridge.control_plane.observe.platform import GATEWAY_SILENT
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import GatewayRow


@dataclass(frozen=True, slots=True)
class GatewayView:
    """One gateway process."""

    id: str
    version: str
    started_at: datetime
    seen_at: datetime
    alive: bool


def listing(session: Any, limit: int = 50) -> tuple[GatewayView, ...]:
    """Return the gateways, the one seen last first."""
    now = clock.now(session)
    query = select(GatewayRow).order_by(GatewayRow.seen_at.desc()).limit(limit)
    return tuple(
        GatewayView(row.id, row.version, row.started_at, row.seen_at, now - row.seen_at <= GATEWAY_SILENT)
        for row in session.scalars(query)
    )
