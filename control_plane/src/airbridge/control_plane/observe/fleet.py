"""The fleet in numbers: of each pool the worst of its live workers, and how many run which version."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from airbridge.control_plane.observe import workers
from airbridge.control_plane.observe.platform import Platform
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import WorkerRow


@dataclass(frozen=True, slots=True)
class Extremes:
    """Of the live workers of one pool."""

    certificate_left: float | None
    """Seconds until the first certificate ends."""
    journal_records: int
    """Of all of them together."""
    skew_seconds: float
    """The farthest, without its sign."""


def extremes(session: Any, platform: Platform) -> dict[tuple[str, str], Extremes]:
    """Return the extremes of every pool that has live workers."""
    row, now = WorkerRow, clock.now(session)
    query = (
        select(
            *(row.region, row.pool, func.min(row.certificate_expires_at)),
            *(func.sum(row.journal_pending), func.max(func.abs(row.clock_skew_seconds))),
        )
        .where(row.last_heartbeat_at > now - platform.alive_after, row.wanted != "revoked")
        .group_by(row.region, row.pool)
    )
    return {
        (region, pool): Extremes((ends - now).total_seconds() if ends else None, int(journal), float(skew))
        for region, pool, ends, journal, skew in session.execute(query)
    }


def versions(session: Any, platform: Platform) -> dict[tuple[str, str], int]:
    """Return how many workers run each AirBridge version, under the verdict that the matrix gives them."""
    found: Counter[tuple[str, str]] = Counter()
    for said, verdict, _, count in workers.versions_in_use(session, platform):
        found[str(said.get("airbridge", "")), str(verdict)] += count
    return dict(found)
