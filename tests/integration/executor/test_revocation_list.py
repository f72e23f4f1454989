"""Revocations and records: what is written, listed and taken back."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from tests.support.airflow_home import Metadata

from airbridge.executor.ledger import clock, records
from airbridge.executor.ledger.identity import revocations
from airbridge.executor.ledger.identity.revocations import Named
from airbridge.executor.ledger.models import RecordRow
from airbridge.executor.ledger.records import Applied


@pytest.fixture
def session(sqlite_metadata: Metadata) -> Iterator[Any]:
    with sqlite_metadata.session() as session:
        yield session
        session.rollback()


def test_newest_revocation_is_listed_first(session: Any) -> None:
    """Newest first; revocations of the same moment are ordered by value."""
    now = clock.now(session)
    for value, age in (("b", 0), ("a", 0), ("old", 5)):
        revocations.add(session, "worker", value, "stolen", "ops").revoked_at = now - timedelta(minutes=age)
    session.flush()
    assert [row.value for row in revocations.list_all(session)] == ["a", "b", "old"]


def test_removal_reports_existence(session: Any) -> None:
    """Removing a revocation returns whether there was one."""
    revocations.add(session, "pool", "eu-west-1/gpu", "stolen", "ops")
    assert revocations.remove(session, "worker", "eu-west-1/gpu") is False
    assert revocations.remove(session, "pool", "eu-west-1/gpu") is True
    assert revocations.remove(session, "pool", "eu-west-1/gpu") is False


def test_each_peer_gets_its_own(session: Any) -> None:
    """In the order of the peers; a name of another kind does not count, a worker's own comes before its issuer's."""
    assert revocations.revoked(session, [Named(worker="w1"), Named(worker="w2")]) == [None, None]
    revocations.add(session, "worker", "w1", "stolen", "ops")
    revocations.add(session, "issuer", "ca-1", "rotated", "ops")
    peers = [
        Named(worker="w2", issuer="ca-1"),
        Named(worker="w3", issuer="ca-2"),
        Named(worker="w1", issuer="ca-1"),
        Named(worker="ca-1", issuer="w1"),
        Named(),
    ]
    found = [None if row is None else row.kind for row in revocations.revoked(session, peers)]
    assert found == ["issuer", None, "worker", None, None]
    assert revocations.revoked(session, [Named(), Named()]) == [None, None]


def test_pool_needs_its_region() -> None:
    """A pool's name alone names no pool: each region has one called default."""
    assert Named(pool="gpu").names == Named(region="eu-west-1").names == []
    assert Named(region="eu-west-1", pool="gpu").names == [("pool", "eu-west-1/gpu")]


def test_record_keeps_the_time_given(session: Any) -> None:
    """Writes have the time that is given for all of them, or else the database's."""
    item, at = str(uuid4()), clock.now(session) - timedelta(hours=1)
    records.add(session, item, 1, [Applied(1, 200, {}, None), Applied(2, 204, {}, None)], at=at)
    records.add(session, item, 1, [Applied(3, 200, {}, None)])
    records.add(session, item, 1, [])
    times = [session.get(RecordRow, (item, 1, seq)).applied_at for seq in (1, 2, 3)]
    assert times[:2] == [at, at]
    assert abs(times[2] - clock.now(session)) < timedelta(seconds=5)
