"""The database's clock: the only one that leases, expiries and backoffs are measured by."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import text

from airbridge.core.hints import LONGEST_SECONDS

# Built once: SQLAlchemy analyses a statement anew for each object, and reuses what it knows of this one.
_POSTGRES: Final = text("SELECT clock_timestamp()")
_SQLITE: Final = text("SELECT strftime('%Y-%m-%dT%H:%M:%f', 'now')")


def now(session: Any) -> datetime:
    """Return the database's time, aware, in UTC. It moves on within a transaction."""
    if session.get_bind().dialect.name == "postgresql":
        value: datetime = session.execute(_POSTGRES).scalar_one()
        return value.astimezone(UTC)
    stamp: str = session.execute(_SQLITE).scalar_one()
    return datetime.fromisoformat(stamp).replace(tzinfo=UTC)


def after(at: datetime, seconds: float) -> datetime:
    """Return the time so many seconds after `at`, at most ten years: rows may hold numbers from before hints were bounded."""
    # In this order: `min` returns its first argument if the other is not a number.
    return at + timedelta(seconds=min(LONGEST_SECONDS, seconds))
