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
from airbridge.core.metrics import OPERATIONS
from airbridge.core.protocol import ClaimResponse, EdgeEvent, Grant, Record, RecordResult, RefusalReason
from airbridge.executor.ledger.sharing.usage import TASK_ENDED

# Edge event of a queue message that is not a valid work item.
REJECTED: Final = "message.rejected"

CLAIM, REPORT = OPERATIONS

_REASONS: Final = frozenset(RefusalReason)


def granted(metrics: Metrics, caller: Caller, grants: Sequence[Grant]) -> None:
    """Count new grants, and the tasks that they started."""
    if grants:
        metrics.granted(caller.name.region, caller.name.pool, len(grants))
    for grant in grants:
        _airflow.task_started(str(grant.ti.get("dag_id")), str(grant.ti.get("task_id")))


def claims_refused(metrics: Metrics, caller: Caller, answer: ClaimResponse) -> None:
    """Count the refusals of a claim."""
    for reason, count in Counter(str(each.reason) for each in answer.refusals).items():
        metrics.refused(caller.name.region, CLAIM, reason, count)


def events_received(metrics: Metrics, caller: Caller, events: Sequence[EdgeEvent]) -> None:
    """Count events that are new, and the messages that workers rejected themselves: forged ones never reach a claim."""
    if events:
        metrics.events_received(caller.name.region, len(events))
    for each in events:
        if moved := edge_events.moved_bytes(each):
            kind = "log" if each.event == TASK_ENDED else "code"
            metrics.moved(caller.name.region, caller.name.pool, kind, moved)
    reasons = (str(each.detail.get("reason")) for each in events if each.event == REJECTED)
    for reason, count in Counter(reason for reason in reasons if reason in _REASONS).items():
        metrics.refused(caller.name.region, CLAIM, reason, count)


def reported(metrics: Metrics, caller: Caller, records: Sequence[Record], now: datetime) -> None:
    """Count the delay of writes that were applied, since they were journalled."""
    for record in records:
        metrics.reported(caller.name.region, (now - record.recorded_at).total_seconds())


def reports_refused(metrics: Metrics, caller: Caller, results: Sequence[RecordResult]) -> None:
    """Count refused reports."""
    refused = Counter(str(each.refused) for each in results if each.refused is not None)
    for reason, count in refused.items():
        metrics.refused(caller.name.region, REPORT, reason, count)
