"""Spans from events: pure functions. Every span id is derived from what it is of, so a span exported twice is one span.

The spans of one work item hang on one: ``task``, from its placement to its end. It is made from the row, which is always
there; so no span is ever without its parent, whatever a worker that is gone has not told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from airbridge.control_plane.observe import skew, wording
from airbridge.executor.intake import root_span_id

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
"""The steps of the path of a task; any other event is a span under its own name."""

ROOT: Final = "task"
SCHEDULER, GATEWAY, WORKER = "airbridge-scheduler", "airbridge-gateway", "airbridge-worker"
_OF_THE_SCHEDULER: Final = frozenset({"executor", "outbox", "keeper"})


@dataclass(frozen=True, slots=True)
class Task:
    """The work item that spans are of."""

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
class Happened:
    """An event of a work item, as it was written."""

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
    """What is exported. Ids are as OpenTelemetry counts them."""

    name: str
    trace_id: int
    span_id: int
    parent_id: int | None
    began_at: datetime
    ended_at: datetime
    service: str
    host: str | None
    failed: str | None
    """What went wrong, if something did."""
    attributes: Mapping[str, str | int | float | bool] = field(default_factory=dict)


def of_event(task: Task, happened: Happened) -> Iterator[Span]:
    """Yield the span of an event, and with the last one the span that they all hang on."""
    context = _context(task.trace)
    if context is None:
        return
    trace_id, above = context
    root_id = int(root_span_id(task.item_id), 16)
    edge = happened.source == "edge"
    ended_at = skew.corrected(happened.at, happened.skew_seconds if edge else None)
    began_at = happened.began_at or happened.at
    attributes = {**_attributes(task, happened), "airbridge.event": happened.event}
    trouble = wording.is_trouble(happened.event, happened.detail)
    yield Span(
        name=NAMES.get(happened.event, happened.event),
        trace_id=trace_id,
        span_id=_id(task.item_id, happened.uid or str(happened.id)),
        parent_id=root_id,
        began_at=min(skew.corrected(began_at, happened.skew_seconds if edge else None), ended_at),
        ended_at=ended_at,
        service=_service(happened),
        host=happened.worker_id if edge else None,
        failed=wording.of(happened.event, happened.detail, task.region, happened.worker_id)
        if trouble
        else None,
        attributes=attributes,
    )
    if happened.event == "item.settled":
        yield Span(
            name=ROOT,
            trace_id=trace_id,
            span_id=root_id,
            parent_id=above if above != root_id else None,
            began_at=task.placed_at,
            ended_at=happened.at,
            service=SCHEDULER,
            host=None,
            failed=str(happened.detail.get("reason") or "failed") if trouble else None,
            attributes=_attributes(task, happened),
        )


def _id(item_id: str, name: str) -> int:
    return int(hashlib.sha256(f"{item_id}\n{name}".encode()).hexdigest()[:16], 16)


def _context(trace: Mapping[str, str]) -> tuple[int, int] | None:
    """Read a W3C ``traceparent``; None if there is no valid one."""
    parts = trace.get("traceparent", "").split("-")
    if len(parts) != 4 or (len(parts[1]), len(parts[2])) != (32, 16):
        return None
    try:
        trace_id, parent = int(parts[1], 16), int(parts[2], 16)
    except ValueError:
        return None
    return (trace_id, parent) if trace_id and parent else None


def _service(happened: Happened) -> str:
    if happened.source == "edge":
        return WORKER
    return SCHEDULER if happened.actor in _OF_THE_SCHEDULER else GATEWAY


def _attributes(task: Task, happened: Happened) -> dict[str, str | int | float | bool]:
    said: dict[str, str | int | float | bool] = {
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
    if happened.epoch is not None:
        said["airbridge.epoch"] = happened.epoch
    if happened.worker_id is not None:
        said["airbridge.worker"] = happened.worker_id
    if happened.skew_seconds is not None:
        said["airbridge.clock_skew_seconds"] = happened.skew_seconds
    for name, value in happened.detail.items():
        if isinstance(value, str | int | float | bool):
            said[f"airbridge.{name}"] = value
    return said
