"""Timeline and audit: what happened to work items, workers and identities."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import delete

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import EventRow, WorkItemRow


def record(
    session: Any,
    event: str,
    actor: str,
    *,
    row: WorkItemRow | None = None,
    at: datetime | None = None,
    region: str | None = None,
    worker_id: str | None = None,
    **detail: Any,
) -> EventRow:
    """Write an event. `event` is a stable name (``item.sent``); `row` gives its IDs; `detail` must be JSON.

    `at` saves asking the database for the time again.
    """
    written = EventRow(
        at=at or clock.now(session),
        event=event,
        actor=actor,
        region=region or (row.region if row else None),
        worker_id=worker_id or (row.worker_id if row else None),
        item_id=row.id if row else None,
        ti_id=row.ti_id if row else None,
        epoch=(row.epoch or 0) if row else None,
        trace_id=trace_id(row.trace) if row else None,
        detail=detail,
    )
    session.add(written)
    return written


def trace_id(trace: dict[str, str] | None) -> str | None:
    """Return the trace id of a W3C trace context, if there is a valid one."""
    parts = (trace or {}).get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else None


def purge(session: Any, before: datetime) -> int:
    """Delete events older than that; return how many."""
    result = session.execute(
        delete(EventRow).where(EventRow.at < before).execution_options(synchronize_session=False)
    )
    return int(result.rowcount)
