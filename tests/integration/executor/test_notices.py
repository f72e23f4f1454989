"""Notices of settled work items on a real Postgres, and where there are none."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from tests.support.airflow_home import Metadata
from tests.support.items import new_item

from airbridge.executor.ledger import items, leases, notices
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow
from airbridge.executor.scheduling import _airflow

OWNER = 1


@pytest.fixture
def line(postgres_metadata: Metadata) -> Iterator[Any]:
    line = _airflow.listen(notices.CHANNEL)
    assert line is not None
    yield line
    line.close()


def notices_on(line: Any) -> set[str]:
    """Return the notices that arrive on the line within a moment."""
    found: set[str] = set()
    while select.select([line.fileno()], [], [], 0.3)[0]:
        found |= line.received()
    return found


def placed(metadata: Metadata, count: int) -> list[str]:
    with metadata.session() as session:
        rows = items.place(session, [new_item() for _ in range(count)], OWNER)
        session.flush()
        ids = [row.id for row in rows]
        session.commit()
    return ids


def settle(metadata: Metadata, item_id: str, *, commit: bool = True) -> None:
    with metadata.session() as session:
        leases.settle(session, leases.lock(session, [item_id])[item_id], Outcome.SUCCESS, "success")
        if commit:
            session.commit()


def test_settled_item_notifies_scheduler(postgres_metadata: Metadata, line: Any) -> None:
    """The notice names the scheduler's job, and comes with the commit."""
    [item] = placed(postgres_metadata, 1)
    settle(postgres_metadata, item, commit=False)
    assert notices_on(line) == set()
    settle(postgres_metadata, item)
    assert notices_on(line) == {str(OWNER)}


def test_waiting_items_suppress_notices(postgres_metadata: Metadata, line: Any) -> None:
    """A worker that takes its next item from the queue does not wait for the scheduler."""
    first, second = placed(postgres_metadata, 2)
    with postgres_metadata.session() as session:
        session.get(WorkItemRow, second).state = ItemState.SENT
        session.commit()
    settle(postgres_metadata, first)
    assert notices_on(line) == set()
    settle(postgres_metadata, second)
    assert notices_on(line) == {str(OWNER)}


def test_closed_connection_raises(postgres_metadata: Metadata, line: Any) -> None:
    """A closed connection is detected by receiving or by checking, and not taken for silence."""
    with postgres_metadata.session() as session:
        # What a failover or an administrator does to the connection.
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        session.execute(text(end))
    with pytest.raises(Exception, match=r"terminat|clos"):
        line.check()


def test_listening_takes_no_pool_connection(postgres_metadata: Metadata, line: Any) -> None:
    """However long it listens, Airflow's pool has all its connections."""
    assert postgres_metadata.engine.pool.checkedout() == 0


def test_sqlite_has_no_line(sqlite_metadata: Metadata) -> None:
    """On SQLite the scheduler gets no notices, and settling works all the same."""
    assert _airflow.listen(notices.CHANNEL) is None
    [item] = placed(sqlite_metadata, 1)
    settle(sqlite_metadata, item)
