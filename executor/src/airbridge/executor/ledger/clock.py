"""The database's clock: the only one that leases, expiries and backoffs are measured by."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import text


def now(session: Any) -> datetime:
    """Return the database's time, aware, in UTC. It moves on within a transaction."""
    if session.get_bind().dialect.name == "postgresql":
        value: datetime = session.execute(text("SELECT clock_timestamp()")).scalar_one()
        return value.astimezone(UTC)
    stamp: str = session.execute(text("SELECT strftime('%Y-%m-%dT%H:%M:%f', 'now')")).scalar_one()
    return datetime.fromisoformat(stamp).replace(tzinfo=UTC)
