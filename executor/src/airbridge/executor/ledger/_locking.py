"""Row locks (FOR UPDATE on Postgres, the single writer on SQLite) and writes to many rows at once."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from sqlalchemy import select, text, update
from sqlalchemy.orm import aliased

from airbridge.executor.ledger.models import ItemState, WorkItemRow


def for_update(session: Any, query: Any, *, skip_locked: bool = False) -> Any:
    """Return `query` such that its rows are this transaction's until it ends.

    SQLite has no row locks. A write that matches nothing takes its one write lock before the rows
    are read, so that read and write are one step there too.
    """
    query = query.execution_options(populate_existing=True)
    if session.get_bind().dialect.name == "sqlite":
        session.execute(text("UPDATE airbridge_work_item SET epoch = epoch WHERE id = ''"))
        return query
    return query.with_for_update(skip_locked=skip_locked)


def unclaimed_in_order(session: Any, ids: Collection[str]) -> Any:
    """Return a subquery of those of the rows that no worker holds, locked in the order of their ids.

    An update locks the rows in any order, and workers claim them meanwhile, in the order of their ids: that could deadlock.
    """
    row = aliased(WorkItemRow)
    query = select(row.id).where(row.id.in_(list(ids)), row.state.in_((ItemState.PLACED, ItemState.SENT)))
    if session.get_bind().dialect.name == "sqlite":
        return query
    return query.order_by(row.id).with_for_update()


def write(session: Any, condition: Any, **values: Any) -> None:
    """Set columns of all work items that meet a condition, and of those among them that the session holds."""
    session.flush()
    session.execute(
        update(WorkItemRow).where(condition).values(**values).execution_options(synchronize_session="fetch")
    )
