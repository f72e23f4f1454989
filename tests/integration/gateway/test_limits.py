"""The gateway under too many requests, slow requests, and forged proxy headers."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from tests.integration.gateway.test_security import requests_of
from tests.integration.gateway.world import Worker, World, client_context, running, xcom
from tests.security.attacks.stolen_identities import leases_of_nobody

from airbridge.control_plane.gateway.api import edge, handling
from airbridge.control_plane.gateway.api.body_reader import BodyLimit
from airbridge.control_plane.gateway.net import http
from airbridge.core.protocol import PROTOCOL_VERSION, VERSION_HEADER, ExchangeRequest

# More than the gateway's 8 threads, fewer than the 1,024 connections of one address.
SLOW = 500


def connected(world: World) -> socket.socket:
    return socket.create_connection(("127.0.0.1", world.gateway.edge_port), timeout=10)


def silent(world: World) -> socket.socket:
    """Open a connection on which nothing is ever sent."""
    return connected(world)


def half_a_head(world: World) -> socket.socket:
    """A TLS connection with a request that never ends."""
    secured = client_context(world.ca.certificate_pem).wrap_socket(
        connected(world), server_hostname="127.0.0.1"
    )
    with contextlib.suppress(OSError):
        secured.send(b"POST /edge/v1/heartbeat HTTP/1.1\r\nHost: x\r\nX-Slow: ")
    return secured


def half_a_body(world: World) -> socket.socket:
    """A TLS connection with a body that never ends."""
    secured = client_context(world.ca.certificate_pem).wrap_socket(
        connected(world), server_hostname="127.0.0.1"
    )
    with contextlib.suppress(OSError):
        secured.send(
            # Enrolment is the one endpoint that reads a body without a certificate.
            b"POST /edge/v1/enrol HTTP/1.1\r\nHost: x\r\nAirBridge-Protocol: 1\r\nContent-Length: 5000\r\n\r\n{"
        )
    return secured


def test_slow_connections_leave_heartbeats_alone(world: World) -> None:
    """From the worker's own address: a third send nothing, a third half a head, a third half a body. A worker beats on
    an old and on a new connection, claims, and enrols, each at the first try."""
    worker, late = world.worker(), world.worker()
    [item] = world.items()
    # Its next heartbeat needs a connection of its own, opened among the slow ones.
    late.close()
    makers = [(silent, half_a_head, half_a_body)[number % 3] for number in range(SLOW)]
    with ThreadPoolExecutor(16) as pool:
        slow = list(pool.map(lambda make: make(world), makers))
    try:
        worker.beat()
        late.beat()
        late.grant(item)
        world.worker().beat()
    finally:
        for each in slow:
            each.close()


def test_foreign_leases_cost_little(world: World) -> None:
    """A heartbeat is answered for the leases of known work items; few others are answered or audited."""
    leases_of_nobody(world)


@pytest.fixture
def tight(world: World, tmp_path: Path) -> Iterator[World]:
    """A second gateway on the same database, with small limits."""
    with running(
        world.metadata,
        tmp_path,
        gateway_requests_per_second_per_worker=1.0,
        gateway_requests_per_second_per_address=1.0,
        gateway_max_connections_per_address=3,
    ) as it:
        yield it
        it.close_workers()


def test_rate_limited_client_gets_retry_after(tight: World) -> None:
    """Beyond the burst of a worker, or of an anonymous address, the answer is 429 with Retry-After; other workers are not affected."""
    greedy, modest = tight.worker(), tight.worker()
    beat = requests_of(tight, tight.items()[0])["heartbeat"]
    answers = [greedy.post("heartbeat", beat) for _ in range(8)]
    refused = [answer for answer in answers if answer.status_code == 429]
    assert refused, [answer.status_code for answer in answers]
    assert (refused[0].json()["reason"], refused[0].headers["Retry-After"]) == ("overloaded", "1")
    assert modest.post("heartbeat", beat).status_code == 200
    stranger = Worker(tight, "eu-west-1", "default", "stranger")
    assert 429 in [stranger.post("heartbeat", beat).status_code for _ in range(8)]


def test_edge_rates_spare_operators(tight: World) -> None:
    """A stranger at the operator's own address asks too much of the edge port: the operator is answered."""
    stranger = Worker(tight, "eu-west-1", "default", "stranger")
    with tight.operator(tight.access_token("workers:read")) as operator:
        assert 429 in [stranger.post("enrol", b"").status_code for _ in range(8)]
        assert operator.get("/operator/v1/workers").status_code == 200


def test_connections_without_a_certificate_are_bounded(tight: World) -> None:
    """Beyond the bound the oldest is closed; a worker from the same address keeps its own."""
    worker = tight.worker()
    worker.beat()
    opened = [half_a_head(tight) for _ in range(5)]
    try:
        for each in opened[:2]:
            each.settimeout(10)
            with contextlib.suppress(ssl.SSLError, ConnectionError):
                assert each.recv(1) == b""
        # The newest stays open: the timeout shows that the gateway has not closed it.
        opened[-1].settimeout(0.3)
        with pytest.raises(TimeoutError):
            opened[-1].recv(1)
        worker.beat()
    finally:
        for each in opened:
            each.close()


@pytest.mark.parametrize(
    "header",
    [
        "X-Forwarded-Client-Cert",
        "X-SSL-Client-Cert",
        "X-Amzn-Mtls-Clientcert",
        "Ssl-Client-Cert",
        "Forwarded",
        "X-Forwarded-For",
    ],
)
def test_a_forwarded_certificate_is_nobodys(world: World, header: str) -> None:
    """Another worker's certificate in a header, with its token, is ignored: 401 without a certificate on the connection,
    and the caller's own name with one. Only TLS identifies the caller."""
    victim, thief = world.worker(), world.worker()
    pem = (victim.certificate_pem or "").replace("\n", "%0A")
    value = {"Forwarded": "for=192.0.2.1", "X-Forwarded-For": "192.0.2.1"}.get(header, f'Hash=1;Cert="{pem}"')
    [item] = world.items()
    beat = requests_of(world, item)["heartbeat"]
    stranger = Worker(world, "eu-west-1", "default", "stranger")
    stranger.token = victim.token
    assert stranger.post("heartbeat", beat, {header: value}).status_code == 401
    thief.token = victim.token
    assert thief.post("heartbeat", beat, {header: value}).status_code == 401
    assert "192.0.2.1" not in json.dumps([row.address for row in world.audited("request.refused")])


def test_listeners_have_separate_limits(world: World) -> None:
    """Neither listener serves the other's endpoints, whatever the token."""
    token = world.access_token("workers:*", "tokens:*", "dags:*")
    worker = world.worker()
    worker.token = token
    assert (
        worker.client.get("/operator/v1/workers", headers={"Authorization": f"Bearer {token}"}).status_code
        == 404
    )
    with world.operator(token) as operator:
        assert operator.post("/edge/v1/claim", json={}).status_code == 404


def test_the_edge_api_describes_itself(world: World) -> None:
    """``/openapi.json`` lists every endpoint with the wire models; it is public, and contains nothing else."""
    found = Worker(world, "eu-west-1", "default", "reader").client.get("/openapi.json").json()
    assert {path.rpartition("/")[2] for path in found["paths"]} == {
        "enrol",
        "renew",
        "claim",
        "credentials",
        "heartbeat",
        "exchange",
        "release",
    }
    body = found["paths"]["/edge/v1/claim"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    assert body == {"$ref": "#/components/schemas/ClaimRequest"}
    assert "envelopes" in found["components"]["schemas"]["ClaimRequest"]["properties"]


@pytest.mark.parametrize(("pause", "accepted"), [(0.15, True), (0.5, False)])
def test_large_results_over_a_slow_line(
    world: World, monkeypatch: pytest.MonkeyPatch, pause: float, accepted: bool
) -> None:
    """A worker's exchange may take as long as its bytes need at the slowest rate; one that is slower is given up."""
    rate = 50_000
    monkeypatch.setattr(edge, "EXCHANGE_BODY", BodyLimit(64 * 1024 * 1024, seconds=0.3, slowest=rate))
    monkeypatch.setattr(http, "MESSAGE_SECONDS", 0.5)
    monkeypatch.setattr(http, "SLOWEST", rate)
    monkeypatch.setattr(handling, "REQUEST_SECONDS", 0.7)
    worker = world.worker()
    sent = xcom(worker.grant(world.items()[0]), 1, "large", "x" * 100_000)
    content = ExchangeRequest(records=(sent,)).model_dump_json().encode()

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(content), 10_000):
            yield content[start : start + 10_000]
            time.sleep(pause)

    headers = {
        VERSION_HEADER: str(PROTOCOL_VERSION),
        "Authorization": f"Bearer {worker.token}",
        "Content-Length": str(len(content)),
    }
    try:
        response = worker.client.post("/edge/v1/exchange", content=pieces(), headers=headers)
    except httpx.TransportError:
        status = 408  # the connection was closed while the body was being sent
    else:
        status = response.status_code
    assert status == (200 if accepted else 408)
