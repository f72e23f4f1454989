"""Row locks (FOR UPDATE on Postgres, the single writer on SQLite), writes to many rows at once, and statements on work items.

The statements are those that the outbox and the executor run in each of their turns. They are built once, at import: SQLAlchemy takes
longer to analyse a new statement than to run a known one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Final

from sqlalchemy import bindparam, func, inspect, select, text, update
from sqlalchemy.orm import aliased, defer

from airbridge.core.protocol import ItemKind
from airbridge.executor.ledger import clock
from airbridge.executor.ledger._airflow import UtcDateTime
from airbridge.executor.ledger.models import ItemState, WorkItemRow

# Columns that the statements of `write` set.
_WRITTEN: Final = ("state", "sends", "sent_at", "expires_at", "not_before", "detail", "acknowledged_at")

# SQLite has no row locks: a write that matches nothing takes its one write lock.
_TAKE_WRITE_LOCK: Final = text("UPDATE airbridge_work_item SET epoch = epoch WHERE id = ''")


def take_write_lock(session: Any) -> None:
    """Take SQLite's write lock, which the transaction holds until it ends."""
    session.execute(_TAKE_WRITE_LOCK)


def for_update(session: Any, query: Any, *, skip_locked: bool = False) -> Any:
    """Return `query` such that its rows are this transaction's until it ends.

    SQLite's write lock is taken before the rows are read, so that read and write are one step there too.
    """
    query = query.execution_options(populate_existing=True)
    if session.get_bind().dialect.name == "sqlite":
        session.execute(_TAKE_WRITE_LOCK)
        return query
    return query.with_for_update(skip_locked=skip_locked)


class LockingQuery:
    """Query whose rows are the transaction's until it ends.

    It is built once, at import, and its values are given at each use: SQLAlchemy takes longer to analyse a new statement than
    to run a known one. With `entity`, the query selects this one, and its rows have it as their first column.
    """

    def __init__(self, query: Any, *, entity: Any = None, skip_locked: bool = False) -> None:
        # The clock must be read after the locks are held. PostgreSQL computes the columns of a query before it locks the row,
        # but those of a query over a locking one after: rows come out of it one by one, each locked.
        locked = query.with_for_update(skip_locked=skip_locked).cte("locked")
        columns = [aliased(entity, locked)] if entity is not None else list(locked.c)
        at = func.clock_timestamp(type_=UtcDateTime()).label("locked_at")
        self._locking = select(*columns, at).execution_options(populate_existing=True)
        self._plain = query.execution_options(populate_existing=True)

    def rows(self, session: Any, values: Mapping[str, Any]) -> list[Any]:
        """Return the rows."""
        if session.get_bind().dialect.name == "sqlite":
            session.execute(_TAKE_WRITE_LOCK)
            return list(session.execute(self._plain, values))
        return list(session.execute(self._locking, values))

    def rows_at(self, session: Any, values: Mapping[str, Any]) -> tuple[list[Any], datetime]:
        """Return the rows, and a time at which all of them were locked."""
        found = self.rows(session, values)
        if not found or not hasattr(found[0], "locked_at"):
            return found, clock.now(session)
        return found, max(row.locked_at for row in found)


def skipping_locked(query: Any) -> Any:
    """Return `query` for `locked`: with the rows that no other transaction holds. SQLite, which has no row locks, ignores it."""
    return query.with_for_update(skip_locked=True).execution_options(populate_existing=True)


def locked(session: Any, query: Any) -> Any:
    """Take SQLite's write lock, and return a locking query that was built once: it needs no `for_update`."""
    if session.get_bind().dialect.name == "sqlite":
        session.execute(_TAKE_WRITE_LOCK)
    return query


def write(session: Any, statement: Any, ids: Collection[str], **values: Any) -> None:
    """Run an update of the work items' table that was built once, with `ids` and `values`.

    Rows that the session holds load these columns again on access, which needs the session: a detached row has them no more.
    """
    session.flush()
    session.execute(statement, {"ids": sorted(ids), **values})
    # By its key: `row.id` of an expired row is a query, and an error if it has been deleted.
    held = {
        inspect(row).identity[0]: row for row in session.identity_map.values() if isinstance(row, WorkItemRow)
    }
    for item_id in held.keys() & set(ids):
        session.expire(held[item_id], _WRITTEN)


# Columns that are read only where they are needed; a row loads them on access.
BIG: Final = (WorkItemRow.workload, WorkItemRow.placement, WorkItemRow.started)

_ITEM: Final = WorkItemRow.__table__
_CANDIDATE: Final = aliased(WorkItemRow)


def _in_order(*conditions: Any) -> Any:
    """Return a subquery of those of the rows `ids` that meet the conditions, locked in the order of their ids.

    An update locks the rows in any order, and workers claim them meanwhile, in the order of their ids: that could deadlock.
    """
    of_these = _CANDIDATE.id.in_(bindparam("ids", expanding=True))
    return select(_CANDIDATE.id).where(of_these, *conditions).order_by(_CANDIDATE.id).with_for_update()


# No worker holds them.
_UNCLAIMED: Final = _in_order(_CANDIDATE.state.in_((ItemState.PLACED, ItemState.SENT)))
# Still of one reservation, by its end: a row that was given back, moved or sent again meanwhile has another, or none.
_RESERVED: Final = _in_order(
    _CANDIDATE.state == ItemState.SENT,
    _CANDIDATE.sent_at.is_(None),
    _CANDIDATE.expires_at == bindparam("reserved"),
)

# --- Sending ---

IN_ORDER: Final = skipping_locked(
    select(WorkItemRow)
    .where(
        WorkItemRow.state == ItemState.PLACED,
        WorkItemRow.region == bindparam("region"),
        WorkItemRow.pool == bindparam("pool"),
        WorkItemRow.not_before <= bindparam("at"),
        WorkItemRow.kind == ItemKind.TASK,
    )
    .order_by(WorkItemRow.priority.desc(), WorkItemRow.placed_at, WorkItemRow.id)
    .limit(bindparam("most"))
)
RESERVE: Final = (
    update(_ITEM)
    .where(_ITEM.c.id.in_(bindparam("ids", expanding=True)), _ITEM.c.state == ItemState.PLACED)
    .values(state=ItemState.SENT, sent_at=None, expires_at=bindparam("until"), sends=_ITEM.c.sends + 1)
)
_WAITING: Final[Mapping[str, Any]] = {
    "state": ItemState.PLACED,
    "sent_at": None,
    "expires_at": None,
    "not_before": bindparam("at"),
    "detail": bindparam("why"),
}
_ON_QUEUE: Final[Mapping[str, Any]] = {
    "state": ItemState.SENT,
    "sent_at": bindparam("at"),
    "expires_at": bindparam("until"),
    "detail": None,
}
POSTPONE: Final = update(_ITEM).where(_ITEM.c.id.in_(_UNCLAIMED)).values(_WAITING)
POSTPONE_RESERVED: Final = update(_ITEM).where(_ITEM.c.id.in_(_RESERVED)).values(_WAITING)
MARK_SENT: Final = update(_ITEM).where(_ITEM.c.id.in_(_RESERVED)).values(_ON_QUEUE)

# --- Placing and reporting ---

OPEN: Final = (
    select(WorkItemRow)
    .where(
        WorkItemRow.ti_id.in_(bindparam("ti_ids", expanding=True)),
        WorkItemRow.state != ItemState.SETTLED,
        WorkItemRow.kind == ItemKind.TASK,
    )
    .order_by(WorkItemRow.id)
    .with_for_update()
    .execution_options(populate_existing=True)
)
OPENED: Final = select(WorkItemRow.ti_id, WorkItemRow.owner_job_id).where(
    WorkItemRow.ti_id.in_(bindparam("ti_ids", expanding=True)),
    WorkItemRow.state != ItemState.SETTLED,
    WorkItemRow.kind == ItemKind.TASK,
)
_UNACKNOWLEDGED: Final = (
    select(WorkItemRow)
    .options(*(defer(column) for column in BIG))
    .where(
        WorkItemRow.state == ItemState.SETTLED,
        WorkItemRow.acknowledged_at.is_(None),
        WorkItemRow.kind == ItemKind.TASK,
    )
    .order_by(WorkItemRow.settled_at)
)
UNACKNOWLEDGED: Final = _UNACKNOWLEDGED.where(WorkItemRow.owner_job_id == bindparam("owner"))
UNACKNOWLEDGED_UNOWNED: Final = _UNACKNOWLEDGED.where(WorkItemRow.owner_job_id.is_(None))
ACKNOWLEDGE: Final = (
    update(_ITEM)
    .where(_ITEM.c.id.in_(bindparam("ids", expanding=True)))
    .values(acknowledged_at=bindparam("at"))
)
