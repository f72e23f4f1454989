"""Trace exporter: a loop of the gateway that sends new events as spans, each at least once, in order.

Its position is a row of the ledger, locked while a batch is being sent: one of several gateways exports, and the next one
continues where it stopped. While the collector is down the position does not advance.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final, Protocol

import structlog
from sqlalchemy import exc as sql
from sqlalchemy import func, select, text

from airbridge.control_plane.exceptions import Unavailable
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.tracing.spans import Span, Task, WorkEvent, of_event
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import EventRow, ExportRow, WorkItemRow

log = structlog.get_logger()

NAME: Final = "traces"
EVERY_SECONDS: Final = 1.0
RETRY_SECONDS: Final = 10.0
BATCH: Final = 500

_SNAPSHOT: Final = text(
    "SELECT pg_snapshot_xmin(s)::text::bigint, pg_snapshot_xmax(s)::text::bigint FROM pg_current_snapshot() s"
)


class Sink(Protocol):
    """Destination of spans."""

    def send(self, spans: Sequence[Span]) -> None:
        """Send spans. Raises `Unavailable` if they were not accepted."""

    def close(self) -> None:
        """Close the connection."""


class Horizon:
    """Highest event id below which no event can appear any more: ids are assigned in order, but committed in any order.

    A transaction that has been assigned an event id has a transaction number by then, or takes one within an instant. Once
    every transaction with a number from before a later moment has ended, all event ids up to the first moment's are
    committed or will never be.
    """

    def __init__(self) -> None:
        self._settled = 0
        self._newest: int | None = None
        self._numbered: int | None = None

    def settled(self, session: Any) -> int:
        """Return the id up to which all events are committed. It takes three calls to advance."""
        newest = int(session.execute(select(func.coalesce(func.max(EventRow.id), 0))).scalar_one())
        if session.get_bind().dialect.name != "postgresql":
            return newest  # SQLite has one writer at a time: ids are committed in order
        oldest_open, next_number = session.execute(_SNAPSHOT).one()
        if self._newest is not None and self._numbered is not None and oldest_open >= self._numbered:
            self._settled = self._newest
            self._newest = self._numbered = None
        if self._newest is None:
            self._newest = newest
        elif self._numbered is None:
            self._numbered = next_number
        return self._settled


class TraceExporter:
    """Exporter of new events to a `Sink`; see the module."""

    def __init__(self, sink: Sink, every_seconds: float = EVERY_SECONDS) -> None:
        self._sink = sink
        self._every = every_seconds
        self._horizon = Horizon()

    async def run(self) -> None:
        """Export until cancelled."""
        log.info("traces.started")
        try:
            while True:
                await asyncio.sleep(await asyncio.to_thread(self._export_step))
        finally:
            await asyncio.to_thread(self._sink.close)
            log.info("traces.stopped")

    def _export_step(self) -> float:
        try:
            return 0.0 if self.export() == BATCH else self._every
        except (Unavailable, sql.SQLAlchemyError) as error:
            log.warning("traces.not_exported", detail=str(error), retry_seconds=RETRY_SECONDS)
            return RETRY_SECONDS
        except Exception:
            log.exception("traces.not_exported", retry_seconds=RETRY_SECONDS)
            return RETRY_SECONDS

    def export(self) -> int:
        """Send one batch of new events and return their number. Raises `Unavailable`."""
        with unit() as work:
            state = _locked(work.session)
            if state is None:
                return 0
            rows = _new_events(work.session, state.event_id, self._horizon.settled(work.session))
            if not rows:
                return 0
            tasks = _tasks(work.session, {row.item_id for row in rows if row.item_id})
            spans = [
                span
                for row in rows
                if row.item_id in tasks
                for span in of_event(tasks[row.item_id], _work_event(row))
            ]
            if spans:
                self._sink.send(spans)
            state.event_id = rows[-1].id
            state.exported_at = clock.now(work.session)
            return len(rows)


def _locked(session: Any) -> ExportRow | None:
    """Lock and return the exporter's position; None while another gateway has it, or if it was just created."""
    query = select(ExportRow).where(ExportRow.name == NAME)
    if session.get_bind().dialect.name == "postgresql":
        query = query.with_for_update(skip_locked=True)
    found: ExportRow | None = session.scalars(query).one_or_none()
    if found is None and session.get(ExportRow, NAME) is None:
        newest = session.execute(select(func.coalesce(func.max(EventRow.id), 0))).scalar_one()
        session.add(ExportRow(name=NAME, event_id=newest, exported_at=clock.now(session)))
    return found


def _new_events(session: Any, after: int, up_to: int) -> list[EventRow]:
    query = select(EventRow).where(EventRow.id > after, EventRow.id <= up_to)
    return list(session.scalars(query.order_by(EventRow.id).limit(BATCH)))


def _tasks(session: Any, ids: set[str]) -> dict[str, Task]:
    row = WorkItemRow
    query = select(
        *(row.id, row.ti_id, row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number),
        *(row.region, row.pool, row.trace, row.placed_at),
    ).where(row.id.in_(ids))
    return {found.id: Task(*found) for found in session.execute(query)} if ids else {}


def _work_event(row: EventRow) -> WorkEvent:
    return WorkEvent(
        id=row.id,
        uid=row.uid,
        event=row.event,
        at=row.at,
        began_at=row.began_at,
        actor=row.actor,
        source=row.source,
        worker_id=row.worker_id,
        epoch=row.epoch,
        skew_seconds=row.skew_seconds,
        detail=row.detail or {},
    )
