"""Timeline of a task: its events in the control plane and at the edge, in order, with every try and refusal.

Edge events carry the worker's clock. `Step.at` is corrected by the skew measured when the event was reported, so that
both sides have one order; `Step.edge_at` keeps the worker's time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import or_, select

from airbridge.control_plane._airflow import Try
from airbridge.control_plane.read_model import work
from airbridge.control_plane.read_model.history import clock_skew, event_text
from airbridge.control_plane.read_model.tasks import TaskView
from airbridge.control_plane.read_model.work import ItemView
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import EventRow
from airbridge.executor.ledger.sharing.usage import XCOM_READ, XCOM_WRITTEN

Side = Literal["airflow", "control", "edge"]

# Events that are read of a task: of those that its calls make, of which one task may have any number, and of the others.
MAX_EVENTS: Final = 2_000
MAX_CALLS: Final = 2_000
_OF_CALLS: Final = (XCOM_READ, XCOM_WRITTEN, "call.denied", "write.refused", "exchange.refused")
_END: Final = "item.settled"


@dataclass(frozen=True, slots=True)
class Step:
    """Step in the timeline of a task."""

    #: Time it happened or ended, on the control plane's clock.
    at: datetime
    #: Time it began, if it has a duration.
    began_at: datetime | None
    side: Side
    #: Stable name; `event_text` has its sentence.
    event: str
    #: Sentence of the event.
    what: str
    actor: str
    region: str | None
    worker: str | None
    item_id: str | None
    #: True if it is of the task's trigger.
    of_trigger: bool
    epoch: int | None
    try_number: int | None
    #: Time by the worker's clock, for an edge event.
    edge_at: datetime | None
    #: Seconds that the worker's clock was ahead.
    skew_seconds: float | None
    #: True if it is a refusal, a failure or a loss.
    trouble: bool
    detail: Mapping[str, Any]

    @property
    def seconds(self) -> float | None:
        """Duration in seconds; None for a moment."""
        return None if self.began_at is None else (self.at - self.began_at).total_seconds()


@dataclass(frozen=True, slots=True)
class Timeline:
    """Task with its items and steps. `steps` are in order of time."""

    task: TaskView
    items: tuple[ItemView, ...]
    steps: tuple[Step, ...]
    now: datetime
    #: False if there were more events than are shown.
    complete: bool

    @property
    def trace_id(self) -> str | None:
        """Trace id of the newest item."""
        return next((item.trace_id for item in reversed(self.items) if item.trace_id), None)

    @property
    def item(self) -> ItemView | None:
        """Newest item."""
        return self.items[-1] if self.items else None

    @property
    def skews(self) -> dict[str, float]:
        """Last measured clock skew of each worker, in seconds."""
        return {s.worker: s.skew_seconds for s in self.steps if s.worker and s.skew_seconds is not None}


def of(session: Any, task: TaskView) -> Timeline:
    """Return the timeline of a task through all its tries."""
    items = work.of_task(session, task.dag_id, task.run_id, task.task_id, task.map_index)
    rows, complete = _events(session, task, items)
    by_id = {item.id: item for item in items}
    steps = [_step(row, by_id) for row in rows]
    for each in task.tries:
        steps.extend(_of_airflow(each))
    steps.sort(key=lambda step: step.at)
    return Timeline(task, items, tuple(_without_repeats(steps)), clock.now(session), complete)


def _without_repeats(steps: Sequence[Step]) -> Iterator[Step]:
    """Yield the steps; the end of an item does not repeat the reason that another of its steps gives."""
    given = {
        (step.item_id, step.detail.get(name))
        for step in steps
        for name in ("why", "reason")
        if step.event != _END
    }
    for step in steps:
        reason = step.detail.get("reason")
        if step.event == _END and reason and (step.item_id, reason) in given:
            detail = {key: value for key, value in step.detail.items() if key != "reason"}
            yield replace(step, what=event_text.of(_END, detail))
        else:
            yield step


def _events(session: Any, task: TaskView, items: Sequence[ItemView]) -> tuple[list[EventRow], bool]:
    """Return the events of a task, and whether these are all. Those of its calls push none of the others out."""
    ids = [item.id for item in items]
    ti_ids = [each.ti_id for each in task.tries]
    query = (
        select(EventRow)
        .where(or_(EventRow.item_id.in_(ids), EventRow.ti_id.in_(ti_ids)))
        .order_by(EventRow.id.desc())
    )
    calls = session.scalars(query.where(EventRow.event.in_(_OF_CALLS)).limit(MAX_CALLS)).all()
    others = session.scalars(query.where(EventRow.event.not_in(_OF_CALLS)).limit(MAX_EVENTS)).all()
    rows = sorted((*calls, *others), key=lambda row: row.id, reverse=True)
    return rows, len(calls) < MAX_CALLS and len(others) < MAX_EVENTS


def _step(row: EventRow, items: Mapping[str, ItemView]) -> Step:
    edge = row.source == "edge"
    item = items.get(row.item_id) if row.item_id else None
    detail = _detail(row)
    ahead = row.skew_seconds if edge else None
    return Step(
        at=clock_skew.corrected(row.at, ahead),
        began_at=clock_skew.corrected(row.began_at, ahead) if row.began_at is not None else None,
        side="edge" if edge else "control",
        event=row.event,
        what=event_text.of(row.event, detail, row.region, row.worker_id),
        actor=row.actor,
        region=row.region,
        worker=row.worker_id,
        item_id=row.item_id,
        of_trigger=item is not None and item.is_trigger,
        epoch=row.epoch,
        try_number=item.try_number if item is not None else None,
        edge_at=row.at if edge else None,
        skew_seconds=row.skew_seconds if edge else None,
        trouble=event_text.is_trouble(row.event, detail),
        detail=detail,
    )


def _detail(row: EventRow) -> dict[str, Any]:
    """Return an event's detail, with what stands in columns of its own."""
    used = {
        "cpu_seconds": row.cpu_seconds,
        "peak_memory_bytes": row.peak_memory_bytes,
        "moved_bytes": row.moved_bytes,
    }
    return {**(row.detail or {}), **{name: value for name, value in used.items() if value is not None}}


def _of_airflow(each: Try) -> Iterator[Step]:
    known = (
        (each.scheduled_at, "airflow.scheduled", f"Airflow scheduled try {each.try_number}"),
        (each.queued_at, "airflow.queued", f"Airflow queued it for queue {each.queue!r}"),
        (each.ended_at, "airflow.ended", f"Airflow has it as {each.state}"),
    )
    for at, event, what in known:
        if at is not None:
            yield Step(
                at=at,
                began_at=each.started_at if event == "airflow.ended" else None,
                side="airflow",
                event=event,
                what=what,
                actor="airflow",
                region=None,
                worker=None,
                item_id=None,
                of_trigger=False,
                epoch=None,
                try_number=each.try_number,
                edge_at=None,
                skew_seconds=None,
                trouble=event == "airflow.ended"
                and each.state in {"failed", "up_for_retry", "upstream_failed"},
                detail={"state": each.state, "queue": each.queue},
            )
