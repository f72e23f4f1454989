"""Adoption: a scheduler takes over the work items of given task instances, and of no others."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.airflow_home import Metadata
from tests.support.items import new_item

from airbridge.executor.ledger import items, leases
from airbridge.executor.ledger.models import Outcome


@pytest.fixture
def session(sqlite_metadata: Metadata) -> Iterator[Any]:
    with sqlite_metadata.session() as session:
        yield session
        session.rollback()


def test_other_items_keep_their_owner(session: Any) -> None:
    """Another scheduler's open items, and its failures that it has yet to see, stay its own."""
    mine, open_, lost = items.place(session, [new_item() for _ in range(3)], 1)
    session.flush()
    leases.settle(session, lost, Outcome.LOST)
    assert items.adopt(session, [mine.ti_id], 7) == {mine.ti_id}
    assert [row.owner_job_id for row in (mine, open_, lost)] == [7, 1, 1]
    assert items.adopt(session, [], 7) == set()
