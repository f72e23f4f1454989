"""Audited events: one call for an event's rows in the timeline and in the audit trail, and its log line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import structlog

from airbridge.executor.ledger import audit, events
from airbridge.executor.ledger.models import WorkItemRow

log = structlog.get_logger()


def record(
    session: Any,
    event: str,
    verdict: audit.Verdict,
    actor: str,
    *,
    rule: str,
    address: str | None = None,
    row: WorkItemRow | None = None,
    at: datetime | None = None,
    region: str | None = None,
    worker_id: str | None = None,
    item_id: str | None = None,
    ti_id: str | None = None,
    log_level: int | None = None,
    **detail: Any,
) -> None:
    """Record an event in the timeline and the audit trail; log it too with a `log_level`.

    `row` gives a work item's ids; `item_id` and `ti_id` are for events without a row. `address` and `rule` are kept in
    the audit trail alone. Texts of `detail` are cut at `audit.LONGEST` characters; values of None are left out.
    """
    kept = _kept(detail)
    where: dict[str, Any] = {"row": row, "at": at, "region": region, "worker_id": worker_id}
    events.record(session, event, actor, **where, item_id=item_id, ti_id=ti_id, **kept)
    audit.record(session, event, verdict, actor, address=address, rule=rule, **where, **kept)
    if log_level is not None:
        ids = {
            "worker": worker_id,
            "item_id": row.id if row else item_id,
            "ti_id": row.ti_id if row else ti_id,
        }
        log.log(log_level, event, **{**kept, **ids})


@dataclass(frozen=True, slots=True)
class Prepared:
    """Columns of an event in the timeline and in the audit trail."""

    event: dict[str, Any]
    audit: dict[str, Any]


def prepare(
    event: str,
    verdict: audit.Verdict,
    actor: str,
    *,
    rule: str,
    address: str | None,
    row: WorkItemRow,
    at: datetime,
    **detail: Any,
) -> Prepared:
    """Return the columns of an event of a work item, to be written together with others. The arguments are those of `record`."""
    kept = _kept(detail)
    return Prepared(
        events.values(event, actor, row=row, at=at, **kept),
        audit.values(event, verdict, actor, address=address, rule=rule, row=row, at=at, **kept),
    )


def write(session: Any, prepared: Sequence[Prepared]) -> None:
    """Write events in two statements, whatever their number."""
    events.add(session, [each.event for each in prepared])
    audit.add(session, [each.audit for each in prepared])


def _kept(detail: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _cut(value) for name, value in detail.items() if value is not None}


def _cut(value: Any) -> Any:
    return value[: audit.LONGEST] if isinstance(value, str) else value
