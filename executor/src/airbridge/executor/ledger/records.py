"""Writes of tasks that have been applied: idempotency keys and the answers they got."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import bindparam, insert, select

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import RecordRow

_RECORD: Final = RecordRow.__table__
_OF_ITEM: Final = select(_RECORD.c.seq, _RECORD.c.status, _RECORD.c.headers, _RECORD.c.body).where(
    _RECORD.c.item_id == bindparam("item_id"), _RECORD.c.epoch == bindparam("epoch")
)
_ADD: Final = insert(_RECORD)


class Applied(NamedTuple):
    """Applied write, and the answer that it got."""

    seq: int
    status: int
    headers: dict[str, str]
    body: str | None


def find(session: Any, item_id: str, epoch: int) -> dict[int, Applied]:
    """Return the applied writes of one work item under one epoch, by `seq`."""
    found = session.execute(_OF_ITEM, {"item_id": str(item_id), "epoch": epoch})
    return {row.seq: Applied(*row) for row in found}


def add(
    session: Any, item_id: str, epoch: int, writes: Sequence[Applied], *, at: datetime | None = None
) -> None:
    """Keep the answers to applied writes of one work item, in the transaction that applied them."""
    if not writes:
        return
    same = {"item_id": str(item_id), "epoch": epoch, "applied_at": at or clock.now(session)}
    session.execute(_ADD, [{**same, **each._asdict()} for each in writes])
