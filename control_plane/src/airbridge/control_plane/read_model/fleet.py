"""Fleet figures for the metrics: extremes of the live workers of each pool, and workers by version."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Float, cast, func, select

from airbridge.control_plane.read_model import workers
from airbridge.control_plane.read_model.platform import Platform
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.identity.models import CertificateRow
from airbridge.executor.ledger.models import WorkerRow


@dataclass(frozen=True, slots=True)
class Extremes:
    """Extremes of the live workers of one pool."""

    #: Seconds until the first certificate ends.
    certificate_left: float | None
    #: Smallest part of its lifetime that a certificate has left; below 0 after its end.
    certificate_left_ratio: float | None
    #: Sum over all of them.
    journal_records: int
    #: Largest absolute value.
    skew_seconds: float


def extremes(session: Any, platform: Platform) -> dict[tuple[str, str], Extremes]:
    """Return the extremes of every pool that has live workers."""
    row, now = WorkerRow, clock.now(session)
    certificate = CertificateRow
    lifetime = func.coalesce(
        # Its own, which is not that of the setting if that has changed meanwhile.
        func.nullif(_epoch(session, certificate.expires_at) - _epoch(session, certificate.issued_at), 0.0),
        platform.certificate_lifetime.total_seconds(),
    )
    left_ratio = (_epoch(session, row.certificate_expires_at) - now.timestamp()) / lifetime
    query = (
        select(
            *(row.region, row.pool, func.min(row.certificate_expires_at), func.min(left_ratio)),
            *(func.sum(row.journal_pending), func.max(func.abs(row.clock_skew_seconds))),
        )
        .outerjoin(certificate, certificate.thumbprint == row.certificate_thumbprint)
        .where(row.last_heartbeat_at > now - platform.alive_after, row.wanted != "revoked")
        .group_by(row.region, row.pool)
    )
    return {
        (region, pool): Extremes(
            (ends - now).total_seconds() if ends else None,
            float(ratio) if ratio is not None else None,
            int(journal),
            float(skew),
        )
        for region, pool, ends, ratio, journal, skew in session.execute(query)
    }


def _epoch(session: Any, column: Any) -> Any:
    """Return the SQL expression of a time in seconds since the epoch, for the session's database."""
    if session.get_bind().dialect.name == "postgresql":
        return cast(func.extract("epoch", column), Float)
    return cast(func.strftime("%s", column), Float)


def versions(session: Any, platform: Platform) -> dict[tuple[str, str], int]:
    """Return the number of workers by AirBridge version and the matrix's verdict."""
    found: Counter[tuple[str, str]] = Counter()
    for reported, verdict, _, count in workers.versions_in_use(session, platform):
        found[str(reported.get("airbridge", "")), str(verdict)] += count
    return dict(found)
