"""The exporter: a loop of the gateway that turns new events into spans and sends them, each at least once, in order.

How far it has come is a row of the ledger, locked while a batch is on its way: of several gateways one exports, and the
next goes on where it stopped. While the collector is away the row stays where it is.
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
from airbridge.control_plane.tracing.spans import Happened, Span, Task, of_event
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
    """Where spans go."""

    def send(self, spans: Sequence[Span]) -> None:
        """Send spans. Raises `Unavailable` if they were not taken."""

    def close(self) -> None:
        """Let go."""


class Horizon:
    """Up to which event nothing can appear any more: ids are given out in order, and committed in any.

    An id that was given out before a moment is of a transaction that has its number by then, or takes it within
    an instant. So once every transaction of a number before a later moment has ended, all ids up to the first
    moment's are there, or will never be.
    """

    def __init__(self) -> None:
        self._settled = 0
        self._newest: int | None = None
        self._numbered: int | None = None

    def settled(self, session: Any) -> int:
        """Look again, and return the id up to which all is there. It takes three looks to move on."""
        newest = int(session.execute(select(func.coalesce(func.max(EventRow.id), 0))).scalar_one())
        if session.get_bind().dialect.name != "postgresql":
            return newest  # one writer at a time
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
    """See the module."""

    def __init__(self, sink: Sink, every_seconds: float = EVERY_SECONDS) -> None:
        self._sink = sink
        self._every = every_seconds
        self._horizon = Horizon()

    async def run(self) -> None:
        """Export until cancelled."""
        log.info("traces.started")
        try:
            while True:
                await asyncio.sleep(await asyncio.to_thread(self._turn))
        finally:
            await asyncio.to_thread(self._sink.close)
            log.info("traces.stopped")

    def _turn(self) -> float:
        try:
            return 0.0 if self.export() == BATCH else self._every
        except (Unavailable, sql.SQLAlchemyError) as error:
            log.warning("traces.not_exported", detail=str(error), retry_seconds=RETRY_SECONDS)
            return RETRY_SECONDS

    def export(self) -> int:
        """Send what is new and return how many events that were. Raises `Unavailable`."""
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
                for span in of_event(tasks[row.item_id], _happened(row))
            ]
            if spans:
                self._sink.send(spans)
            state.event_id = rows[-1].id
            state.exported_at = clock.now(work.session)
            return len(rows)


def _locked(session: Any) -> ExportRow | None:
    """Return the row that says how far we are; None while another gateway has it, or when it is new."""
    query = select(ExportRow).where(ExportRow.name == NAME)
    if session.get_bind().dialect.name == "postgresql":
        query = query.with_for_update(skip_locked=True)
    found: ExportRow | None = session.scalars(query).one_or_none()
    if found is None and session.get(ExportRow, NAME) is None:
        newest = session.execute(select(func.coalesce(func.max(EventRow.id), 0))).scalar_one()
        session.add(ExportRow(name=NAME, event_id=newest, exported_at=clock.now(session)))
    return found


def _new_events(session: Any, after: int, upto: int) -> list[EventRow]:
    query = select(EventRow).where(EventRow.id > after, EventRow.id <= upto)
    return list(session.scalars(query.order_by(EventRow.id).limit(BATCH)))


def _tasks(session: Any, ids: set[str]) -> dict[str, Task]:
    row = WorkItemRow
    query = select(
        *(row.id, row.ti_id, row.dag_id, row.run_id, row.task_id, row.map_index, row.try_number),
        *(row.region, row.pool, row.trace, row.placed_at),
    ).where(row.id.in_(ids))
    return {found.id: Task(*found) for found in session.execute(query)} if ids else {}


def _happened(row: EventRow) -> Happened:
    return Happened(
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
