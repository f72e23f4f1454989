"""Events of the edge: written beside the control plane's own, once each, with the worker's own times and its clock's skew.

A worker says what happened to an item; task, trace and region come from the ledger, and what it says of an item of
another region is not written. The names it may use begin with words of the edge, so that no worker can write an
enrolment or a grant into the audit trail.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import structlog
from sqlalchemy import exc as sql
from sqlalchemy import select

from airbridge.control_plane.gateway.authentication import Caller
from airbridge.control_plane.gateway.database import unit
from airbridge.executor.ledger import events
from airbridge.executor.ledger.models import WorkItemRow
from airbridge.executor.protocol import EdgeEvent

log = structlog.get_logger()

EDGE_WORDS: Final = frozenset(
    {"agent", "bundle", "clock", "journal", "link", "message", "queue", "report", "task", "write"}
)
"""What the name of an edge event may begin with."""

MOST_DETAILS: Final = 20
LONGEST_TEXT: Final = 500


def take(caller: Caller, said: Sequence[EdgeEvent], *, at: datetime, skew_seconds: float) -> int:
    """Write what is new of `said` and return how many need not be told again: all, or none if the database is away."""
    try:
        with unit() as work:
            items = _items(work.session, {str(each.item_id) for each in said if each.item_id})
            rows = [
                _values(caller, each, items.get(str(each.item_id)), at, skew_seconds)
                for each in said
                if _may_say(caller, each, items.get(str(each.item_id)))
            ]
            events.add_once(work.session, rows)
    except sql.SQLAlchemyError as error:
        log.warning("edge_events.not_written", worker=caller.name.worker, count=len(said), exc_info=error)
        return 0
    if len(rows) < len(said):
        log.warning("edge_events.refused", worker=caller.name.worker, count=len(said) - len(rows))
    return len(said)


def _items(session: Any, ids: set[str]) -> dict[str, Any]:
    if not ids:
        return {}
    row = WorkItemRow
    query = select(row.id, row.ti_id, row.region, row.pool, row.placement, row.trace).where(row.id.in_(ids))
    return {found.id: found for found in session.execute(query)}


def _may_say(caller: Caller, said: EdgeEvent, item: Any) -> bool:
    if said.event.partition(".")[0] not in EDGE_WORDS:
        return False
    if said.item_id is None:
        return True
    if item is None:
        return False
    return caller.name.region in {item.region, *item.placement.get("tried", [])}


def _values(caller: Caller, said: EdgeEvent, item: Any, at: datetime, skew_seconds: float) -> dict[str, Any]:
    detail = {
        name[:64]: value[:LONGEST_TEXT] if isinstance(value, str) else value
        for name, value in list(said.detail.items())[:MOST_DETAILS]
    }
    return {
        "at": said.at,
        "began_at": said.began_at,
        "event": said.event,
        "actor": caller.name.uri,
        "region": caller.name.region,
        "worker_id": caller.name.worker,
        "item_id": item.id if item is not None else None,
        "ti_id": item.ti_id if item is not None else None,
        "epoch": said.epoch,
        "trace_id": events.trace_id(item.trace) if item is not None else None,
        "detail": detail,
        "source": "edge",
        "uid": str(said.uid),
        "received_at": at,
        "skew_seconds": skew_seconds,
    }
