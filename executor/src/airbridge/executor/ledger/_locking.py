"""Row locks (FOR UPDATE on Postgres, the single writer on SQLite) and writes to many rows at once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text, update

from airbridge.executor.ledger.models import WorkItemRow


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


def write(session: Any, condition: Any, **values: Any) -> None:
    """Set columns of all work items that meet a condition, and of those among them that the session holds."""
    session.flush()
    session.execute(
        update(WorkItemRow).where(condition).values(**values).execution_options(synchronize_session="fetch")
    )
