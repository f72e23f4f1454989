"""Statements of claims, exchanges and heartbeats: how many there are, that they are reused, and when their time is read."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import text
from tests.integration.gateway.test_exchanges import exchanges
from tests.integration.gateway.test_heartbeats import beat, busy, caller, counted, heartbeats, used
from tests.integration.gateway.world import World, finished, lease, xcom

from airbridge.control_plane._airflow import ExecutionApp
from airbridge.control_plane.gateway.heartbeat.heartbeats import Heartbeats
from airbridge.control_plane.gateway.work.claims import Claims
from airbridge.control_plane.parity import Parity
from airbridge.core.protocol import ClaimRequest, Heartbeat, HeartbeatResponse
from airbridge.executor.ledger import clock, leases, workers
from airbridge.executor.ledger.models import WorkItemRow

__all__ = ["heartbeats"]


def of_the_ledger(statements: Sequence[str]) -> list[str]:
    """The statements of the ledger's tables: those of Airflow's routes are not counted here."""
    return [each for each in statements if "airbridge_" in each]


@pytest.fixture
def claims(world: World) -> Claims:
    return Claims(
        app=ExecutionApp(),
        keyring=world.keyring,
        parity=Parity.load(None),
        policy=world.policy,
        lease_seconds=60.0,
    )


def test_claim_takes_six_statements(world: World, claims: Claims) -> None:
    """The caller, the item, the signature, the event, the audit row and the lease; two more items cost none but their leases."""
    worker, items = used(world), world.items(4)
    one, *more = [world.envelope(item) for item in items]
    with counted() as statements:
        answer = claims.claim(caller(worker), ClaimRequest(envelopes=(one,)))
    assert len(answer.grants) == 1
    assert len(of_the_ledger(statements)) == 6, statements
    with counted() as statements:
        answer = claims.claim(caller(worker), ClaimRequest(envelopes=tuple(more)))
    assert len(answer.grants) == 3
    assert len(of_the_ledger(statements)) <= 8, statements
    assert [len(world.audited("claim.granted", item_id=item)) for item in items] == [1, 1, 1, 1]


def test_exchange_takes_six_statements(world: World) -> None:
    """The item, its records, the event, the notification, the new records together and the row."""
    worker, [item] = world.worker(), world.items()
    grant = worker.grant(item)
    applying = exchanges(world, lambda *_: None)
    with counted() as statements:
        results = applying.apply(caller(worker), [finished(grant, 1), xcom(grant, 2, "a", "1")])
    assert [each.status for each in results] == [204, 201]
    # The size of the XCom is an event of its own.
    assert len(of_the_ledger(statements)) <= 8, statements
    assert sum(each.startswith("INSERT INTO airbridge_record") for each in statements) == 1


def test_heartbeats_take_seven_statements(world: World, heartbeats: Heartbeats) -> None:
    """A batch takes seven statements, for one worker or for four."""
    crowd = busy(world, 4)
    for size in (1, 4):
        with counted() as statements:
            answers = heartbeats.handle_batch([beat(worker, lease(grant)) for worker, grant in crowd[:size]])
        assert all(isinstance(answer, HeartbeatResponse) for answer in answers)
        assert len(statements) == 7, statements


def test_together_stores_what_each_reports(world: World, heartbeats: Heartbeats) -> None:
    """The one statement for many workers stores what the one for a single worker does, of texts with U+0000 too."""
    alone, first, second = used(world), used(world), used(world)

    def reported(worker: Any) -> tuple[Any, Heartbeat]:
        who, said = beat(worker)
        versions = said.versions.model_copy(update={"python": '3.11\0"\\u0000'})
        changes = {"versions": versions, "queue_error": "denied:\0 'x'", "journal_bytes": 2**40}
        return who, said.model_copy(update=changes)

    heartbeats.handle_batch([reported(alone)])
    heartbeats.handle_batch([reported(first), reported(second)])
    with world.metadata.session() as session:
        rows = [workers.get(session, each.name.worker) for each in (alone, first, second)]
        stored = [
            (row.versions, row.queue_error, row.journal_bytes, row.state, row.trust_version, row.slots_total)
            for row in rows
            if row is not None
        ]
        assert all(abs(row.clock_skew_seconds) < 60 for row in rows if row is not None)
    assert stored == [stored[0]] * 3
    assert stored[0][0]["python"] == '3.11\ufffd"\\u0000'
    assert stored[0][1:3] == ("denied:\ufffd 'x'", 2**40)


@pytest.mark.parametrize("changed", [False, True])
def test_time_is_read_after_lock(world: World, changed: bool) -> None:
    """The time that comes with locked rows is later than the end of the transaction that held one of them."""
    items = world.items(2)
    found: list[datetime] = []

    def lock() -> None:
        with world.metadata.session() as session:
            rows, now = leases.lock_at(session, items)
            assert set(rows) == set(items)
            found.append(now)
            session.rollback()

    with world.metadata.session() as holder:
        # The last one in the order of locking.
        held = leases.lock(holder, [max(items)])
        waiting = threading.Thread(target=lock)
        waiting.start()
        time.sleep(0.5)
        if changed:
            held[max(items)].detail = "changed"
            holder.flush()
        before = clock.now(holder)
        holder.commit()
    waiting.join(10)
    [now] = found
    assert now >= before


def test_locked_rows_are_current(world: World) -> None:
    """A session that has read a row before gets its present content with the lock."""
    [item] = world.items()
    with world.metadata.session() as session:
        row = session.get(WorkItemRow, item)
        with world.metadata.session() as other:
            other.execute(text("UPDATE airbridge_work_item SET detail = 'new' WHERE id = :id"), {"id": item})
            other.commit()
        assert leases.lock(session, [item])[item] is row
        assert row.detail == "new"
