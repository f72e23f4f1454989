"""Many workers' heartbeats at once: few statements, no waiting for one another, and each judged for itself."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from sqlalchemy import event, text
from tests.integration.gateway.world import VERSIONS, Worker, World, finished, lease

from airbridge.control_plane import _airflow
from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.heartbeat.heartbeats import Heartbeats
from airbridge.control_plane.identity.access import worker_scopes
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.parity import Parity
from airbridge.core.protocol import (
    DrainCommand,
    Grant,
    Heartbeat,
    HeartbeatResponse,
    LeaseRef,
    RefusalReason,
)
from airbridge.executor.ledger import workers
from airbridge.executor.ledger.identity import revocations

LEASE_SECONDS = 60.0


@pytest.fixture
def heartbeats(world: World) -> Heartbeats:
    return Heartbeats(
        parity=Parity.load(None),
        keyring=world.keyring,
        lease_seconds=LEASE_SECONDS,
        interval_seconds=10.0,
        given_interval=lambda: 10.0,
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


def used(world: World) -> Worker:
    """A worker whose certificate has been used."""
    worker = world.worker()
    worker.beat()
    return worker


def busy(world: World, count: int) -> list[tuple[Worker, Grant]]:
    """Workers that hold one task each."""
    return [(worker := world.worker(), worker.grant(item)) for item in world.items(count)]


@contextmanager
def counted() -> Iterator[list[str]]:
    """The statements of this thread during the block; the gateway's background loops run in others."""
    statements: list[str] = []
    here = threading.get_ident()

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        if threading.get_ident() == here:
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


def test_batch_statement_count_is_constant(world: World, heartbeats: Heartbeats) -> None:
    """Twelve workers with a lease each are answered by as many statements as one of them."""
    crowd = busy(world, 12)
    with counted() as for_one:
        heartbeats.handle_batch([beat(worker, lease(grant)) for worker, grant in crowd[:1]])
    with counted() as for_all:
        answers = heartbeats.handle_batch([beat(worker, lease(grant)) for worker, grant in crowd])
    assert all(isinstance(answer, HeartbeatResponse) for answer in answers)
    assert len(for_all) == len(for_one) <= 10


def test_together_is_as_good_as_alone(world: World, heartbeats: Heartbeats) -> None:
    """A batch renews leases, keeps task instances alive and records the workers' reports, as a single heartbeat does."""
    crowd = busy(world, 2)
    before = [world.row(str(grant.item_id)).lease_until for _, grant in crowd]
    answers = heartbeats.handle_batch([beat(worker, lease(grant)) for worker, grant in crowd])
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


def test_locked_worker_delays_no_other(world: World, heartbeats: Heartbeats) -> None:
    """While one worker's result is being written, the others' leases are renewed, and its own heartbeat waits alone."""
    (slow, slow_grant), (other, other_grant) = busy(world, 2)
    with held_by_another(world, "airbridge_work_item", str(slow_grant.item_id)):
        first, second = heartbeats.handle_batch(
            [
                beat(slow, lease(slow_grant)),
                beat(other, lease(other_grant)),
            ]
        )
    assert first is None
    assert isinstance(second, HeartbeatResponse)


def test_unstorable_heartbeat_fails_alone(world: World, heartbeats: Heartbeats) -> None:
    """One heartbeat that the database refuses is left to be handled alone; the others of its batch are answered."""
    (first, first_grant), (last, last_grant) = busy(world, 2)
    hostile, said = beat(used(world))
    answers = heartbeats.handle_batch(
        [
            beat(first, lease(first_grant)),
            (hostile, said.model_copy(update={"slots_total": 2**40})),
            beat(last, lease(last_grant)),
        ]
    )
    assert [type(answer) for answer in answers] == [HeartbeatResponse, type(None), HeartbeatResponse]


@pytest.mark.parametrize(
    "changes",
    [
        {"slots_total": 2**31},
        {"slots_used": 2**31},
        {"journal_pending": 2**31},
        {"journal_bytes": 2**63},
        {"trust_version": "x" * 65},
        {"versions": {**VERSIONS.model_dump(), "airbridge": "1" * 5000}},
        {"versions": {**VERSIONS.model_dump(), "protocol": 2**31}},
        {"leases": [{"item_id": str(uuid4()), "epoch": 2**31}]},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_heartbeat_beyond_its_columns_is_malformed(world: World, changes: dict[str, Any]) -> None:
    """Numbers and texts that no column takes are refused before they reach a batch."""
    worker = used(world)
    _, said = beat(worker)
    response = worker.post("heartbeat", said.model_dump(mode="json") | changes)
    assert (response.status_code, response.json()["reason"]) == (400, "malformed")


def test_locked_task_instance_is_skipped(world: World, heartbeats: Heartbeats) -> None:
    """The lease is renewed; the task's own heartbeat, which may be minutes old, is not waited for."""
    [(worker, grant)] = busy(world, 1)
    with held_by_another(world, "task_instance", str(grant.ti_id)):
        [answer] = heartbeats.handle_batch([beat(worker, lease(grant))])
    assert isinstance(answer, HeartbeatResponse)
    row, task = world.row(str(grant.item_id)), world.task(str(grant.item_id))
    assert row.renewed_at == answer.server_time > task.last_heartbeat_at


def test_batched_heartbeats_are_independent(world: World, heartbeats: Heartbeats) -> None:
    """One worker is revoked, one never enrolled, one is to drain, one sends twice, one names another's lease, one's
    task was marked elsewhere: each gets its own outcome, and the plain ones are answered."""
    plain, revoked, unknown, drained, thief = (used(world) for _ in range(5))
    (holder, grant), (marked, marked_grant) = busy(world, 2)
    world.set_task_state(str(marked_grant.item_id), "failed")
    with world.metadata.session() as session:
        revocations.add(session, "worker", revoked.name.worker, "stolen", "test")
        workers.set_wanted(session, drained.name.worker, "draining")
        session.delete(workers.get(session, unknown.name.worker))
        session.commit()
    answers = heartbeats.handle_batch(
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
        # None: not answered in the batch, but alone after it, as for a repeated, foreign or cancelled lease.
        *(HeartbeatResponse, Refused, type(None), HeartbeatResponse),
        *(type(None), type(None), HeartbeatResponse, type(None)),
    ]
    assert isinstance(answers[1], Refused)
    assert answers[1].reason is RefusalReason.REVOKED
    assert isinstance(answers[3], HeartbeatResponse)
    assert any(isinstance(command, DrainCommand) for command in answers[3].commands)


def test_unlisted_lease_stays_in_batch(world: World, heartbeats: Heartbeats) -> None:
    """A claim whose answer may still be on its way is left alone, and its worker answered with the others."""
    [(worker, grant)] = busy(world, 1)
    [answer] = heartbeats.handle_batch([beat(worker)])
    assert isinstance(answer, HeartbeatResponse)
    assert world.row(str(grant.item_id)).state == "claimed"
    [done] = worker.exchange(finished(grant, 1)).results
    assert done.status == 204


def test_heartbeat_requires_scope(world: World, heartbeats: Heartbeats) -> None:
    """A heartbeat without its scope is refused before its worker is read; the others are answered."""
    plain, other = used(world), used(world)
    someone, said = beat(other)
    narrow = Caller(someone.name, someone.certificate, Scopes.parse(["connections:read"]), someone.address)
    first, second = heartbeats.handle_batch([(narrow, said), beat(plain)])
    assert isinstance(first, Refused)
    assert isinstance(second, HeartbeatResponse)
