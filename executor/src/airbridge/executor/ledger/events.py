"""Timeline and audit: what happened to work items, workers and identities."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Final

from sqlalchemy import delete, exists, insert, select, text
from sqlalchemy.dialects import sqlite

from airbridge.core import json_text
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import EventRow, WorkItemRow

_ADD: Final = insert(EventRow.__table__)


def record(session: Any, event: str, actor: str, *, at: datetime | None = None, **given: Any) -> EventRow:
    """Write an event: see `values`. `at` saves reading the database's clock again. The caller flushes."""
    written = EventRow(**values(event, actor, at=at or clock.now(session), **given))
    session.add(written)
    return written


def values(
    event: str,
    actor: str,
    *,
    at: datetime,
    row: WorkItemRow | None = None,
    region: str | None = None,
    worker_id: str | None = None,
    item_id: str | None = None,
    ti_id: str | None = None,
    began_at: datetime | None = None,
    **detail: Any,
) -> dict[str, Any]:
    """Return the columns of an event. `event` is a stable name (``item.sent``); `row` gives its IDs; `detail` must be JSON.

    `began_at` is for what took a time of its own. Characters that PostgreSQL cannot store are replaced.
    """
    return {
        "at": at,
        "began_at": began_at,
        "event": event,
        "actor": json_text.storable_text(actor[:250]),
        "region": region or (row.region if row else None),
        "worker_id": worker_id or (row.worker_id if row else None),
        "item_id": row.id if row else item_id,
        "ti_id": row.ti_id if row else ti_id,
        "epoch": (row.epoch or 0) if row else None,
        "trace_id": trace_id(row.trace) if row else None,
        "detail": json_text.storable(detail),
    }


def add(session: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write events, given as `values` returns them, at once and in one statement, after those that wait for a flush."""
    if session.new:
        session.flush()
    if rows:
        session.execute(_ADD, list(rows))


# Types in PostgreSQL of the columns of edge events; of a number that may have a fraction, one that an integer column rounds.
_TYPES: Final = {
    **dict.fromkeys(("at", "began_at", "received_at"), "timestamptz"),
    **dict.fromkeys(("item_id", "ti_id", "uid"), "uuid"),
    **dict.fromkeys(("epoch", "peak_memory_bytes", "moved_bytes"), "numeric"),
    **dict.fromkeys(("skew_seconds", "cpu_seconds"), "float8"),
    "detail": "json",
}


def add_once(session: Any, rows: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    """Write events of the edge, in one statement. One whose `uid` is there already is left as it is.

    All rows have the same columns. Returns the uids of those that were not there.
    """
    if not rows:
        return frozenset()
    if session.get_bind().dialect.name != "postgresql":
        return _add_once_sqlite(session, rows)
    written = json.dumps([dict(row) for row in rows], default=datetime.isoformat)
    return frozenset(session.execute(_add_once_sql(tuple(rows[0])), {"rows": written}).scalars())


@cache
def _add_once_sql(columns: tuple[str, ...]) -> Any:
    # The driver returns no rows of an INSERT of many rows. A JSON text makes them one value, as in `workers.note`.
    names = ", ".join(columns)
    typed = ", ".join(f"{name} {_TYPES.get(name, 'text')}" for name in columns)
    return text(
        f"INSERT INTO airbridge_event ({names}) SELECT {names} "  # noqa: S608 # nosec B608 - of column names
        f"FROM json_to_recordset(CAST(:rows AS json)) AS edge ({typed}) "
        "ON CONFLICT (uid) DO NOTHING RETURNING CAST(uid AS text)"
    )


def _add_once_sqlite(session: Any, rows: Sequence[Mapping[str, Any]]) -> frozenset[str]:
    uids = {row["uid"] for row in rows}
    there = set(session.scalars(select(EventRow.uid).where(EventRow.uid.in_(uids))))
    statement = sqlite.insert(EventRow.__table__).on_conflict_do_nothing(index_elements=["uid"])
    session.execute(statement, [dict(row) for row in rows])
    return frozenset(uids - there)


def since(session: Any, event: str, at: datetime, *, region: str, limit: int = 100) -> list[EventRow]:
    """Return a region's events of one name from a time on, the newest first."""
    query = (
        select(EventRow)
        .where(EventRow.event == event, EventRow.region == region, EventRow.at >= at)
        .order_by(EventRow.at.desc())
        .limit(limit)
    )
    return list(session.scalars(query))


def trace_id(trace: dict[str, str] | None) -> str | None:
    """Return the trace id of a W3C trace context, if there is a valid one."""
    parts = (trace or {}).get("traceparent", "").split("-")
    return parts[1] if len(parts) == 4 and len(parts[1]) == 32 else None


def purge(session: Any, before: datetime) -> int:
    """Delete events older than that, but none of a work item that is kept: its usage and its timeline are made of them.

    Returns how many.
    """
    of_kept = exists().where(WorkItemRow.id == EventRow.item_id)
    result = session.execute(
        delete(EventRow).where(EventRow.at < before, ~of_kept).execution_options(synchronize_session=False)
    )
    return int(result.rowcount)
