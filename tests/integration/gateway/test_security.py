"""Refused callers: over real TLS, with forged, stolen, stale and foreign credentials and messages."""

from __future__ import annotations

import base64
import json
import ssl
import time
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from sqlalchemy import select
from tests.integration.gateway.world import (
    HOUR,
    TRUST_DOMAIN,
    VERSIONS,
    Worker,
    World,
    cancels,
    csr_pem,
    finished,
    lease,
    record,
    xcom,
    xcom_path,
)

from airbridge.control_plane.identity.ca import CertificateAuthority
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.core.protocol import Disposition, LeaseRef, Record, RefusalReason
from airbridge.core.signing import Signer
from airbridge.executor.ledger.identity import revocations
from airbridge.executor.ledger.models import EventRow, ItemState

ENDPOINTS = ("renew", "claim", "heartbeat", "exchange", "release")


def requests_of(world: World, item: str) -> dict[str, Any]:
    """A well-formed request for every endpoint."""
    now = datetime.now(UTC).isoformat()
    reference = {"item_id": item, "epoch": 1}
    call = {"seq": 1, "method": "GET", "path": "variables/x", "recorded_at": now}
    return {
        "renew": {
            "csr_pem": csr_pem(ec.generate_private_key(ec.SECP256R1())),
            "versions": VERSIONS.model_dump(),
        },
        "claim": {"envelopes": [world.envelope(item)]},
        "heartbeat": {"sent_at": now, "versions": VERSIONS.model_dump(), "slots_total": 1, "slots_used": 0},
        "exchange": {"records": [{**reference, **call}]},
        "release": {"items": [reference]},
    }


def assert_nothing_happened(world: World, item: str) -> None:
    """Assert that the item was not granted, and that its task did not start."""
    assert world.row(item).state == ItemState.PLACED
    assert world.task(item).state == "queued"


def impostor(world: World, ca: CertificateAuthority, *, of: Worker, now: datetime | None = None) -> Worker:
    """A worker with a certificate of its own for another's name, and the other's token."""
    worker = Worker(world, of.name.region, of.name.pool, of.name.worker)
    leaf = ca.issue_worker(csr_pem(worker.key), of.name, now or datetime.now(UTC), HOUR)
    # The chain too: a gateway trusts roots only.
    worker.present(leaf.public_bytes(Encoding.PEM).decode() + ca.chain_pem, of.token)
    return worker


# --- Certificates ---


def test_without_a_certificate_only_enrolment_answers(world: World) -> None:
    """Every other endpoint is 401, whatever token comes with it, and the refusal is an event."""
    [item] = world.items()
    stranger = Worker(world, "eu-west-1", "default", "stranger")
    stranger.token = world.worker().token
    for what, body in requests_of(world, item).items():
        response = stranger.post(what, body)
        assert (response.status_code, response.json()["reason"]) == (401, "forbidden"), what
    assert_nothing_happened(world, item)
    assert {f"POST /edge/v1/{what}" for what in ENDPOINTS} <= {
        event.detail["request"] for event in world.audited("request.refused")
    }


def eventually(world: World, before: int, why: str) -> None:
    """Wait for the audit row of a refused handshake: the client gets the refusal before it is written."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        found = world.audited("handshake.refused")[before:]
        if found:
            assert [(row.actor, why in row.detail["why"]) for row in found] == [("anonymous", True)], found
            assert (found[0].address or "").startswith("127.0.0.1:")
            return
        time.sleep(0.02)
    raise AssertionError("no handshake.refused in the audit trail")


def refuses_handshake(worker: Worker, body: dict[str, Any]) -> bool:
    try:
        worker.post("claim", body)
    except (httpx.TransportError, ssl.SSLError):
        return True
    return False


def test_foreign_ca_fails_handshake(world: World) -> None:
    """A certificate with the right name, signed by someone else, does not even get an answer."""
    [item] = world.items()
    victim = world.worker()
    before = len(world.audited("handshake.refused"))
    other = CertificateAuthority.generate(TRUST_DOMAIN, datetime.now(UTC))
    assert refuses_handshake(impostor(world, other, of=victim), requests_of(world, item)["claim"])
    assert_nothing_happened(world, item)
    eventually(world, before, "certificate")


def test_an_expired_certificate_ends_the_handshake(world: World) -> None:
    """A certificate that ran out an hour ago is of no use."""
    [item] = world.items()
    past = datetime.now(UTC) - 2 * HOUR
    before = len(world.audited("handshake.refused"))
    assert refuses_handshake(
        impostor(world, world.ca, of=world.worker(), now=past), requests_of(world, item)["claim"]
    )
    assert_nothing_happened(world, item)
    eventually(world, before, "expired")


def test_server_certificate_is_not_a_worker(world: World) -> None:
    """A server's certificate of the right CA cannot be used as a client's."""
    [item] = world.items()
    worker = Worker(world, "eu-west-1", "default", "server")
    pem, key = world.ca.issue_server(["localhost"], datetime.now(UTC), HOUR)
    loaded = load_pem_private_key(key, None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    worker.key = loaded
    worker.present(pem.decode(), world.worker().token)
    assert refuses_handshake(worker, requests_of(world, item)["claim"])


def test_tls_1_2_is_refused(world: World) -> None:
    """Neither listener accepts anything older than TLS 1.3."""
    for url in (world.edge_url, world.operator_url):
        context = ssl.create_default_context(cadata=world.ca.certificate_pem)
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        with httpx.Client(verify=context, trust_env=False) as client, pytest.raises(httpx.ConnectError):
            client.get(f"{url}/healthz")


def test_foreign_trust_domain_is_refused(world: World) -> None:
    """Our CA's signature is not enough: the name must be of this trust domain."""
    [item] = world.items()
    worker = Worker(world, "eu-west-1", "default", "foreign")
    name = WorkerName("elsewhere.test", "eu-west-1", "default", "foreign")
    leaf = world.ca.issue_worker(csr_pem(worker.key), name, datetime.now(UTC), HOUR)
    worker.present(leaf.public_bytes(Encoding.PEM).decode() + world.ca.chain_pem, world.worker().token)
    assert worker.post("claim", requests_of(world, item)["claim"]).status_code == 401
    assert_nothing_happened(world, item)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("worker", (403, "revoked")),
        ("certificate", (403, "revoked")),
        ("pool", (403, "revoked")),
        ("issuer", (401, "forbidden")),
    ],
)
def test_revocation_applies_to_next_request(world: World, kind: str, answer: tuple[int, str]) -> None:
    """Revoked by name, certificate, pool or CA: the very next request on the open connection is refused.

    A worker, certificate or pool that is revoked stops; a worker whose CA is revoked is ordered to enrol again.
    """
    item = world.items(region="eu-west-1", pool="gpu")[0]
    worker = world.worker(pool="gpu")
    worker.beat()
    leaf = x509.load_pem_x509_certificate((worker.certificate_pem or "").encode())
    value = {
        "worker": worker.name.worker,
        "certificate": leaf.fingerprint(hashes.SHA256()).hex(),
        "pool": "eu-west-1/gpu",
        "issuer": world.ca.key_id,
    }[kind]
    with world.metadata.session() as session:
        revocations.add(session, kind, value, "stolen", "test")  # type: ignore[arg-type]
        session.commit()
    try:
        for what, body in requests_of(world, item).items():
            response = worker.post(what, body)
            assert (response.status_code, response.json()["reason"]) == answer, what
    finally:
        with world.metadata.session() as session:
            revocations.remove(session, kind, value)  # type: ignore[arg-type]
            session.commit()
    assert_nothing_happened(world, item)


def test_fingerprint_is_revoked_in_any_case(world: World) -> None:
    """A fingerprint as openssl prints it, in upper case, revokes as well, and is taken back in lower case."""
    worker = world.worker()
    leaf = x509.load_pem_x509_certificate((worker.certificate_pem or "").encode())
    fingerprint = leaf.fingerprint(hashes.SHA256()).hex()
    asked = {"kind": "certificate", "value": fingerprint.upper(), "reason": "stolen"}
    with world.operator(world.access_token("revocations:*")) as operator:
        assert operator.post("/operator/v1/revocations", json=asked).status_code == 200
        assert worker.try_beat().status_code == 403
        gone = operator.delete(
            "/operator/v1/revocations", params={"kind": "certificate", "value": fingerprint}
        )
        assert gone.status_code == 200
    assert worker.try_beat().status_code == 200


# --- Tokens ---


def altered(token: str, **claims: Any) -> str:
    head, body, signature = token.split(".")
    changed = {**json.loads(base64.urlsafe_b64decode(body + "==")), **claims}
    text = base64.urlsafe_b64encode(json.dumps(changed).encode()).rstrip(b"=").decode()
    return f"{head}.{text}.{signature}"


@pytest.mark.parametrize("forgery", ["none", "garbage", "altered", "expired", "other", "operators"])
def test_token_of_other_certificate_is_refused(world: World, forgery: str) -> None:
    """No token, a forged or altered one, another worker's or an operator's: 401 at every endpoint."""
    [item] = world.items()
    worker = world.worker()
    worker.token = {
        "none": "",
        "garbage": "a.b.c",
        "altered": altered(worker.token, scopes=["work:*"]),
        "expired": altered(worker.token, exp=1),
        "other": world.worker().token,
        "operators": world.access_token("work:claim", "workers:*"),
    }[forgery]
    for what, body in requests_of(world, item).items():
        assert worker.post(what, body).status_code == 401, what
    assert_nothing_happened(world, item)


def test_certificate_header_is_ignored(world: World) -> None:
    """Headers in which proxies forward client certificates are ignored."""
    [item] = world.items()
    victim = world.worker()
    stranger = Worker(world, "eu-west-1", "default", "stranger")
    stranger.token = victim.token
    pem = (victim.certificate_pem or "").replace("\n", "%0A")
    spoofed = {
        "X-Forwarded-Client-Cert": f"Cert={pem};URI={victim.name.uri}",
        "X-SSL-Client-Cert": pem,
        "X-Forwarded-For": "127.0.0.1",
        "Client-Cert": pem,
    }
    assert stranger.post("claim", requests_of(world, item)["claim"], spoofed).status_code == 401


# --- Work items ---


def test_invalid_work_items_never_run(world: World) -> None:
    """Altered, foreign, expired and misdirected messages are refused, each with its reason; nothing starts."""
    [item] = world.items()
    worker = world.worker()
    good = world.envelope(item)
    envelope = json.loads(good)
    payload = json.loads(base64.urlsafe_b64decode(envelope["payload"] + "=="))
    payload["slots"] = 7
    text = base64.urlsafe_b64encode(json.dumps(payload).encode()).rstrip(b"=").decode()
    answer = worker.claim(
        json.dumps({**envelope, "payload": text}),
        world.envelope(item, Signer.generate()),
        json.dumps({**envelope, "kid": "0" * 16}),
        world.envelope(item, ttl=timedelta(seconds=-1)),
        world.envelope(item, region="us-east-1"),
        world.envelope(item, pool="gpu"),
        world.envelope(item, epoch=5),
        world.envelope(item, item_id=UUID(int=1)),
        good[:-20],
    )
    assert answer.grants == ()
    assert {refusal.index: refusal.reason for refusal in answer.refusals} == {
        0: RefusalReason.BAD_SIGNATURE,
        1: RefusalReason.BAD_SIGNATURE,
        2: RefusalReason.BAD_SIGNATURE,
        3: RefusalReason.EXPIRED,
        4: RefusalReason.WRONG_REGION,
        5: RefusalReason.WRONG_POOL,
        6: RefusalReason.STALE_EPOCH,
        7: RefusalReason.UNKNOWN_ITEM,
        8: RefusalReason.MALFORMED,
    }
    assert_nothing_happened(world, item)


def test_replayed_message_is_not_granted(world: World) -> None:
    """A captured message, claimed, released, claimed again or finished, never gives another worker anything."""
    [item] = world.items()
    message = world.envelope(item)
    worker, thief = world.worker(), world.worker()
    [grant] = worker.claim(message).grants
    assert [refusal.reason for refusal in thief.claim(message).refusals] == [RefusalReason.ALREADY_CLAIMED]
    worker.release(lease(grant))
    assert [refusal.reason for refusal in thief.claim(message).refusals] == [RefusalReason.STALE_EPOCH]
    again = worker.grant(item)
    worker.exchange(finished(again, 1))
    [refusal] = thief.claim(message).refusals
    assert (refusal.reason, refusal.disposition) == (RefusalReason.SETTLED, Disposition.DROP)


# --- Tasks of others ---


def test_worker_cannot_touch_foreign_task(world: World) -> None:
    """Reports, heartbeats and releases for another's item, or a settled one, change nothing and are written down."""
    [item] = world.items()
    holder, thief = world.worker(), world.worker()
    grant = holder.grant(item)
    answer = thief.exchange(
        xcom(grant, 1, "return_value", "stolen"),
        record(grant, 2, "GET", "variables/x"),
        finished(grant, 2, "failed"),
    )
    assert {(409, RefusalReason.NOT_HOLDER)} == {(result.status, result.refused) for result in answer.results}
    thief.release(lease(grant))
    assert [cancel.reason for cancel in cancels(thief.beat(lease(grant)))] == [RefusalReason.NOT_HOLDER]
    row = world.row(item)
    assert (row.worker_id, row.state, world.task(item).state) == (
        holder.name.worker,
        ItemState.CLAIMED,
        "running",
    )
    assert thief.name.worker in {event.worker_id for event in world.events("exchange.refused")}


def test_a_stale_epoch_is_fenced_off(world: World) -> None:
    """A result under an old epoch is refused after the work was given to another worker, and the new one's stands."""
    [item] = world.items()
    first, second = world.worker(), world.worker()
    old = first.grant(item)
    first.release(lease(old))
    new = second.grant(item)
    [late] = first.exchange(finished(old, 1, "failed")).results
    assert (late.status, late.refused) == (409, RefusalReason.STALE_EPOCH)
    assert [result.status for result in second.exchange(finished(new, 1)).results] == [204]
    assert world.task(item).state == "success"


def attempts(world: World, worker: Worker) -> list[tuple[Record, int]]:
    """Calls that a task may not make, and what each is answered."""
    mine, theirs = world.items(2)
    grant = worker.grant(mine)
    other = world.worker().grant(theirs)
    elsewhere = xcom_path(other, "return_value")
    state = {"state": "failed", "end_date": "2026-01-01T00:00:00Z"}
    running = {
        "state": "running",
        "hostname": "x",
        "unixname": "x",
        "pid": 1,
        "start_date": "2026-01-01T00:00:00Z",
    }
    tried = [
        ("PATCH", f"task-instances/{other.ti_id}/state", state, ""),
        ("PATCH", f"/task-instances/{other.ti_id}/state", state, ""),
        # the same by another spelling of the path
        ("PATCH", f"task-instances/%7Bx%7D/../{other.ti_id}/state", state, ""),
        ("PUT", f"task-instances/{other.ti_id}/rtif", {"a": "b"}, ""),
        ("PATCH", "task-instances/{ti}/run", running, ""),
        ("PUT", "task-instances/{ti}/heartbeat", {"hostname": "x", "pid": 1}, ""),
        ("POST", elsewhere, "1", ""),
        ("DELETE", elsewhere, None, ""),
        ("POST", elsewhere.replace("/return", "%2Freturn"), "1", ""),
        ("POST", xcom_path(grant, "x"), "1", "map_index=3"),
        ("POST", xcom_path(grant, "x"), "1", "map_index=-1&map_index=3"),
        ("GET", "health", None, ""),
        ("GET", "health/ping", None, ""),
        ("GET", "openapi.json", None, ""),
        ("GET", "../../api/v2/connections", None, ""),
        ("POST", "connections/x", {}, ""),
    ]
    return [(record(grant, 1, method, path, body, query), 403) for method, path, body, query in tried]


def test_task_reaches_only_its_own(world: World) -> None:
    """Other tasks' states and XComs, starting, heartbeats and everything unlisted are 403 to a task, and audited."""
    worker = world.worker()
    before = len(world.events("call.denied"))
    for number, (tried, status) in enumerate(attempts(world, worker), start=1):
        [result] = worker.exchange(tried.model_copy(update={"seq": number})).results
        assert (result.status, result.headers["content-type"]) == (status, "application/json"), tried
        assert json.loads(result.body or "")["detail"]["reason"] == "forbidden"
    # One for each of `attempts`.
    assert len(world.events("call.denied")) - before == 16


# --- Enrolment ---


def test_join_token_uses_and_expiry(world: World) -> None:
    """A one-use token enrols once; an expired, unknown or revoked one never."""
    token = world.join_token()
    Worker(world, "eu-west-1", "default", "once").enrol(token)
    for secret in (token, "abj_unknown", world.access_token("work:claim")):
        worker = Worker(world, "eu-west-1", "default", "twice")
        with pytest.raises(httpx.HTTPStatusError, match="403"):
            worker.enrol(secret)


@pytest.mark.parametrize(
    ("region", "pool", "status"),
    [("us-east-1", "default", 403), ("eu-west-1", "gpu", 403), ("mars-1", "default", 400)],
)
def test_join_token_is_bound_to_pool(world: World, region: str, pool: str, status: int) -> None:
    """A pool's token enrols no worker of another pool, and a refused attempt does not use it up."""
    token = world.join_token("eu-west-1", "default")
    with pytest.raises(httpx.HTTPStatusError, match=str(status)):
        Worker(world, region, pool, "wanderer").enrol(token)
    Worker(world, "eu-west-1", "default", f"settled-{region}-{pool}").enrol(token)


def test_enrolment_requires_compatible_versions(world: World) -> None:
    """Parity is judged at enrolment, the token is not used up, and the refusal is visible to operators as the reason why the pool is empty.

    Repeated attempts are recorded once.
    """
    token = world.join_token()
    worker = Worker(world, "eu-west-1", "default", "old")
    asked = {
        "region": "eu-west-1",
        "pool": "default",
        "worker": "old",
        "csr_pem": csr_pem(worker.key),
        "join": {"method": "token", "token": token},
        "versions": {**VERSIONS.model_dump(), "airflow": "2.10.0"},
    }
    worker.post("enrol", asked)
    response = worker.post("enrol", asked)
    assert (response.status_code, response.json()["reason"]) == (403, "parity")
    with world.metadata.session() as session:
        [noted] = session.scalars(select(EventRow).where(EventRow.event == "enrol.refused"))
    assert ("eu-west-1", "old", "default") == (noted.region, noted.worker_id, noted.detail["pool"])
    assert "Airflow is 2.10.0" in noted.detail["why"]
    worker.enrol(token)


def test_disabled_join_method_is_named(world: World) -> None:
    """The refusal of a join method that is not enabled names the method and the pool."""
    worker = Worker(world, "eu-west-1", "default", "cloud")
    join = {"method": "aws_iam", "url": "https://sts.amazonaws.com", "headers": {}, "body": ""}
    with pytest.raises(httpx.HTTPStatusError, match="403") as refused:
        worker.enrol("unused", join=join)
    assert "aws_iam is not enabled for pool default@eu-west-1" in refused.value.response.json()["detail"]


def test_repeated_enrolment_revokes_certificate(world: World) -> None:
    """A name has one holder: after a reinstallation the old certificate is refused."""
    first = world.worker(name="reborn")
    first.beat()
    second = Worker(world, "eu-west-1", "default", "reborn")
    second.rejoin_key = first.rejoin_key
    second.enrol(world.join_token())
    second.beat()
    response = first.post("heartbeat", requests_of(world, world.items()[0])["heartbeat"])
    assert (response.status_code, response.json()["reason"]) == (403, "revoked")


def test_a_name_belongs_to_one_pool(world: World) -> None:
    """A worker's name cannot be taken over from another region."""
    world.worker(name="rooted")
    with pytest.raises(httpx.HTTPStatusError, match="403"):
        Worker(world, "us-east-1", "default", "rooted").enrol(world.join_token("us-east-1"))


def test_worker_renews_credentials(world: World) -> None:
    """Renewal gives new credentials for the same name; the new pair works."""
    worker = world.worker()
    key = ec.generate_private_key(ec.SECP256R1())
    response = worker.post("renew", {"csr_pem": csr_pem(key), "versions": VERSIONS.model_dump()})
    assert response.status_code == 200
    answer = response.json()
    worker.key = key
    worker.present(answer["certificate_pem"], answer["access_token"])
    worker.beat()


# --- The wire itself ---


def test_bad_requests_are_named_and_harmless(world: World) -> None:
    """Unreadable bodies are 400 naming the field; paths, methods, sizes and versions have their own statuses."""
    worker = world.worker()
    assert worker.post("claim", b"{").status_code == 400
    response = worker.post("claim", {"envelopes": "one"})
    assert (response.status_code, response.json()["detail"].split(":")[0]) == (400, "envelopes")
    assert worker.post("nothing", {}).status_code == 404
    assert worker.client.get("/edge/v1/claim").status_code == 405
    assert worker.post("claim", b" " * 3_000_000).status_code == 413
    assert worker.post("claim", {}, {"AirBridge-Protocol": "99"}).status_code == 426
    assert worker.post("claim", {}, {"AirBridge-Protocol": "x"}).status_code == 426


def test_endless_head_is_rejected(world: World) -> None:
    """Headers past the limit end the connection."""
    worker = world.worker()
    try:
        response = worker.post("claim", {}, {"X-Long": "x" * 200_000})
    except httpx.TransportError:
        return
    assert (response.status_code, response.headers["connection"]) == (400, "close")


def test_health_needs_no_identity(world: World) -> None:
    """Both listeners answer health checks without an identity."""
    context = ssl.create_default_context(cadata=world.ca.certificate_pem)
    for url in (world.edge_url, world.operator_url):
        with httpx.Client(base_url=url, verify=context, trust_env=False) as client:
            assert client.get("/healthz").json() == {"status": "ok"}
            assert client.get("/readyz").json() == {"status": "ready"}


def test_an_unknown_lease_is_let_go(world: World) -> None:
    """The release of an unknown lease is answered, so that a worker can forget it."""
    world.worker().release(
        LeaseRef.model_validate({"item_id": "00000000-0000-0000-0000-000000000009", "epoch": 1})
    )
