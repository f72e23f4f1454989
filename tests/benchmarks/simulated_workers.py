"""Simulated workers as a gateway sees them: certificates, access tokens, connections and requests, ten thousand of them in one process."""

from __future__ import annotations

import asyncio
import json
import ssl
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from airbridge.control_plane.identity.access import AccessTokens
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.secrets import GatewaySecrets
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.core.protocol import PROTOCOL_VERSION, VERSION_HEADER, Grant, Heartbeat, LeaseRef
from airbridge.edge_worker.ops.versions import installed

CONNECTIONS_A_WORKER: Final = 16
"""Most connections in a worker's pool."""
ANSWER_SECONDS: Final = 60.0
LIFETIME: Final = timedelta(hours=2)
VERSIONS: Final = installed()
RENDERED: Final[dict[str, Any]] = {"templates_dict": None, "op_args": [], "op_kwargs": {}}
"""The rendered fields of a ``@task``, which its process sends. A task without any sends none."""


class Identities:
    """Certificates and tokens, as enrolment gives them out; all over one key, which only saves time here."""

    def __init__(self, secrets_dir: Path, folder: Path) -> None:
        secrets = GatewaySecrets.load(secrets_dir)
        self._ca = secrets.ca
        self._tokens = AccessTokens(secrets.token_key)
        key = ec.generate_private_key(ec.SECP256R1())
        self._key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        request = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        self._csr = request.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()
        self._file = folder / "identity.pem"

    def issue(self, name: WorkerName) -> tuple[ssl.SSLContext, str, PeerCertificate]:
        """Return a TLS context that presents the worker's certificate, its token, and the certificate."""
        now = datetime.now(UTC)
        leaf = self._ca.issue_worker(self._csr, name, now, LIFETIME)
        certificate = PeerCertificate.of(leaf, leaf.fingerprint(hashes.SHA256()).hex())
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self._ca.certificate_pem)
        self._file.write_bytes(leaf.public_bytes(Encoding.PEM) + self._ca.chain_pem.encode() + self._key_pem)
        context.load_cert_chain(self._file)
        return context, self._tokens.mint(name, certificate, now, LIFETIME), certificate


class SimulatedConnection:
    """One connection of a worker: a request at a time, in HTTP/1.1 by hand, so that ten thousand fit into one process."""

    def __init__(self, context: ssl.SSLContext, token: str, port: int) -> None:
        self._context = context
        self._port = port
        self._head = (
            f"Host: 127.0.0.1\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
            f"{VERSION_HEADER}: {PROTOCOL_VERSION}\r\n"
        )
        self._lock = asyncio.Lock()
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    @property
    def busy(self) -> bool:
        """Return whether a request is under way."""
        return self._lock.locked()

    async def connect(self) -> None:
        """Open the connection."""
        async with asyncio.timeout(ANSWER_SECONDS):
            self._streams = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._context)

    async def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].transport.abort()
            self._streams = None

    async def post(self, what: str, body: Callable[[], bytes]) -> tuple[int, bytes, float]:
        """Make a request; return status, body, and when it was sent. A connection that was closed while it idled is made anew."""
        async with self._lock:
            if self._streams is not None and self._streams[0].at_eof():
                await self.close()
            sent = time.monotonic()
            if self._streams is None:
                await self.connect()
            try:
                async with asyncio.timeout(ANSWER_SECONDS):
                    return *await self._exchange(what, body()), sent
            except (OSError, TimeoutError, asyncio.IncompleteReadError, asyncio.CancelledError):
                # An answer that is not read here would be taken for that of the next request.
                await self.close()
                raise

    async def _exchange(self, what: str, body: bytes) -> tuple[int, bytes]:
        assert self._streams is not None
        reader, writer = self._streams
        head = f"POST /edge/v1/{what} HTTP/1.1\r\n{self._head}Content-Length: {len(body)}\r\n\r\n"
        writer.write(head.encode() + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        length = int(answer.partition("content-length: ")[2].partition("\r\n")[0] or 0)
        return int(answer.split(" ", 2)[1]), await reader.readexactly(length)


class SimulatedWorker:
    """A worker's connections, as its pool has them: one more when a request finds all of them busy, up to a bound."""

    def __init__(self, name: WorkerName, context: ssl.SSLContext, token: str, port: int) -> None:
        self.name = name
        self._open = partial(SimulatedConnection, context, token, port)
        self._connections = [self._open()]
        #: Seconds to the next heartbeat; swarm.py sets what the gateway answers.
        self.interval_seconds = 10.0

    @property
    def connections(self) -> int:
        """Number of connections that it has made."""
        return len(self._connections)

    def reserve(self, count: int) -> Sequence[SimulatedConnection]:
        """Return so many connections, made if need be."""
        while len(self._connections) < count:
            self._connections.append(self._open())
        return self._connections[:count]

    @property
    def free(self) -> SimulatedConnection:
        """The connection that the next request goes over."""
        for connection in self._connections:
            if not connection.busy:
                return connection
        if len(self._connections) < CONNECTIONS_A_WORKER:
            self._connections.append(self._open())
        return self._connections[-1]

    async def close(self) -> None:
        """Close all of them."""
        for connection in self._connections:
            await connection.close()


def heartbeat(leases: Sequence[LeaseRef] = ()) -> bytes:
    """Return the body of a heartbeat of a worker with one slot, which is taken if it holds a lease."""
    sent = Heartbeat(
        sent_at=datetime.now(UTC),
        versions=VERSIONS,
        slots_total=1,
        slots_used=len(leases),
        leases=tuple(leases),
    )
    return sent.model_dump_json().encode()


def success(grant: Grant) -> bytes:
    """Return the body of an exchange: the rendered fields of a granted task, and its success."""
    path, ended = f"task-instances/{grant.ti_id}", datetime.now(UTC).isoformat()
    records = [
        _record(grant, 1, "PUT", f"{path}/rtif", RENDERED),
        _record(grant, 2, "PATCH", f"{path}/state", {"state": "success", "end_date": ended}),
    ]
    return encoded({"records": records})


def refusals(answer: bytes | None) -> list[str]:
    """Return status and body of each record that the answer to an exchange refuses."""
    results = json.loads(answer)["results"] if answer else ()
    return [f"{each['status']}: {each['body']}" for each in results if each["status"] >= 400]


def encoded(body: Any) -> bytes:
    """Return a body of a request."""
    return json.dumps(body).encode()


def _record(grant: Grant, seq: int, method: str, path: str, body: Any) -> dict[str, Any]:
    return {
        "item_id": str(grant.item_id),
        "epoch": grant.epoch,
        "seq": seq,
        "method": method,
        "path": path,
        "query": "",
        "body": json.dumps(body),
        "recorded_at": datetime.now(UTC).isoformat(),
    }
