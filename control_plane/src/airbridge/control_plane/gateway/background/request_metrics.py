"""Metrics of edge API responses: AirBridge's own, and the task metrics that Airflow 3.0.4 does not emit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from airbridge.control_plane import _airflow
from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.background.metrics import Metrics
from airbridge.control_plane.gateway.work import edge_events
from airbridge.core.protocol import ClaimResponse, EdgeEvent, Record, RecordResult, RefusalReason
from airbridge.executor.ledger.sharing.usage import TASK_ENDED

# Edge event of a queue message that is not a valid work item.
REJECTED: Final = "message.rejected"

_REASONS: Final = frozenset(RefusalReason)


def claimed(metrics: Metrics, caller: Caller, answer: ClaimResponse) -> None:
    """Count grants and refusals, and the tasks that the grants started."""
    if answer.grants:
        metrics.granted(caller.name.region, caller.name.pool, len(answer.grants))
    for reason, count in Counter(str(each.reason) for each in answer.refusals).items():
        metrics.refused(caller.name.region, reason, count)
    for grant in answer.grants:
        _airflow.task_started(str(grant.ti.get("dag_id")), str(grant.ti.get("task_id")))


def events_received(metrics: Metrics, caller: Caller, events: Sequence[EdgeEvent]) -> None:
    """Count events, and the messages that workers rejected themselves: forged ones never reach a claim."""
    if events:
        metrics.events_received(caller.name.region, len(events))
    for each in events:
        if moved := edge_events.moved_bytes(each):
            kind = "log" if each.event == TASK_ENDED else "code"
            metrics.moved(caller.name.region, caller.name.pool, kind, moved)
    reasons = (str(each.detail.get("reason")) for each in events if each.event == REJECTED)
    for reason, count in Counter(reason for reason in reasons if reason in _REASONS).items():
        metrics.refused(caller.name.region, reason, count)


def exchanged(
    metrics: Metrics,
    caller: Caller,
    records: Sequence[Record],
    results: Sequence[RecordResult],
    now: datetime,
) -> None:
    """Count refused reports, and the delay of applied ones since they were journalled."""
    refused = Counter(str(each.refused) for each in results if each.refused is not None)
    for reason, count in refused.items():
        metrics.refused(caller.name.region, reason, count)
    for record, result in zip(records, results, strict=True):
        if result.refused is None and result.status < 400 and record.method not in {"GET", "HEAD"}:
            metrics.reported(caller.name.region, (now - record.recorded_at).total_seconds())
