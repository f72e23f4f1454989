"""Fleet figures for the metrics: extremes of the live workers of each pool, and workers by version."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select

from airbridge.control_plane.read_model import workers
from airbridge.control_plane.read_model.platform import Platform
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import WorkerRow


@dataclass(frozen=True, slots=True)
class Extremes:
    """Extremes of the live workers of one pool."""

    #: Seconds until the first certificate ends.
    certificate_left: float | None
    #: Sum over all of them.
    journal_records: int
    #: Largest absolute value.
    skew_seconds: float


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
    """Return the number of workers by AirBridge version and the matrix's verdict."""
    found: Counter[tuple[str, str]] = Counter()
    for reported, verdict, _, count in workers.versions_in_use(session, platform):
        found[str(reported.get("airbridge", "")), str(verdict)] += count
    return dict(found)
