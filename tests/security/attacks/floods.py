"""Attacks that take the gateway's places, threads or event loop: findings 6, 7 and 17.

Each leaves its connections open while a worker, or an operator, goes about its business at the first try.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime

import httpx
from tests.integration.gateway.world import VERSIONS, Worker, World, client_context
from tests.security.registry import attack

OPENED_AT_ONCE = 16
# Several times the requests that the work pool of the attacked gateway has room for (32 a thread), and more than the 32 of
# the operators' pool. The first bodies end after 30 s, so that a busy machine may not have all of them open at once.
HALF_BODIES = 300
HALF_OPERATOR_BODIES = 48
CONNECTIONS_PER_ADDRESS = 400
WORK_THREADS = 1
"""Settings of the attacked gateway: more connections than half bodies, and fewer than by default, as the threads."""
HEAD = b"Host: x\r\nAirBridge-Protocol: 1\r\nContent-Type: application/json\r\n"
HALF_ENROLMENT = b"POST /edge/v1/enrol HTTP/1.1\r\n" + HEAD + b"Content-Length: 5000\r\n\r\n{"
HALF_REVOCATION = b"POST /operator/v1/revocations HTTP/1.1\r\n%sContent-Length: 5000\r\n\r\n{"
HALF_HEAD = b"POST /edge/v1/heartbeat HTTP/1.1\r\nHost: x\r\nX-Slow: "
# CPU seconds of a refusal: far more than it takes, far less than parsing took (4 s and 35 s).
CHEAP = 1.0


def opened(port: int, context: ssl.SSLContext, sent: bytes = b"") -> socket.socket:
    """Open a TLS connection, and send the beginning of a request."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=30)
    secured = context.wrap_socket(plain, server_hostname="127.0.0.1")
    # The gateway may have closed it already: it evicts the oldest.
    with contextlib.suppress(OSError):
        secured.sendall(sent)
    return secured


@contextmanager
def flood(port: int, senders: Sequence[tuple[ssl.SSLContext, bytes]]) -> Iterator[list[socket.socket]]:
    """Hold one connection for each sender open."""
    with ThreadPoolExecutor(OPENED_AT_ONCE) as pool:
        sockets = list(pool.map(lambda sender: opened(port, *sender), senders))
    try:
        yield sockets
    finally:
        for each in sockets:
            each.close()


def stranger(world: World) -> ssl.SSLContext:
    """TLS context without a certificate."""
    return client_context(world.ca.certificate_pem)


class Business:
    """An ordinary worker's requests, prepared so that they take little time once a flood is under way."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._worker = world.worker()
        self._other = Worker(world, "eu-west-1", "default", f"worker-{next(world.number)}")
        self._join_token = world.join_token()
        [item] = world.items()
        self._envelope = world.envelope(item)
        self._worker.beat()

    def go_on(self) -> None:
        """Send a heartbeat on an open connection, claim on a new one, and enrol another worker: each once."""
        self._worker.beat()
        self._worker.close()
        assert len(self._worker.claim(self._envelope).grants) == 1
        self._other.enrol(self._join_token)
        assert self._other.try_beat().status_code == 200


def revoke(operator: httpx.Client) -> None:
    """Revoke a worker as an operator."""
    body = {"kind": "worker", "value": f"gone-{time.monotonic_ns()}", "reason": "stolen"}
    answer = operator.post("/operator/v1/revocations", json=body)
    assert answer.status_code == 200, f"revocation: {answer.status_code} {answer.text}"


@attack(6)
def half_sent_enrolments(world: World) -> None:
    """300 enrolments without a certificate whose bodies never end."""
    business = Business(world)
    with flood(world.gateway.edge_port, [(stranger(world), HALF_ENROLMENT)] * HALF_BODIES):
        business.go_on()


@attack(6)
def half_sent_exchanges(world: World) -> None:
    """300 exchanges of six stolen identities whose bodies never end; another worker goes on."""
    business, senders = Business(world), []
    for thief in [world.worker() for _ in range(6)]:
        context = client_context(world.ca.certificate_pem, thief.certificate_pem, thief.key)
        bearer = b"Authorization: Bearer " + thief.token.encode() + b"\r\n"
        begun = b"POST /edge/v1/exchange HTTP/1.1\r\n" + HEAD + bearer + b"Content-Length: 5000\r\n\r\n{"
        senders += [(context, begun)] * (HALF_BODIES // 6)
    with flood(world.gateway.edge_port, senders):
        business.go_on()


def _half_revocations(world: World, authorization: bytes) -> None:
    sent = HALF_REVOCATION % (HEAD + authorization)
    with (
        world.operator(world.access_token("revocations:*")) as operator,
        flood(world.gateway.operator_port, [(stranger(world), sent)] * HALF_OPERATOR_BODIES),
    ):
        revoke(operator)


@attack(6)
def half_sent_revocations_without_a_token(world: World) -> None:
    """48 revocations without a token whose bodies never end: an operator's own is answered."""
    _half_revocations(world, b"")


@attack(6)
def half_sent_revocations_with_a_wrong_token(world: World) -> None:
    """The same with a token that does not exist."""
    _half_revocations(world, b"Authorization: Bearer " + b"x" * 43 + b"\r\n")


@attack(6)
def bodies_are_read_for_no_one(world: World) -> None:
    """The operators' port answers a caller without a valid token before it has sent its body."""
    for authorization in (b"", b"Authorization: Bearer wrong\r\n"):
        sent = HALF_REVOCATION % (HEAD + authorization)
        with flood(world.gateway.operator_port, [(stranger(world), sent)]) as [connection]:
            connection.settimeout(20)
            assert connection.recv(4096).startswith(b"HTTP/1.1 401")
            assert _is_closed(connection), "the connection waits for the rest of the body"


@attack(6)
def slow_heads(world: World) -> None:
    """300 requests whose heads never end."""
    business = Business(world)
    with flood(world.gateway.edge_port, [(stranger(world), HALF_HEAD)] * HALF_BODIES):
        business.go_on()


@attack(6)
def slow_readers(world: World) -> None:
    """100 connections that ask for the API's description fifty times each and read nothing."""
    business = Business(world)
    asked = b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n" * 50
    with flood(world.gateway.edge_port, [(stranger(world), asked)] * 100):
        business.go_on()


@attack(6)
def many_connections(world: World) -> None:
    """More connections from the worker's own address than one address may have; none sends anything."""
    business = Business(world)
    count = CONNECTIONS_PER_ADDRESS + 100
    with flood(world.gateway.edge_port, [(stranger(world), b"")] * count) as connections:
        business.go_on()
        assert _is_closed(connections[0]), "the oldest connection is still open"


@attack(6)
def health_checks(world: World) -> None:
    """500 checks of readiness at once, which anybody may ask for, take one query of the database."""
    business = Business(world)
    asked = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n" * 10
    with flood(world.gateway.edge_port, [(stranger(world), asked)] * 50):
        business.go_on()


@attack(6)
def endless_trailers(world: World) -> None:
    """A header after a chunked body that never ends: the parser would keep it in memory."""
    begun = (
        b"POST /edge/v1/enrol HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\n{\r\n0\r\nX: "
    )
    _refused_while_sending(world, begun, b"x" * 65_536)


@attack(6)
def endless_chunk_extensions(world: World) -> None:
    """A chunk's extension that never ends."""
    begun = b"POST /edge/v1/enrol HTTP/1.1\r\n" + HEAD + b"Transfer-Encoding: chunked\r\n\r\n1;x="
    _refused_while_sending(world, begun, b"x" * 65_536)


@attack(6)
def many_headers(world: World) -> None:
    """Thousands of short headers, within the size of a head."""
    worker = world.worker()
    answer = worker.post("heartbeat", b"{}", {f"x{number}": "" for number in range(2_000)})
    assert (answer.status_code, answer.headers["connection"]) == (400, "close"), answer.text


def _refused_while_sending(world: World, begun: bytes, more: bytes) -> None:
    """Send a megabyte; the connection must be closed before its end."""
    with flood(world.gateway.edge_port, [(stranger(world), begun)]) as [connection]:
        connection.settimeout(10)
        try:
            for _ in range(16):
                connection.sendall(more)
                time.sleep(0.05)
        except OSError:
            return
        assert _is_closed(connection), "a megabyte was taken"


def _is_closed(connection: socket.socket) -> bool:
    connection.settimeout(20)
    try:
        while connection.recv(65_536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def _cpu(ask: Callable[[], int]) -> tuple[int, float]:
    """Return the status of an answer, and the CPU seconds of this process, in which the gateway runs, until then."""
    began = time.process_time()
    status = ask()
    return status, time.process_time() - began


def _heartbeat_with(faults: int) -> bytes:
    """Return a heartbeat with so many leases that are none."""
    beat = {
        "sent_at": datetime.now(UTC).isoformat(),
        "versions": VERSIONS.model_dump(),
        "slots_total": 1,
        "slots_used": 0,
        "leases": [0] * faults,
    }
    return json.dumps(beat, separators=(",", ":")).encode()


@attack(7)
def enrolment_with_bad_headers(world: World) -> None:
    """220 kB with 25,000 headers of the wrong type, ten times."""
    thief = Worker(world, "eu-west-1", "default", "stranger")
    join = {
        "method": "aws_iam",
        "url": "u",
        "headers": {str(number): 0 for number in range(25_000)},
        "body": "b",
    }
    body = json.dumps(thief.enrolment("x") | {"join": join}, separators=(",", ":")).encode()
    assert len(body) < 262_144
    for _ in range(10):
        assert thief.post("enrol", body).status_code == 413


@attack(7)
def heartbeat_of_a_megabyte_of_faults(world: World) -> None:
    """1 MiB of leases that are none."""
    thief = world.worker()
    sent = _heartbeat_with(520_000)
    status, seconds = _cpu(lambda: thief.post("heartbeat", sent).status_code)
    assert (status, seconds < CHEAP) == (413, True), f"{status} after {seconds:.1f} s of CPU"


@attack(7)
def heartbeat_within_bounds_of_faults(world: World) -> None:
    """As many faults as the bounds let through: the first one ends the parsing."""
    thief = world.worker()
    answer = thief.post("heartbeat", _heartbeat_with(40_000))
    assert (answer.status_code, answer.json()["detail"]) == (
        400,
        "leases.0: Input should be an object",
    ), answer.text


@attack(7)
def exchange_of_four_megabytes_of_faults(world: World) -> None:
    """4 MiB of records that are none."""
    thief = world.worker()
    sent = b'{"records":[' + b",".join([b"0"] * 2_000_000) + b"]}"
    status, seconds = _cpu(lambda: thief.post("exchange", sent).status_code)
    assert (status, seconds < CHEAP) == (413, True), f"{status} after {seconds:.1f} s of CPU"


@attack(7)
def exchange_with_a_hostile_text(world: World) -> None:
    """An exchange of a single record whose body is 4 MB of empty lists: neither parsed nor given to Airflow."""
    thief = world.worker()
    [item] = world.items()
    grant = thief.grant(item)
    record = {
        "item_id": str(grant.item_id),
        "epoch": grant.epoch,
        "seq": 1,
        "method": "POST",
        "path": f"xcoms/{grant.ti['dag_id']}/{grant.ti['run_id']}/{grant.ti['task_id']}/key",
        "body": "[" + ",".join(["[]"] * 1_300_000) + "]",
        "recorded_at": datetime.now(UTC).isoformat(),
    }
    answer = thief.post("exchange", {"records": [record]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["results"][0]["status"] in {403, 422}, answer.text


FLOOD_ATTACKS: tuple[Callable[[World], None], ...] = (
    half_sent_enrolments,
    half_sent_exchanges,
    half_sent_revocations_without_a_token,
    half_sent_revocations_with_a_wrong_token,
    bodies_are_read_for_no_one,
    slow_heads,
    slow_readers,
    many_connections,
    health_checks,
    endless_trailers,
    endless_chunk_extensions,
    many_headers,
    enrolment_with_bad_headers,
    heartbeat_of_a_megabyte_of_faults,
    heartbeat_within_bounds_of_faults,
    exchange_of_four_megabytes_of_faults,
    exchange_with_a_hostile_text,
)
