"""Edge events: recorded once each beside the control plane's own, with the worker's times and its clock skew.

A worker reports what happened to an item; task, trace and region come from the ledger. An event of an item that the worker was
not granted under that epoch is dropped, and an impossible time is moved to the nearest possible one. Event names must have one of
the edge's prefixes, so that no worker can write an enrolment or a grant into the audit trail.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import exc as sql
from sqlalchemy import select

from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.database import unit
from airbridge.core import json_text
from airbridge.core.protocol import EdgeEvent, exception_name
from airbridge.executor.ledger import audit, events
from airbridge.executor.ledger.models import EventRow, WorkItemRow
from airbridge.executor.ledger.sharing import usage

log = structlog.get_logger()

# First word of the name of an edge event.
ALLOWED_PREFIXES: Final = frozenset(
    {"agent", "bundle", "clock", "journal", "link", "message", "queue", "report", "task", "write"}
)

REJECTED: Final = "message.rejected"
# Detail that must be the name of a class.
EXCEPTION: Final = "exception"
# Details that are numbers, summed and compared: they have columns of their own, and a largest value.
LARGEST: Final = {"cpu_seconds": 1e9, "peak_memory_bytes": 2**50, "log_bytes": 2**50, "code_bytes": 2**50}
# The event that carries each of them.
_OF_EVENT: Final = {
    "cpu_seconds": usage.TASK_ENDED,
    "peak_memory_bytes": usage.TASK_ENDED,
    "log_bytes": usage.TASK_ENDED,
    "code_bytes": usage.CODE_FETCHED,
}
MAX_DETAILS: Final = 20
MAX_TEXT: Final = 500


# How far a worker's clock may move between an event and the heartbeat that tells of it, before the time is
# corrected.
TOLERANCE: Final = timedelta(minutes=10)
# Greatest clock skew that is corrected: times of a clock farther off are brought within this of ours.
LARGEST_SKEW: Final = timedelta(days=1)
# How long ago something may have happened to the worker itself: it journals its events through a cut.
LONGEST_SILENCE: Final = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Recorded:
    """Outcome of a report: the number of events, from the first, that the worker may drop, and those that are recorded for the first time."""

    taken: int = 0
    new: tuple[EdgeEvent, ...] = ()


@dataclass(frozen=True, slots=True)
class _Item:
    """A work item that events refer to, and the epochs under which the caller was granted it."""

    row: Any
    epochs: frozenset[int]


def record(caller: Caller, reported: Sequence[EdgeEvent], *, at: datetime, skew_seconds: float) -> Recorded:
    """Record the new events of `reported`. The worker may drop all of them, or none while the database is down."""
    # What readers subtract from the times: they were bounded by the same skew.
    limit = LARGEST_SKEW.total_seconds()
    skew_seconds = max(-limit, min(skew_seconds, limit))
    try:
        with unit() as work:
            items = _items(work.session, caller, {str(each.item_id) for each in reported if each.item_id})
            rows = [
                _values(caller, each, items.get(str(each.item_id)), at, skew_seconds)
                for each in reported
                if _is_allowed(caller, each, items.get(str(each.item_id)))
            ]
            new = events.add_once(work.session, rows)
            if len(rows) < len(reported):
                _note_refused(work.session, caller, len(reported) - len(rows))
    except sql.SQLAlchemyError as error:
        log.warning("edge_events.not_written", worker=caller.name.worker, count=len(reported), exc_info=error)
        return Recorded()
    by_uid = {str(each.uid): each for each in reported}
    return Recorded(len(reported), tuple(each for uid, each in by_uid.items() if uid in new))


def _note_refused(session: Any, caller: Caller, count: int) -> None:
    log.warning("edge_events.refused", worker=caller.name.worker, count=count)
    audit.record(
        session,
        "events.refused",
        "denied",
        caller.name.uri,
        address=caller.address,
        rule="events: of items that the worker was granted",
        region=caller.name.region,
        worker_id=caller.name.worker,
        events=count,
    )


def _items(session: Any, caller: Caller, ids: set[str]) -> dict[str, _Item]:
    """Return the items, each with the epochs that the events and the row itself record as granted to the caller."""
    if not ids:
        return {}
    row = WorkItemRow
    columns = (row.id, row.ti_id, row.region, row.pool, row.trace, row.placed_at, row.epoch, row.worker_id)
    granted: defaultdict[str, set[int]] = defaultdict(set)
    grants = select(EventRow.item_id, EventRow.epoch).where(
        EventRow.item_id.in_(ids),
        EventRow.event == "claim.granted",
        EventRow.source == "control",
        EventRow.worker_id == caller.name.worker,
    )
    for item_id, epoch in session.execute(grants):
        granted[item_id].add(epoch)
    found = session.execute(select(*columns).where(row.id.in_(ids))).all()
    for each in found:
        if each.worker_id == caller.name.worker:
            granted[each.id].add(each.epoch)
    return {each.id: _Item(each, frozenset(granted[each.id])) for each in found}


def _is_allowed(caller: Caller, reported: EdgeEvent, item: _Item | None) -> bool:
    if reported.event.partition(".")[0] not in ALLOWED_PREFIXES:
        return False
    if reported.item_id is None:
        return True
    if item is None:
        return False
    if reported.event == REJECTED:
        # About a message that cannot be claimed. Any worker of the pool may have received it.
        return (caller.name.region, caller.name.pool) == (item.row.region, item.row.pool)
    return reported.epoch in item.epochs


def _values(
    caller: Caller, reported: EdgeEvent, item: _Item | None, at: datetime, skew_seconds: float
) -> dict[str, Any]:
    detail = {
        name[:64]: value[:MAX_TEXT] if isinstance(value, str) else value
        for name, value in list(reported.detail.items())[:MAX_DETAILS]
        if name not in LARGEST and (name != EXCEPTION or exception_name(value))
    }
    row = item.row if item is not None else None
    earliest = row.placed_at if row is not None else at - LONGEST_SILENCE
    happened_at = _plausible(reported.at, earliest, at, skew_seconds)
    if happened_at != reported.at:
        detail["said_at"] = reported.at.isoformat()
    return {
        "at": happened_at,
        "began_at": _plausible(reported.began_at, earliest, at, skew_seconds) if reported.began_at else None,
        "event": reported.event,
        "actor": caller.name.uri,
        "region": caller.name.region,
        "worker_id": caller.name.worker,
        "item_id": row.id if row is not None else None,
        "ti_id": row.ti_id if row is not None else None,
        "epoch": reported.epoch,
        "trace_id": events.trace_id(row.trace) if row is not None else None,
        "detail": json_text.storable(detail),
        "source": "edge",
        "uid": str(reported.uid),
        "received_at": at,
        "skew_seconds": skew_seconds,
        "cpu_seconds": _amount(reported, "cpu_seconds"),
        "peak_memory_bytes": _amount(reported, "peak_memory_bytes"),
        "moved_bytes": moved_bytes(reported),
    }


def moved_bytes(reported: EdgeEvent) -> int | None:
    """Return the size of the log or the code that an event reports; None if it reports none."""
    name = "log_bytes" if reported.event == usage.TASK_ENDED else "code_bytes"
    amount = _amount(reported, name)
    return None if amount is None else int(amount)


def _amount(reported: EdgeEvent, name: str) -> float | None:
    """Return how much of something a task used or moved; None for what is no such number."""
    value = reported.detail.get(name) if reported.event == _OF_EVENT[name] else None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LARGEST[name]:
        return None
    return value


def _plausible(said: datetime, earliest: datetime, latest: datetime, skew_seconds: float) -> datetime:
    """Return a time by the worker's clock, no earlier and no later than it can have been by ours."""
    ahead = timedelta(seconds=skew_seconds)
    return max(earliest + ahead - TOLERANCE, min(said, latest + ahead + TOLERANCE))
