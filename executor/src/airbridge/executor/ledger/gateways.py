"""Liveness of gateways: one row a process, refreshed while it runs."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import GatewayRow

# A gateway that ended without a word is kept this long: that it is gone is news for a while.
FORGOTTEN_AFTER = timedelta(days=1)
# End of the version of a gateway that announced its stop.
STOPPED = " (stopped)"


def seen(session: Any, gateway_id: str, version: str) -> None:
    """Write a gateway's sign of life; forget those that have long been gone."""
    now = clock.now(session)
    row: GatewayRow | None = session.get(GatewayRow, gateway_id)
    if row is None:
        row = GatewayRow(id=gateway_id, started_at=now)
        session.add(row)
        gone = delete(GatewayRow).where(GatewayRow.seen_at < now - FORGOTTEN_AFTER)
        session.execute(gone.execution_options(synchronize_session=False))
    row.version = version
    row.seen_at = now
    session.flush()


def left(session: Any, gateway_id: str) -> None:
    """Note that a gateway has ended; its row stays, so that it is known since when there is none."""
    row: GatewayRow | None = session.get(GatewayRow, gateway_id)
    if row is not None:
        row.version = f"{row.version[: 64 - len(STOPPED)]}{STOPPED}"
        session.flush()
