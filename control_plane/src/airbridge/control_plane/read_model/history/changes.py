"""Pages of events of items, workers and identities, newest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import select

from airbridge.control_plane.read_model import paging
from airbridge.control_plane.read_model.paging import FIRST, Page, PageRequest
from airbridge.executor.ledger.models import EventRow


@dataclass(frozen=True, slots=True)
class EventView:
    """Recorded event. Edge events have the worker's time and its clock skew."""

    id: int
    at: datetime
    began_at: datetime | None
    event: str
    actor: str
    source: str
    region: str | None
    worker_id: str | None
    item_id: str | None
    ti_id: str | None
    epoch: int | None
    trace_id: str | None
    received_at: datetime | None
    skew_seconds: float | None
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Filter of events; fields of None match all. `event` may end in ``*``: ``worker.*``."""

    event: str | None = None
    actor: str | None = None
    region: str | None = None
    worker: str | None = None
    source: str | None = None
    #: Only events without a work item: enrolments, tokens, revocations, drains, refused requests.
    identities: bool = False


def listing(session: Any, which: EventFilter = EventFilter(), page: PageRequest = FIRST) -> Page[EventView]:
    """Return a page of events, newest first."""
    return paging.fetch(session, _chosen(which).order_by(EventRow.id.desc()), page, lambda row: view(row[0]))


def view(row: EventRow) -> EventView:
    """Return a row as a value."""
    return EventView(
        id=row.id,
        at=row.at,
        began_at=row.began_at,
        event=row.event,
        actor=row.actor,
        source=row.source,
        region=row.region,
        worker_id=row.worker_id,
        item_id=row.item_id,
        ti_id=row.ti_id,
        epoch=row.epoch,
        trace_id=row.trace_id,
        received_at=row.received_at,
        skew_seconds=row.skew_seconds,
        detail=row.detail or {},
    )


def _chosen(which: EventFilter) -> Any:
    row = EventRow
    query = select(row)
    for column, value in (
        (row.actor, which.actor),
        (row.region, which.region),
        (row.worker_id, which.worker),
        (row.source, which.source),
    ):
        if value is not None:
            query = query.where(column == value)
    if which.event is not None:
        name = which.event
        wanted = row.event.startswith(name[:-1], autoescape=True) if name.endswith("*") else row.event == name
        query = query.where(wanted)
    if which.identities:
        query = query.where(row.item_id.is_(None))
    return query
