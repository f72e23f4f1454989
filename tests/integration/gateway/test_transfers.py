"""Queue, DAG code and logs through the gateway: what an honest worker gets, and what a hostile one does not."""

from __future__ import annotations

import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from tests.integration.gateway.world import Worker, World, client_context, running
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.transfer import caller_checks
from airbridge.control_plane.gateway.transfer.sources import Sources
from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.aws.queue import MemoryQueue, Outgoing, Received
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ObjectNotFound, QueueError, StoreError
from airbridge.core.protocol import VERSION_HEADER, Grant
from airbridge.core.wire.transfers import MAX_PARTS, PART_BYTES
from airbridge.edge_worker.transfer.client import Transfers
from airbridge.edge_worker.transfer.queue import GatewayQueue
from airbridge.edge_worker.transfer.store import GatewayStore
from airbridge.executor.ledger.identity import revocations

CATALOGUE = Catalogue.parse(
    """
    home_region = "us-east-1"
    [[region]]
    name = "us-east-1"
    log_bucket = "us-logs"
    bundle_bucket = "us-dags"
    [[region.pool]]
    queue_url = "http://127.0.0.1:1/us"
    [[region]]
    name = "factory-7"
    transport = "gateway"
    log_bucket = "factory-logs"
    bundle_bucket = "factory-dags"
    [[region.pool]]
    queue_url = "http://127.0.0.1:1/factory"
    [[region.pool]]
    name = "press"
    queue_url = "http://127.0.0.1:1/press"
    """
)
DIGEST = "sha256:" + "a" * 64
# Clients of the test that runs.
OPEN: list[Transfers] = []
ARCHIVE = f"bundles/main/{'a' * 64}.tar.gz"


@dataclass
class Factory:
    """The queues and buckets behind the gateway."""

    queues: dict[str, MemoryQueue] = field(default_factory=dict)
    buckets: dict[str, MemoryStore] = field(default_factory=dict)
    #: Seconds that the queues' clock is ahead.
    ahead: float = 0.0

    @property
    def sources(self) -> Sources:
        return Sources(
            CATALOGUE,
            lambda _, pool: self.queue(pool.name),
            lambda _, bucket: self.buckets.setdefault(bucket, MemoryStore(bucket)),
        )

    def queue(self, pool: str = "default") -> MemoryQueue:
        return self.queues.setdefault(pool, self._queue())

    def drain(self) -> None:
        """Delete all messages, those that are hidden too."""
        self.ahead += 3600
        for queue in self.queues.values():
            while messages := queue.receive():
                queue.delete([message.receipt for message in messages])

    def _queue(self) -> MemoryQueue:
        return MemoryQueue(clock=lambda: time.monotonic() + self.ahead)

    def bucket(self, name: str) -> MemoryStore:
        return self.buckets.setdefault(name, MemoryStore(name))


@pytest.fixture(scope="module")
def factory() -> Factory:
    return Factory()


@pytest.fixture(scope="module")
def world(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory, factory: Factory
) -> Iterator[World]:
    """A gateway with two pools that receive through it, and one that does not."""
    name = postgres.create(postgres_template)
    directory = tmp_path_factory.mktemp("gateway")
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(metadata, directory, CATALOGUE, sources=factory.sources) as it,
    ):
        yield it
    postgres.drop(name)


@pytest.fixture(autouse=True)
def _as_new(factory: Factory) -> Iterator[None]:
    """Leave no message and no connection to the next test."""
    yield
    while OPEN:
        OPEN.pop().close()
    factory.drain()


def transfers(worker: Worker, url: str | None = None) -> Transfers:
    """A worker's own client, under the identity that the test's worker has."""
    made = Transfers(url or worker.world.edge_url, timeout_seconds=20.0)
    context = client_context(worker.world.ca.certificate_pem, worker.certificate_pem, worker.key)
    made.identify(context, headers(worker))
    OPEN.append(made)
    return made


def received(worker: Worker, queue: MemoryQueue, body: str) -> Received:
    """Send a message and let a worker receive it."""
    queue.send([Outgoing("1", body)])
    [message] = GatewayQueue(transfers(worker)).receive(wait_seconds=5)
    return message


def log_key(grant: Grant, name: str = "full.log", *, epoch: int | None = None) -> str:
    segment = f"{grant.start_date:%Y%m%dT%H%M%S.%fZ}-{epoch or grant.epoch}-{grant.item_id}"
    return f"logs/{grant.log_path.strip('/')}/{segment}/{name}"


def granted(world: World, worker: Worker) -> Grant:
    [item] = world.items(region="factory-7")
    return worker.grant(item)


# --- the queue -----------------------------------------------------------------------------------


def test_checks_are_shared(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that ask at the same time are checked together, and each gets its own answer: the revoked one alone is refused."""
    workers = [world.worker("factory-7") for _ in range(12)]
    for worker in workers:
        assert worker.post("queue/receive", {}).status_code == 200
    with world.metadata.session() as session:
        revocations.add(session, "worker", workers[5].name.worker, "stolen", "test")
        session.commit()
    sizes: list[int] = []
    judge = caller_checks.judge

    def counted(callers: Sequence[Caller]) -> list[Refused | bool | None]:
        sizes.append(len(callers))
        time.sleep(0.3)  # the others arrive meanwhile
        return judge(callers)

    monkeypatch.setattr(caller_checks, "judge", counted)
    with ThreadPoolExecutor(12) as threads:
        statuses = list(threads.map(lambda worker: worker.post("queue/receive", {}).status_code, workers))
    assert [403 if number == 5 else 200 for number in range(12)] == statuses
    assert sum(sizes) == 12
    assert len(sizes) < 6


def test_failed_check_is_no_pass(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that cannot be made lets no request through."""
    worker = world.worker("factory-7")

    def broken(_callers: Sequence[Caller]) -> list[Refused | bool | None]:
        raise OSError("no database")

    monkeypatch.setattr(caller_checks, "judge", broken)
    assert worker.post("queue/receive", {}).status_code == 500


def test_messages_are_received_and_deleted(world: World, factory: Factory) -> None:
    """A worker gets its pool's message with the number of its receipts, and deletes it."""
    worker = world.worker("factory-7")
    message = received(worker, factory.queue(), '{"é": 1}')
    assert (message.body, message.receives) == ('{"é": 1}', 1)
    assert factory.queue().depth().in_flight == 1
    GatewayQueue(transfers(worker)).delete([message.receipt])
    assert factory.queue().depth().in_flight == 0


def test_messages_are_given_back(world: World, factory: Factory) -> None:
    """A message given back is received again at once, by any worker of the pool, and is counted."""
    first, second = world.worker("factory-7"), world.worker("factory-7")
    message = received(first, factory.queue(), "x")
    GatewayQueue(transfers(first)).release([message.receipt])
    [again] = GatewayQueue(transfers(second)).receive(wait_seconds=5)
    assert (again.body, again.receives) == ("x", 2)


def test_long_poll_ends_when_a_message_comes(world: World, factory: Factory) -> None:
    """A worker that waits gets a message that is sent meanwhile."""
    worker = world.worker("factory-7")
    timer = threading.Timer(1.0, lambda: factory.queue().send([Outgoing("1", "late")]))
    timer.start()
    found = GatewayQueue(transfers(worker)).receive(wait_seconds=20)
    timer.join()
    assert [message.body for message in found] == ["late"]


def test_pool_receives_only_its_own(world: World, factory: Factory) -> None:
    """A worker's certificate decides on its queue: it gets nothing of another pool's."""
    press = world.worker("factory-7", "press")
    factory.queue().send([Outgoing("1", "not for the press")])
    assert GatewayQueue(transfers(press)).receive(wait_seconds=1) == []
    assert factory.queue().depth().visible == 1


def test_direct_pool_is_refused(world: World) -> None:
    """Where the catalogue does not say that a pool goes through the gateway, nothing goes through it."""
    worker = world.worker("us-east-1")
    bodies: dict[str, Any] = {
        "queue/receive": {},
        "queue/delete": {"receipts": ["x"]},
        "queue/return": {"receipts": ["x"]},
        "code": {"bundle": "main", "version": DIGEST},
        "logs/list": {"key": "logs/x"},
    }
    for path, body in bodies.items():
        response = worker.post(path, body)
        assert response.status_code == 403, path
        assert "its transport in the catalogue is not 'gateway'" in response.json()["detail"]


def test_receipt_of_another_worker_is_refused(world: World, factory: Factory) -> None:
    """A worker can neither delete nor return a message that another worker received, and the attempt is audited."""
    honest, hostile = world.worker("factory-7"), world.worker("factory-7")
    message = received(honest, factory.queue(), "mine")
    for attack in (message.receipt, message.receipt.partition(".")[2], "x." + message.receipt):
        for path in ("queue/delete", "queue/return"):
            response = hostile.post(path, {"receipts": [attack]})
            assert response.status_code == 403, attack
    assert factory.queue().depth().in_flight == 1
    with pytest.raises(QueueError, match="was not given to this worker"):
        GatewayQueue(transfers(hostile)).delete([message.receipt])
    assert world.audited("request.refused", actor=hostile.name.uri)


def test_message_of_a_worker_that_is_gone_comes_back(world: World, factory: Factory) -> None:
    """A poll whose connection is gone takes no message with it: the next worker gets it at once."""
    gone, next_one = world.worker("factory-7"), world.worker("factory-7")
    with connected(gone) as raw:
        raw.sendall(request_bytes(gone, "queue/receive", b'{"wait_seconds": 20}'))
        time.sleep(0.5)
    time.sleep(0.5)
    message = received(next_one, factory.queue(), "for the living")
    assert message.receives <= 2


def test_revoked_worker_receives_nothing(world: World, factory: Factory) -> None:
    """A revocation takes effect on a worker's next poll."""
    worker = world.worker("factory-7")
    factory.queue().send([Outgoing("1", "x")])
    with world.metadata.session() as session:
        revocations.add(session, "worker", worker.name.worker, "test", "test")
        session.commit()
    response = worker.post("queue/receive", {"wait_seconds": 1})
    assert response.status_code == 403
    assert response.json()["reason"] == "revoked"


# --- DAG code ------------------------------------------------------------------------------------


def test_code_is_streamed(world: World, factory: Factory) -> None:
    """An archive of several pieces arrives whole; from an offset, its rest; at its end, nothing."""
    content = b"".join(hashlib.sha256(bytes([n % 256])).digest() for n in range(100_000))
    factory.bucket("factory-dags").put(ARCHIVE, content)
    store = GatewayStore(transfers(world.worker("factory-7")), "factory-dags")
    assert b"".join(store.stream(ARCHIVE)) == content
    assert b"".join(store.stream(ARCHIVE, 3_000_000)) == content[3_000_000:]
    assert b"".join(store.stream(ARCHIVE, len(content))) == b""


def test_missing_code_is_not_found(world: World) -> None:
    """An archive that is not in the region's bucket is told apart from a bucket that is out of reach."""
    store = GatewayStore(transfers(world.worker("factory-7")), "factory-dags")
    with pytest.raises(ObjectNotFound):
        list(store.stream(f"bundles/main/{'b' * 64}.tar.gz"))


@pytest.mark.parametrize(
    ("bundle", "version"),
    [
        ("main", "sha256:../../../../" + "a" * 52),
        ("main", f"sha256:{'A' * 64}"),
        ("../factory-logs", DIGEST),
        ("..", DIGEST),
        ("a//b", DIGEST),
        ("main\x00", DIGEST),
        ("x" * 251, DIGEST),
    ],
)
def test_path_in_a_digest_is_refused(world: World, bundle: str, version: str) -> None:
    """What is neither a digest nor the name of a bundle does not become a key."""
    response = world.worker("factory-7").post("code", {"bundle": bundle, "version": version})
    assert response.status_code == 400


def test_archive_resumes_after_a_cut(world: World, factory: Factory) -> None:
    """A connection that breaks in the middle of an archive is replaced, and the rest comes from where it broke."""
    content = bytes(range(256)) * 40_000
    factory.bucket("factory-dags").put(ARCHIVE, content)
    with Breaking(world.gateway.edge_port, after_bytes=3_000_000) as line:
        store = GatewayStore(
            transfers(world.worker("factory-7"), line.url), "factory-dags", pause=lambda _: None
        )
        assert b"".join(store.stream(ARCHIVE)) == content
    assert line.connections > 1


def test_slow_readers_have_only_their_share(world: World, factory: Factory) -> None:
    """A worker that opens archives and does not read them is refused more, and delays neither heartbeats nor other workers."""
    content = bytes(8 * 1024 * 1024)
    factory.bucket("factory-dags").put(ARCHIVE, content)
    slow, honest = world.worker("factory-7"), world.worker("factory-7")
    body = f'{{"bundle": "main", "version": "{DIGEST}"}}'.encode()
    raws = [connected(slow) for _ in range(4)]
    for raw in raws:
        raw.sendall(request_bytes(slow, "code", body))
        assert raw.recv(15) == b"HTTP/1.1 200 OK"
    refused = slow.post("code", {"bundle": "main", "version": DIGEST})
    assert refused.status_code == 503
    assert refused.headers["Retry-After"]
    slow.beat()
    assert b"".join(GatewayStore(transfers(honest), "factory-dags").stream(ARCHIVE)) == content
    for raw in raws:
        raw.close()
    until_status(slow, 200)


# --- logs ----------------------------------------------------------------------------------------


def test_logs_of_a_granted_task_are_stored(world: World, factory: Factory, tmp_path: Path) -> None:
    """Chunks of a running task are stored as they come, listed and deleted; the whole replaces them, however large."""
    worker = world.worker("factory-7")
    grant = granted(world, worker)
    store = GatewayStore(transfers(worker), "factory-logs")
    bucket = factory.bucket("factory-logs")
    store.put(log_key(grant, "00000001.log"), b"one\n")
    store.put(log_key(grant, "00000002.log"), b"two\n")
    assert bucket.get(log_key(grant, "00000002.log")).data == b"two\n"
    large = tmp_path / "large.log"
    large.write_bytes(b"line\n" * (PART_BYTES // 2))
    store.put_file(log_key(grant), large)
    assert bucket.get(log_key(grant)).data == large.read_bytes()
    chunks = [info.key for info in store.list(log_key(grant, "")) if not info.key.endswith("full.log")]
    assert chunks == [log_key(grant, "00000001.log"), log_key(grant, "00000002.log")]
    store.delete(chunks)
    assert [info.key for info in bucket.list(log_key(grant, ""))] == [log_key(grant)]


def test_log_of_another_worker_is_refused(world: World, factory: Factory) -> None:
    """A worker writes, lists and deletes no log of a work item that it was not granted, or under another epoch."""
    honest, hostile = world.worker("factory-7"), world.worker("factory-7")
    grant = granted(world, honest)
    GatewayStore(transfers(honest), "factory-logs").put(log_key(grant), b"the truth\n")
    own = granted(world, hostile)
    store = GatewayStore(transfers(hostile), "factory-logs")
    elsewhere = log_key(own).replace(own.log_path.strip("/"), grant.log_path.strip("/"))
    for key in (log_key(grant), log_key(own, epoch=own.epoch + 1), elsewhere):
        with pytest.raises(StoreError, match="was not granted to this worker"):
            store.put(key, b"a lie\n")
        with pytest.raises(StoreError, match="was not granted"):
            list(store.list(key.rpartition("/")[0] + "/"))
    with pytest.raises(StoreError, match="was not granted"):
        store.delete([log_key(own, "00000001.log"), log_key(grant)])
    assert factory.bucket("factory-logs").get(log_key(grant)).data == b"the truth\n"


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key.replace("logs/", "logs/../", 1),
        lambda key: key.replace("/full.log", "/../full.log"),
        lambda key: key.replace("full.log", "notes.txt"),
        lambda key: f"/{key}",
        lambda key: f"bundles/{key}",
        lambda key: key.replace("logs/", "logs//", 1),
        lambda _: "",
    ],
)
def test_other_keys_are_refused(world: World, change: Any) -> None:
    """Nothing but a task's log has a name that is stored."""
    worker = world.worker("factory-7")
    key = change(log_key(granted(world, worker)))
    response = worker.client.post(
        "/edge/v1/logs/put", params={"key": key}, content=b"x", headers=headers(worker)
    )
    assert response.status_code in {400, 403}


def test_upload_of_another_worker_is_refused(world: World) -> None:
    """An upload in parts goes on only for the worker and the log that it began for, and has a last part."""
    first, second = world.worker("factory-7"), world.worker("factory-7")
    grant, other = granted(world, first), granted(world, second)
    upload = first.post("logs/begin", {"key": log_key(grant)}).json()["upload"]
    attacks = [
        (second, log_key(other), upload, 1, 403),
        (first, log_key(grant, "00000001.log"), upload, 1, 403),
        (first, log_key(grant), upload.partition(".")[2], 1, 403),
        (first, log_key(grant), upload, MAX_PARTS + 1, 400),
        (first, log_key(grant), upload, 0, 400),
    ]
    for worker, key, sealed, number, status in attacks:
        response = worker.client.post(
            "/edge/v1/logs/part",
            params={"key": key, "upload": sealed, "number": str(number)},
            content=b"x",
            headers=headers(worker),
        )
        assert response.status_code == status, (key, number)


def test_endless_upload_ends(world: World, factory: Factory) -> None:
    """A body without an end is refused at a part's size, declared or not, and leaves nothing behind."""
    worker = world.worker("factory-7")
    key = log_key(granted(world, worker))

    def endless() -> Iterator[bytes]:
        for _ in range(1_000):
            yield bytes(64 * 1024)

    for content in (endless(), bytes(PART_BYTES + 1)):
        try:
            response = worker.client.post(
                "/edge/v1/logs/put", params={"key": key}, content=content, headers=headers(worker)
            )
            assert response.status_code == 413
        except Exception as error:  # noqa: BLE001 - the gateway may close before all is sent
            assert "413" in str(error) or type(error).__name__ in {"WriteError", "ReadError"}  # noqa: PT017
    assert factory.bucket("factory-logs").head(key) is None


def test_bucket_out_of_reach_is_told_to_wait(world: World, factory: Factory) -> None:
    """While the region's bucket is out of reach the worker is told to come back, and keeps its log."""
    worker = world.worker("factory-7")
    grant = granted(world, worker)
    bucket = factory.bucket("factory-logs")
    bucket.unreachable = True
    try:
        store = GatewayStore(transfers(worker), "factory-logs", pause=lambda _: None)
        with pytest.raises(StoreError) as caught:
            store.put(log_key(grant), b"x")
        assert caught.value.transient
    finally:
        bucket.unreachable = False


# --- support -------------------------------------------------------------------------------------


def headers(worker: Worker) -> dict[str, str]:
    return {VERSION_HEADER: "1", "Authorization": f"Bearer {worker.token}"}


def request_bytes(worker: Worker, what: str, body: bytes) -> bytes:
    lines = [f"POST /edge/v1/{what} HTTP/1.1", "Host: gateway", f"Content-Length: {len(body)}"]
    lines += [f"{name}: {value}" for name, value in headers(worker).items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def connected(worker: Worker) -> ssl.SSLSocket:
    """A bare TLS connection under a worker's identity."""
    context = client_context(worker.world.ca.certificate_pem, worker.certificate_pem, worker.key)
    raw = socket.create_connection(("127.0.0.1", worker.world.gateway.edge_port), timeout=10)
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    return context.wrap_socket(raw, server_hostname="127.0.0.1")


def until_status(worker: Worker, status: int, seconds: float = 10.0) -> None:
    """Ask for an archive until the answer is `status`."""
    deadline = time.monotonic() + seconds
    while (found := worker.post("code", {"bundle": "main", "version": DIGEST}).status_code) != status:
        assert time.monotonic() < deadline, found
        time.sleep(0.1)


class Breaking:
    """A TCP line to a port that breaks each connection after so many bytes of answers."""

    def __init__(self, port: int, *, after_bytes: int) -> None:
        self._port = port
        self._after = after_bytes
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.connections = 0
        self.name = uuid4().hex
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Breaking:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def _serve(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            far = socket.create_connection(("127.0.0.1", self._port))
            for source, target, most in ((near, far, 1 << 60), (far, near, self._after)):
                threading.Thread(target=self._pump, args=(source, target, most), daemon=True).start()

    def _pump(self, source: socket.socket, target: socket.socket, most: int) -> None:
        try:
            while most > 0 and (data := source.recv(65_536)):
                target.sendall(data)
                most -= len(data)
        except OSError:
            pass
        finally:
            for each in (source, target):
                with suppress(OSError):
                    # A close alone would wait for the other direction's thread.
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
