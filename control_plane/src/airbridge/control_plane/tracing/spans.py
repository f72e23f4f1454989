"""Spans from events: pure functions. Span ids are derived from the event, so that exporting twice yields one span.

The spans of a work item have one parent: ``task``, from its placement to its end. It is derived from the ledger's row, so
that no span lacks its parent, even if the worker is lost before it reports.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from airbridge.control_plane.read_model.history import clock_skew, event_text
from airbridge.executor.placement.workloads import root_span_id

# Names of the steps of a task's path; other events are spans under their own names.
NAMES: Final[Mapping[str, str]] = {
    "item.placed": "place",
    "item.sent": "send",
    "message.received": "receive",
    "message.claimed": "claim",
    "claim.granted": "grant",
    "bundle.fetched": "fetch",
    "task.forked": "fork",
    "task.ended": "run",
    "report.delivered": "report",
    "item.settled": "commit",
}

ROOT: Final = "task"
SCHEDULER, GATEWAY, WORKER = "airbridge-scheduler", "airbridge-gateway", "airbridge-worker"
_SCHEDULER_ACTORS: Final = frozenset({"executor", "outbox", "reconciler"})


@dataclass(frozen=True, slots=True)
class Task:
    """Work item of the spans."""

    item_id: str
    ti_id: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    try_number: int
    region: str
    pool: str
    trace: Mapping[str, str]
    placed_at: datetime


@dataclass(frozen=True, slots=True)
class WorkEvent:
    """Recorded event of a work item."""

    id: int
    uid: str | None
    event: str
    at: datetime
    began_at: datetime | None
    actor: str
    source: str
    worker_id: str | None
    epoch: int | None
    skew_seconds: float | None
    detail: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """Span to export, with OpenTelemetry's integer ids."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    began_at: datetime
    ended_at: datetime
    service: str
    host: str | None
    #: Error description; None without an error.
    failed: str | None
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def of_event(task: Task, work_event: WorkEvent) -> Iterator[Span]:
    """Yield the span of an event, and with the last event the parent span of all."""
    context = _context(task.trace)
    if context is None:
        return
    trace_id, above = context
    root_id = int(root_span_id(task.item_id), 16)
    edge = work_event.source == "edge"
    ended_at = clock_skew.corrected(work_event.at, work_event.skew_seconds if edge else None)
    began_at = work_event.began_at or work_event.at
    attributes = {**_attributes(task, work_event), "airbridge.event": work_event.event}
    trouble = event_text.is_trouble(work_event.event, work_event.detail)
    yield Span(
        name=NAMES.get(work_event.event, work_event.event),
        trace_id=trace_id,
        span_id=_id(task.item_id, work_event.uid or str(work_event.id)),
        parent_id=root_id,
        began_at=min(clock_skew.corrected(began_at, work_event.skew_seconds if edge else None), ended_at),
        ended_at=ended_at,
        service=_service(work_event),
        host=work_event.worker_id if edge else None,
        failed=event_text.of(work_event.event, work_event.detail, task.region, work_event.worker_id)
        if trouble
        else None,
        attributes=attributes,
    )
    if work_event.event == "item.settled":
        yield Span(
            name=ROOT,
            trace_id=trace_id,
            span_id=root_id,
            parent_id=above if above != root_id else None,
            began_at=task.placed_at,
            ended_at=work_event.at,
            service=SCHEDULER,
            host=None,
            failed=str(work_event.detail.get("reason") or "failed") if trouble else None,
            attributes=_attributes(task, work_event),
        )


def _id(item_id: str, name: str) -> int:
    return int(hashlib.sha256(f"{item_id}\n{name}".encode()).hexdigest()[:16], 16)


def _context(trace: Mapping[str, str]) -> tuple[int, int] | None:
    """Parse a W3C ``traceparent``; None if there is no valid one."""
    parts = trace.get("traceparent", "").split("-")
    if len(parts) != 4 or (len(parts[1]), len(parts[2])) != (32, 16):
        return None
    try:
        trace_id, parent = int(parts[1], 16), int(parts[2], 16)
    except ValueError:
        return None
    return (trace_id, parent) if trace_id and parent else None


def _service(work_event: WorkEvent) -> str:
    if work_event.source == "edge":
        return WORKER
    return SCHEDULER if work_event.actor in _SCHEDULER_ACTORS else GATEWAY


def _attributes(task: Task, work_event: WorkEvent) -> dict[str, str | int | float | bool]:
    attributes: dict[str, str | int | float | bool] = {
        "airflow.dag_id": task.dag_id,
        "airflow.dag_run.run_id": task.run_id,
        "airflow.task_id": task.task_id,
        "airflow.task_instance.map_index": task.map_index,
        "airflow.task_instance.try_number": task.try_number,
        "airbridge.ti_id": task.ti_id,
        "airbridge.item_id": task.item_id,
        "airbridge.region": task.region,
        "airbridge.pool": task.pool,
    }
    if work_event.epoch is not None:
        attributes["airbridge.epoch"] = work_event.epoch
    if work_event.worker_id is not None:
        attributes["airbridge.worker"] = work_event.worker_id
    if work_event.skew_seconds is not None:
        attributes["airbridge.clock_skew_seconds"] = work_event.skew_seconds
    for name, value in work_event.detail.items():
        if isinstance(value, str | int | float | bool):
            attributes[f"airbridge.{name}"] = value
    return attributes
