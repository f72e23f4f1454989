"""Keys of hosts, bound to workers' names, and the count of the joins under each.

A host counts its joins, and so does this table. A copy of the host's disk counts on from the same number, so the second of the two to
join repeats a count that is taken.
"""

from __future__ import annotations

from datetime import timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import delete, select, update

from airbridge.executor.ledger import clock
from airbridge.executor.ledger._locking import for_update
from airbridge.executor.ledger.identity.models import BoundKeyRow


class Count(StrEnum):
    """Standing of a join's count."""

    NEXT = "next"
    #: The last join once more: its answer was lost.
    REPEATED = "repeated"
    #: Another process with this key has used the count.
    TAKEN = "taken"


def find(session: Any, worker_id: str) -> BoundKeyRow | None:
    """Return and lock the key of a worker's name: joins under it follow one another."""
    query = for_update(session, select(BoundKeyRow).where(BoundKeyRow.worker_id == worker_id))
    row: BoundKeyRow | None = session.scalars(query.execution_options(populate_existing=True)).one_or_none()
    return row


def is_bound(session: Any, worker_id: str) -> bool:
    """Return whether a key is bound to a worker's name."""
    found = session.execute(select(BoundKeyRow.worker_id).where(BoundKeyRow.worker_id == worker_id))
    return found.first() is not None


def list_all(session: Any) -> list[BoundKeyRow]:
    """Return all bound keys, by name."""
    return list(session.scalars(select(BoundKeyRow).order_by(BoundKeyRow.worker_id)))


def bind(session: Any, *, worker_id: str, region: str, pool: str, public_key: str, owner: str) -> BoundKeyRow:
    """Bind a key to a name, in place of one that was bound before."""
    unbind(session, worker_id)
    now = clock.now(session)
    row = BoundKeyRow(
        worker_id=worker_id,
        region=region,
        pool=pool,
        public_key=public_key,
        owner=owner,
        counter=0,
        bound_at=now,
        seen_at=now,
    )
    session.add(row)
    session.flush()
    return row


def unbind(session: Any, worker_id: str) -> bool:
    """Forget a name's key; False if it has none."""
    gone = session.execute(
        delete(BoundKeyRow)
        .where(BoundKeyRow.worker_id == worker_id)
        .execution_options(synchronize_session="fetch")
    )
    session.flush()
    return bool(gone.rowcount)


def count(session: Any, row: BoundKeyRow, counter: int, attempt: str) -> Count:
    """Count a join, if its count is not taken."""
    if counter == row.counter and attempt == row.attempt:
        standing = Count.REPEATED
    elif counter <= row.counter:
        return Count.TAKEN
    else:
        standing = Count.NEXT
    row.counter, row.attempt, row.seen_at = counter, attempt, clock.now(session)
    session.flush()
    return standing


def silent_for(session: Any, row: BoundKeyRow) -> timedelta:
    """Return the time since the host's last join or renewal."""
    silent: timedelta = clock.now(session) - row.seen_at
    return silent


def note_seen(session: Any, worker_id: str) -> None:
    """Note that the host of a name renewed its certificate."""
    session.execute(
        update(BoundKeyRow)
        .where(BoundKeyRow.worker_id == worker_id)
        .values(seen_at=clock.now(session))
        .execution_options(synchronize_session=False)
    )
