"""Notices of settled work items on a real Postgres, and where there are none."""

from __future__ import annotations

import select
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from tests.support.airflow_home import Metadata
from tests.support.items import new_item

from airbridge.executor import _airflow
from airbridge.executor.ledger import items, notices
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow

OWNER = 1


@pytest.fixture
def line(postgres_metadata: Metadata) -> Iterator[Any]:
    line = _airflow.listen(notices.CHANNEL)
    assert line is not None
    yield line
    line.close()


def heard(line: Any) -> set[str]:
    """What the line hears within a moment."""
    found: set[str] = set()
    while select.select([line.fileno()], [], [], 0.3)[0]:
        found |= line.heard()
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
        items.settle(session, items.lock(session, [item_id])[item_id], Outcome.SUCCESS, "success")
        if commit:
            session.commit()


def test_the_scheduler_is_told_when_its_item_is_settled(postgres_metadata: Metadata, line: Any) -> None:
    """The notice names the scheduler's job, and comes with the commit."""
    [item] = placed(postgres_metadata, 1)
    settle(postgres_metadata, item, commit=False)
    assert heard(line) == set()
    settle(postgres_metadata, item)
    assert heard(line) == {str(OWNER)}


def test_nobody_is_told_while_the_pool_has_more_to_go_on_with(postgres_metadata: Metadata, line: Any) -> None:
    """A worker that takes its next item from the queue does not wait for the scheduler."""
    first, second = placed(postgres_metadata, 2)
    with postgres_metadata.session() as session:
        session.get(WorkItemRow, second).state = ItemState.SENT
        session.commit()
    settle(postgres_metadata, first)
    assert heard(line) == set()
    settle(postgres_metadata, second)
    assert heard(line) == {str(OWNER)}


def test_a_line_that_the_server_has_ended_says_so(postgres_metadata: Metadata, line: Any) -> None:
    """A cut is found out by hearing or by checking, and not taken for silence."""
    with postgres_metadata.session() as session:
        end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'"
        session.execute(text(end))
    with pytest.raises(Exception, match=r"terminat|clos"):
        line.check()


def test_a_line_is_none_of_the_pools(postgres_metadata: Metadata, line: Any) -> None:
    """However long it listens, Airflow's pool has all its connections."""
    assert postgres_metadata.engine.pool.checkedout() == 0


def test_sqlite_has_no_line(sqlite_metadata: Metadata) -> None:
    """There the scheduler is told nothing, and settling works all the same."""
    assert _airflow.listen(notices.CHANNEL) is None
    [item] = placed(sqlite_metadata, 1)
    settle(sqlite_metadata, item)
