"""The timeline of a task: what happened to it on both sides of the wire, in order, with every try and refusal.

The edge's times are its own clock's. `Step.at` is corrected by the skew that was measured when the event was reported,
so that the two sides can be put in one order; the worker's own reading is kept beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import or_, select

from airbridge.control_plane._airflow import Try
from airbridge.control_plane.observe import skew, wording, work
from airbridge.control_plane.observe.tasks import TaskView
from airbridge.control_plane.observe.work import ItemView
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import EventRow

Side = Literal["airflow", "control", "edge"]

MOST_EVENTS: Final = 2_000


@dataclass(frozen=True, slots=True)
class Step:
    """Something that happened to the task, or was done for it."""

    at: datetime
    """When it happened, or ended, on the control plane's clock."""
    began_at: datetime | None
    """When it began, if it took a time of its own."""
    side: Side
    event: str
    """A stable name; `wording` has a sentence for each."""
    what: str
    """The event in words."""
    actor: str
    region: str | None
    worker: str | None
    item_id: str | None
    epoch: int | None
    try_number: int | None
    edge_at: datetime | None
    """The edge's own reading of its clock, for an event of the edge."""
    skew_seconds: float | None
    """How far that clock was ahead."""
    trouble: bool
    """Whether it is a refusal, a failure or a loss."""
    detail: Mapping[str, Any]

    @property
    def seconds(self) -> float | None:
        """How long it took."""
        return None if self.began_at is None else (self.at - self.began_at).total_seconds()


@dataclass(frozen=True, slots=True)
class Timeline:
    """One task, and everything that is known of it. `steps` are in order of time."""

    task: TaskView
    items: tuple[ItemView, ...]
    steps: tuple[Step, ...]
    now: datetime
    complete: bool
    """False if there were more events than are shown."""

    @property
    def trace_id(self) -> str | None:
        """The trace of the newest item."""
        return next((item.trace_id for item in reversed(self.items) if item.trace_id), None)

    @property
    def item(self) -> ItemView | None:
        """The newest item."""
        return self.items[-1] if self.items else None

    @property
    def skews(self) -> dict[str, float]:
        """The last measured clock skew, in seconds, of each worker that appears."""
        return {s.worker: s.skew_seconds for s in self.steps if s.worker and s.skew_seconds is not None}


def of(session: Any, task: TaskView) -> Timeline:
    """Return the timeline of a task through all its tries."""
    items = work.of_task(session, task.dag_id, task.run_id, task.task_id, task.map_index)
    rows = _events(session, task, items)
    tries = {item.id: item.try_number for item in items}
    steps = [_step(row, tries) for row in rows]
    for each in task.tries:
        steps.extend(_of_airflow(each))
    steps.sort(key=lambda step: step.at)
    return Timeline(task, items, tuple(steps), clock.now(session), len(rows) < MOST_EVENTS)


def _events(session: Any, task: TaskView, items: Sequence[ItemView]) -> list[EventRow]:
    ids = [item.id for item in items]
    ti_ids = [each.ti_id for each in task.tries]
    query = (
        select(EventRow)
        .where(or_(EventRow.item_id.in_(ids), EventRow.ti_id.in_(ti_ids)))
        .order_by(EventRow.id.desc())
        .limit(MOST_EVENTS)
    )
    return list(session.scalars(query))


def _step(row: EventRow, tries: Mapping[str, int]) -> Step:
    edge = row.source == "edge"
    ahead = row.skew_seconds if edge else None
    return Step(
        at=skew.corrected(row.at, ahead),
        began_at=skew.corrected(row.began_at, ahead) if row.began_at is not None else None,
        side="edge" if edge else "control",
        event=row.event,
        what=wording.of(row.event, row.detail or {}, row.region, row.worker_id),
        actor=row.actor,
        region=row.region,
        worker=row.worker_id,
        item_id=row.item_id,
        epoch=row.epoch,
        try_number=tries.get(row.item_id) if row.item_id else None,
        edge_at=row.at if edge else None,
        skew_seconds=row.skew_seconds if edge else None,
        trouble=wording.is_trouble(row.event, row.detail or {}),
        detail=row.detail or {},
    )


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
                epoch=None,
                try_number=each.try_number,
                edge_at=None,
                skew_seconds=None,
                trouble=event == "airflow.ended"
                and each.state in {"failed", "up_for_retry", "upstream_failed"},
                detail={"state": each.state, "queue": each.queue},
            )
