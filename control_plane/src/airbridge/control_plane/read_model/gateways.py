"""Gateway processes, by the liveness rows that they write."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from airbridge.control_plane.read_model.diagnosis.cause import ago
from airbridge.control_plane.read_model.platform import GATEWAY_SILENT
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.gateways import STOPPED
from airbridge.executor.ledger.models import GatewayRow


@dataclass(frozen=True, slots=True)
class GatewayView:
    """Gateway process."""

    id: str
    version: str
    started_at: datetime
    seen_at: datetime
    alive: bool


def listing(session: Any, limit: int = 50) -> tuple[GatewayView, ...]:
    """Return the gateways, last seen first."""
    now = clock.now(session)
    query = select(GatewayRow).order_by(GatewayRow.seen_at.desc()).limit(limit)
    return tuple(
        GatewayView(row.id, row.version, row.started_at, row.seen_at, _is_alive(row, now))
        for row in session.scalars(query)
    )


def down(session: Any) -> str:
    """Return a clause on how long no gateway has been running; empty if one is."""
    found = listing(session, limit=10)
    if any(each.alive for each in found):
        return ""
    if not found:
        return "no gateway has ever run"
    return f"no gateway has run for {ago(found[0].seen_at, clock.now(session))}"


def _is_alive(row: GatewayRow, now: datetime) -> bool:
    return not row.version.endswith(STOPPED) and now - row.seen_at <= GATEWAY_SILENT
