"""Refused writes of an attempt, as the timeline has them: which and why."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import select

from airbridge.core import task_calls
from airbridge.executor.ledger.models import EventRow, WorkItemRow

EVENTS: Final = ("write.refused", "call.denied")
_MOST: Final = 5
_LONGEST: Final = 500


def describe(session: Any, row: WorkItemRow, seqs: Collection[int]) -> str:
    """Return the refused writes of these seqs with their reasons: ``XCom 'total' (a value of ...)``."""
    query = (
        select(EventRow.detail)
        .where(EventRow.item_id == row.id, EventRow.epoch == row.epoch, EventRow.event.in_(EVENTS))
        .order_by(EventRow.id)
    )
    known = {detail["seq"]: detail for detail in session.scalars(query) if detail.get("seq") in seqs}
    found = [
        f"{task_calls.describe(detail['method'], detail['path'])} ({detail['why']})"[:_LONGEST]
        for detail in known.values()
    ]
    if not found:  # their events have been purged
        return f"{len(seqs)} of them"
    more = len(found) - _MOST
    return "; ".join(found[:_MOST]) + (f"; and {more} more" if more > 0 else "")
