"""Captured credentials and messages are useless later and elsewhere: over real TLS, with the bytes that were really sent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import func, select
from tests.integration.gateway.test_security import requests_of
from tests.integration.gateway.world import (
    HOUR,
    VERSIONS,
    Worker,
    World,
    cancels,
    csr_pem,
    finished,
    lease,
    xcom,
    xcom_path,
)

from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger.models import AuditRow, ItemState


def stolen_by(world: World, victim: Worker, *, with_token: bool) -> Worker:
    """Return a worker with an identity of its own, and optionally the victim's access token."""
    thief = world.worker(victim.name.region, victim.name.pool)
    if with_token:
        thief.token = victim.token
    return thief


def test_a_captured_message_is_granted_once(world: World) -> None:
    """The signed work item from the queue, claimed again by the holder, by another, and after the task has ended."""
    [item] = world.items()
    captured = world.envelope(item)
    worker, other = world.worker(), world.worker()
    grant = worker.claim(captured).grants[0]
    assert [refusal.reason for refusal in other.claim(captured).refusals] == [RefusalReason.ALREADY_CLAIMED]
    worker.exchange(finished(grant, 1))
    for replayer in (worker, other):
        answer = replayer.claim(captured)
        assert not answer.grants
        assert answer.refusals[0].reason in {RefusalReason.SETTLED, RefusalReason.STALE_EPOCH}


def test_captured_message_becomes_stale(world: World) -> None:
    """An attempt's message is good for one grant: once a later one was given, the old message is of a stale epoch."""
    [item] = world.items()
    captured = world.envelope(item)
    first, second = world.worker(), world.worker()
    grant = first.claim(captured).grants[0]
    first.release(lease(grant))
    again = second.claim(world.envelope(item)).grants[0]
    assert again.epoch > grant.epoch
    [refusal] = first.claim(captured).refusals
    assert refusal.reason in {RefusalReason.STALE_EPOCH, RefusalReason.ALREADY_CLAIMED}
    assert world.row(item).worker_id == second.name.worker


def test_misdirected_message_is_not_granted(world: World) -> None:
    """Carried to where it was not sent, a message is refused by the place that is signed into it."""
    items = {
        place: world.items(region=place[0], pool=place[1])[0]
        for place in (("us-east-1", "default"), ("eu-west-1", "gpu"))
    }
    worker = world.worker("eu-west-1", "default")
    reasons = [worker.claim(world.envelope(item)).refusals[0].reason for item in items.values()]
    assert reasons == [RefusalReason.WRONG_REGION, RefusalReason.WRONG_POOL]


def test_a_late_message_is_not_granted(world: World) -> None:
    """A message kept past its expiry, judged by the database's clock."""
    [item] = world.items()
    captured = world.envelope(item, ttl=timedelta(seconds=-1))
    assert world.worker().claim(captured).refusals[0].reason is RefusalReason.EXPIRED
    assert world.row(item).state == ItemState.PLACED


@pytest.mark.parametrize("with_token", [False, True])
def test_captured_grant_is_useless(world: World, with_token: bool) -> None:
    """Item and epoch of another worker's grant, under one's own certificate: nothing is reported, renewed or released;
    with the other's token the identity itself is refused."""
    [item] = world.items()
    victim = world.worker()
    grant = victim.grant(item)
    thief = stolen_by(world, victim, with_token=with_token)
    if with_token:
        for what, body in requests_of(world, item).items():
            assert thief.post(what, body).status_code == 401, what
    else:
        [result] = thief.exchange(finished(grant, 1)).results
        assert (result.status, result.refused) == (409, RefusalReason.NOT_HOLDER)
        assert [command.reason for command in cancels(thief.beat(lease(grant)))] == [RefusalReason.NOT_HOLDER]
        thief.release(lease(grant))
    assert world.row(item).worker_id == victim.name.worker
    assert world.row(item).state == ItemState.CLAIMED
    assert victim.exchange(finished(grant, 1)).results[0].status == 204


def test_a_captured_report_is_applied_once(world: World) -> None:
    """The same bytes again: answered as the first time and applied no more; with another content under the same number,
    answered with the first's result; after the end, or by another, refused."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    report = {"records": [xcom(grant, 1, "x", "once").model_dump(mode="json")]}
    first = worker.post("exchange", report)
    worker.exchange(xcom(grant, 2, "x", "newer"))
    again = worker.post("exchange", report)
    forged = worker.exchange(xcom(grant, 1, "x", "forged"))
    assert first.json()["results"][0]["status"] == again.json()["results"][0]["status"] == 201
    assert forged.results[0].status == 201
    [read] = worker.exchange(
        xcom(grant, 3, "x", None, "GET").model_copy(update={"body": None, "path": xcom_path(grant, "x")})
    ).results
    assert "newer" in (read.body or "")
    worker.exchange(finished(grant, 3))
    before = world.task(item).end_date
    replayed = worker.exchange(finished(grant, 4, "failed")).results[0]
    assert replayed.status == 409
    assert (world.task(item).state, world.task(item).end_date) == ("success", before)


def test_earlier_epoch_is_fenced(world: World) -> None:
    """Captured under epoch 1, sent when the item is held under epoch 2, by the former holder or by the present one."""
    [item] = world.items()
    first, second = world.worker(), world.worker()
    old = first.grant(item)
    captured = finished(old, 1, "failed")
    first.release(lease(old))
    new = second.grant(item)
    reasons = [worker.exchange(captured).results[0].refused for worker in (first, second)]
    assert set(reasons) <= {RefusalReason.STALE_EPOCH, RefusalReason.NOT_HOLDER}
    assert world.task(item).state == "running"
    assert second.exchange(finished(new, 1)).results[0].status == 204


def test_captured_heartbeat_renews_nothing(world: World) -> None:
    """Its bytes under another's certificate renew no lease; without one it is 401; after the end it renews nothing."""
    [item] = world.items()
    worker, other = world.worker(), world.worker()
    grant = worker.grant(item)
    captured = {
        **requests_of(world, item)["heartbeat"],
        "leases": [lease(grant).model_dump(mode="json")],
        "sent_at": (datetime.now(UTC) - HOUR).isoformat(),
    }
    until = world.row(item).lease_until
    answer = other.post("heartbeat", captured)
    assert [each["reason"] for each in answer.json()["commands"] if each["kind"] == "cancel"] == [
        "not_holder"
    ]
    stranger = Worker(world, "eu-west-1", "default", "stranger")
    stranger.token = worker.token
    assert stranger.post("heartbeat", captured).status_code == 401
    assert world.row(item).lease_until == until
    worker.exchange(finished(grant, 1))
    worker.post("heartbeat", captured)
    assert world.row(item).state == ItemState.SETTLED


def test_captured_enrolment_is_useless(world: World) -> None:
    """The whole request, join token and all: the token is used up, and the key was never in it."""
    worker = Worker(world, "eu-west-1", "default", "enrolled-once")
    token = world.join_token()
    body: dict[str, Any] = {
        "region": "eu-west-1",
        "pool": "default",
        "worker": "enrolled-once",
        "csr_pem": csr_pem(worker.key),
        "join": {"method": "token", "token": token},
        "versions": VERSIONS.model_dump(),
    }
    assert worker.post("enrol", body).status_code == 200
    assert worker.post("enrol", body).status_code == 403


def test_captured_renewal_is_useless(world: World) -> None:
    """Replayed by another worker it is answered with the replayer's own name, for a key the replayer does not have."""
    victim, thief = world.worker(), world.worker()
    captured = {
        "csr_pem": csr_pem(ec.generate_private_key(ec.SECP256R1())),
        "versions": VERSIONS.model_dump(),
    }
    victim.post("renew", captured).raise_for_status()
    answer = thief.post("renew", captured)
    assert answer.json()["worker_id"] == thief.name.worker
    stranger = Worker(world, "eu-west-1", "default", "stranger")
    stranger.token = victim.token
    assert stranger.post("renew", captured).status_code == 401


def test_recorded_handshake_cannot_be_replayed(world: World) -> None:
    """A stolen certificate without its key completes no handshake: TLS requires a signature each time."""
    victim = world.worker()
    thief = Worker(world, "eu-west-1", "default", victim.name.worker)
    own = world.ca.issue_worker(csr_pem(thief.key), victim.name, datetime.now(UTC), HOUR)
    # A certificate over the thief's key is another one: the stolen one goes with the victim's key only.
    assert own.public_bytes(Encoding.PEM).decode() != victim.certificate_pem
    thief.present(victim.certificate_pem, victim.token)
    with pytest.raises((httpx.TransportError, OSError)):
        thief.beat()


def test_foreign_replays_are_audited(world: World) -> None:
    """A report for what is held by another leaves a row: who, and why."""
    [item] = world.items()
    victim = world.worker()
    grant = victim.grant(item)
    thief = stolen_by(world, victim, with_token=False)
    thief.exchange(finished(grant, 1))
    thief.token = victim.token
    assert thief.post("exchange", {"records": []}).status_code in {400, 401}
    with world.metadata.session() as session:
        query = select(func.count()).select_from(AuditRow).where(AuditRow.actor.contains(thief.name.worker))
        deadline = datetime.now(UTC) + timedelta(seconds=10)
        while session.execute(query).scalar_one() < 2 and datetime.now(UTC) < deadline:
            # Ends the transaction, so that the next query sees rows that were committed meanwhile.
            session.rollback()
        assert session.execute(query).scalar_one() >= 2
