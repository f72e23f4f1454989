"""Writes of tasks that have been applied: idempotency keys and the answers they got."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import select

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import RecordRow


def find(session: Any, item_id: str, epoch: int) -> dict[int, RecordRow]:
    """Return the applied writes of one work item under one epoch, by `seq`."""
    query = select(RecordRow).where(RecordRow.item_id == str(item_id), RecordRow.epoch == epoch)
    return {row.seq: row for row in session.scalars(query)}


def add(
    session: Any,
    *,
    item_id: str,
    epoch: int,
    seq: int,
    status: int,
    headers: dict[str, str],
    body: str | None,
    at: datetime | None = None,
) -> RecordRow:
    """Keep the answer to an applied write, in the transaction that applied it. With `at`, the caller flushes."""
    row = RecordRow(
        item_id=str(item_id),
        epoch=epoch,
        seq=seq,
        status=status,
        headers=headers,
        body=body,
        applied_at=at or clock.now(session),
    )
    session.add(row)
    if at is None:
        session.flush()
    return row
