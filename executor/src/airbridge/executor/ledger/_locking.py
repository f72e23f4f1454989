"""Row locks: FOR UPDATE on Postgres, the single writer on SQLite."""

from __future__ import annotations

from typing import Any

from sqlalchemy import text


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
