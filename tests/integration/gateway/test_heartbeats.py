"""Many workers' heartbeats at once: few statements, no waiting for one another, and each judged for itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from sqlalchemy import event, text
from tests.integration.gateway.world import VERSIONS, Worker, World, finished, lease

from airbridge.control_plane import _airflow
from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.authentication import Caller
from airbridge.control_plane.gateway.heartbeats import Heartbeats
from airbridge.control_plane.identity.access import worker_scopes
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.parity import Parity
from airbridge.executor.ledger import revocations, workers
from airbridge.executor.protocol import (
    DrainCommand,
    Grant,
    Heartbeat,
    HeartbeatResponse,
    LeaseRef,
    RefusalReason,
)

LEASE_SECONDS = 60.0


@pytest.fixture
def heartbeats(world: World) -> Heartbeats:
    return Heartbeats(
        parity=Parity.load(None),
        keyring=world.keyring,
        lease_seconds=LEASE_SECONDS,
        interval_seconds=10.0,
        clock=lambda: datetime.now(UTC),
    )


def caller(worker: Worker) -> Caller:
    assert worker.certificate_pem is not None
    leaf = x509.load_pem_x509_certificate(worker.certificate_pem.encode())
    certificate = PeerCertificate.of(leaf, leaf.fingerprint(hashes.SHA256()).hex())
    return Caller(worker.name, certificate, Scopes.parse(worker_scopes(worker.name)), "127.0.0.1:1")


def beat(worker: Worker, *leases: LeaseRef) -> tuple[Caller, Heartbeat]:
    said = Heartbeat(
        sent_at=datetime.now(UTC), versions=VERSIONS, slots_total=8, slots_used=len(leases), leases=leases
    )
    return caller(worker), said


def busy(world: World, count: int) -> list[tuple[Worker, Grant]]:
    """Workers that hold one task each."""
    return [(worker := world.worker(), worker.grant(item)) for item in world.items(count)]


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements of this process meanwhile."""
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        statements.append(statement)

    engine = _airflow.engine()
    event.listen(engine, "before_cursor_execute", note)
    try:
        yield statements
    finally:
        event.remove(engine, "before_cursor_execute", note)


@contextmanager
def held_by_another(world: World, table: str, key: str) -> Iterator[None]:
    """A row that another transaction has locked."""
    with world.metadata.session() as session:
        session.execute(text(f"SELECT 1 FROM {table} WHERE id = :id FOR UPDATE"), {"id": key})
        yield
        session.rollback()


def test_a_crowd_costs_no_more_statements_than_one(world: World, heartbeats: Heartbeats) -> None:
    """Twelve workers with a lease each are answered by as many statements as one of them."""
    crowd = busy(world, 12)
    with counted() as for_one:
        heartbeats.beat_together([beat(worker, lease(grant)) for worker, grant in crowd[:1]])
    with counted() as for_all:
        answers = heartbeats.beat_together([beat(worker, lease(grant)) for worker, grant in crowd])
    assert all(isinstance(answer, HeartbeatResponse) for answer in answers)
    assert len(for_all) == len(for_one) <= 9


def test_together_is_as_good_as_alone(world: World, heartbeats: Heartbeats) -> None:
    """Leases are renewed, task instances kept alive and what workers say of themselves noted, as for one."""
    crowd = busy(world, 2)
    before = [world.row(str(grant.item_id)).lease_until for _, grant in crowd]
    answers = heartbeats.beat_together([beat(worker, lease(grant)) for worker, grant in crowd])
    for (worker, grant), answer, until in zip(crowd, answers, before, strict=True):
        assert isinstance(answer, HeartbeatResponse)
        row, task = world.row(str(grant.item_id)), world.task(str(grant.item_id))
        assert row.renewed_at == task.last_heartbeat_at == answer.server_time
        assert row.lease_until > until
        with world.metadata.session() as session:
            noted = workers.get(session, worker.name.worker)
        assert noted is not None
        assert (noted.last_heartbeat_at, noted.slots_used) == (answer.server_time, 1)
        assert noted.versions == VERSIONS.model_dump(mode="json")


def test_a_worker_whose_row_is_held_keeps_nobody_else_waiting(world: World, heartbeats: Heartbeats) -> None:
    """While one worker's result is being written, the others' leases are renewed, and its own heartbeat waits alone."""
    (slow, slow_grant), (other, other_grant) = busy(world, 2)
    with held_by_another(world, "airbridge_work_item", str(slow_grant.item_id)):
        first, second = heartbeats.beat_together(
            [
                beat(slow, lease(slow_grant)),
                beat(other, lease(other_grant)),
            ]
        )
    assert first is None
    assert isinstance(second, HeartbeatResponse)


def test_a_task_instance_that_airflow_writes_to_is_left_for_the_next_time(
    world: World, heartbeats: Heartbeats
) -> None:
    """The lease is renewed; the task's own heartbeat, which may be minutes old, is not waited for."""
    [(worker, grant)] = busy(world, 1)
    with held_by_another(world, "task_instance", str(grant.ti_id)):
        [answer] = heartbeats.beat_together([beat(worker, lease(grant))])
    assert isinstance(answer, HeartbeatResponse)
    row, task = world.row(str(grant.item_id)), world.task(str(grant.item_id))
    assert row.renewed_at == answer.server_time > task.last_heartbeat_at


def test_each_of_a_crowd_is_judged_for_itself(world: World, heartbeats: Heartbeats) -> None:
    """One is revoked, one never enrolled, one is to drain, one asks twice, one names a lease that is another's, one's
    task was marked elsewhere: each meets that, and the plain ones are answered."""
    plain, revoked, unknown, drained, thief = (world.worker() for _ in range(5))
    (holder, grant), (marked, marked_grant) = busy(world, 2)
    world.set_task_state(str(marked_grant.item_id), "failed")
    with world.metadata.session() as session:
        revocations.add(session, "worker", revoked.name.worker, "stolen", "test")
        workers.set_wanted(session, drained.name.worker, "draining")
        session.delete(workers.get(session, unknown.name.worker))
        session.commit()
    answers = heartbeats.beat_together(
        [
            beat(plain),
            beat(revoked),
            beat(unknown),
            beat(drained),
            beat(plain),
            beat(thief, lease(grant)),
            beat(holder, lease(grant)),
            beat(marked, lease(marked_grant)),
        ]
    )
    assert [type(answer) for answer in answers] == [
        *(HeartbeatResponse, Refused, type(None), HeartbeatResponse),
        *(type(None), type(None), HeartbeatResponse, type(None)),
    ]
    assert isinstance(answers[1], Refused)
    assert answers[1].reason is RefusalReason.REVOKED
    assert isinstance(answers[3], HeartbeatResponse)
    assert any(isinstance(command, DrainCommand) for command in answers[3].commands)


def test_a_held_task_that_nobody_speaks_of_is_no_reason_to_wait(world: World, heartbeats: Heartbeats) -> None:
    """A claim whose answer may still be on its way is left alone, and its worker answered with the others."""
    [(worker, grant)] = busy(world, 1)
    [answer] = heartbeats.beat_together([beat(worker)])
    assert isinstance(answer, HeartbeatResponse)
    assert world.row(str(grant.item_id)).state == "claimed"
    [done] = worker.exchange(finished(grant, 1)).results
    assert done.status == 204


def test_a_token_that_may_not_send_heartbeats_is_refused(world: World, heartbeats: Heartbeats) -> None:
    """Its worker is not looked at; the others are."""
    plain, other = world.worker(), world.worker()
    someone, said = beat(other)
    narrow = Caller(someone.name, someone.certificate, Scopes.parse(["connections:read"]), someone.address)
    first, second = heartbeats.beat_together([(narrow, said), beat(plain)])
    assert isinstance(first, Refused)
    assert isinstance(second, HeartbeatResponse)
