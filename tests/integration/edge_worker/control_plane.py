"""A control plane in miniature, for tests of the worker: a ledger in memory behind real mutual TLS on loopback.

It keeps the protocol's promises (epochs, idempotency keys, refusals), and can be made to misbehave.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import uvicorn
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airbridge.core.exceptions import InvalidEnvelope
from airbridge.core.protocol import (
    TRIGGER_EVENT,
    BundleRef,
    ClaimRequest,
    ClaimResponse,
    Credentials,
    DisconnectPolicy,
    Disposition,
    EdgeEvent,
    EnrolRequest,
    ExchangeRequest,
    ExchangeResponse,
    Grant,
    Heartbeat,
    HeartbeatResponse,
    ItemKind,
    Problem,
    Record,
    RecordResult,
    Refusal,
    RefusalReason,
    RegionSettings,
    ReleaseRequest,
    ReleaseResponse,
    RenewRequest,
    Resources,
    StartedAs,
    TriggerSpec,
    TrustBundle,
    WorkItem,
)
from airbridge.core.signing import Signer, Verifier


@dataclass
class Item:
    """A row of the ledger."""

    item_id: UUID
    ti_id: UUID
    ti: dict[str, Any]
    ti_context: dict[str, Any]
    bundle: BundleRef
    disconnect: DisconnectPolicy
    slots: int = 1
    epoch: int = 0
    holder: str | None = None
    state: str = "sent"
    outcome: str | None = None
    #: Whether the next attempt of its task is queued.
    queued_again: bool = False
    answers: dict[tuple[int, int], RecordResult] = field(default_factory=dict)
    applied: list[Record] = field(default_factory=list)
    resources: Resources = field(default_factory=Resources)
    xcoms: dict[str, Any] = field(default_factory=dict)
    #: Of an item that is a trigger.
    trigger: TriggerSpec | None = None
    #: Body of its event.
    event: str | None = None

    @property
    def states(self) -> list[str]:
        """Every state that was committed for the task instance."""
        return [json.loads(one.body or "{}")["state"] for one in self.applied if one.path.endswith("/state")]


class Fault:
    """Fault of the gateway in place of its answer. `when` chooses the requests, by their last path segment."""

    def __init__(
        self, act: Callable[[Request, Response | None], Response], *, after: bool, when: str = ""
    ) -> None:
        self.act = act
        self.after = after
        self.when = when


class ControlPlane:
    """See the module."""

    def __init__(self, directory: Path, *, region: RegionSettings, heartbeat_seconds: float = 0.2) -> None:
        self.region = region
        self.signer = Signer.generate()
        self.items: dict[UUID, Item] = {}
        self.requests: list[tuple[float, str]] = []
        self.heartbeats: list[Heartbeat] = []
        self.events: dict[UUID, EdgeEvent] = {}
        self.refused: list[RecordResult] = []
        self.reads: list[Record] = []
        self.variables: dict[str, str] = {}
        self.commands: list[Any] = []
        self.certificate_seconds = 3600.0
        self.heartbeat_seconds = heartbeat_seconds
        self.enrolments = 0
        self.renewals = 0
        self.revoked = False
        self.fault: Fault | None = None
        self.hold_back: Callable[[str, bytes], bool] = lambda what, content: False
        """Returns whether the answer to a request is held back for now."""
        self.denied: dict[str, tuple[int, str]] = {}
        self.port = _free_port()
        self._ca_key = ec.generate_private_key(ec.SECP256R1())
        self._ca = _ca_certificate(self._ca_key)
        self._directory = directory
        self.ca_file = directory / "ca.crt"
        self.ca_file.write_bytes(self._ca.public_bytes(Encoding.PEM))
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None

    # --- tests use these ---------------------------------------------------------------------------

    def place(
        self,
        bundle: BundleRef,
        *,
        task_id: str = "task",
        slots: int = 1,
        resources: Resources | None = None,
        should_retry: bool = False,
        disconnect: DisconnectPolicy | None = None,
        context: dict[str, Any] | None = None,
        trigger: TriggerSpec | None = None,
    ) -> tuple[Item, str]:
        """Add a work item; return its row and the envelope to put on the queue."""
        ti_id = uuid4()
        ti = {
            "id": str(ti_id),
            "dag_id": "dag",
            "run_id": "run",
            "task_id": task_id,
            "map_index": -1,
            "try_number": 1,
        }
        item = Item(
            uuid4(),
            ti_id,
            ti,
            {"max_tries": 0, "should_retry": should_retry, **(context or {})},
            bundle,
            disconnect or DisconnectPolicy(),
            slots,
            resources=resources or Resources(),
            trigger=trigger,
        )
        self.items[item.item_id] = item
        return item, self.envelope(item)

    def envelope(self, item: Item, signer: Signer | None = None) -> str:
        """Return the signed message of an item."""
        now = datetime.now(UTC)
        return (signer or self.signer).sign(
            WorkItem(
                item_id=item.item_id,
                ti_id=item.ti_id,
                epoch=item.epoch,
                region=self.region.region,
                pool=self.region.pool,
                slots=item.slots,
                kind=ItemKind.TRIGGER if item.trigger else ItemKind.TASK,
                bundle=item.bundle,
                dag_rel_path="dag.py",
                issued_at=now,
                expires_at=now + timedelta(hours=1),
            )
        )

    @property
    def reported_events(self) -> set[str]:
        """Names of the events that the worker has reported."""
        return {event.event for event in [*self.events.values()]}

    def lose(self, item: Item) -> None:
        """Fence the holder off, as after `lost_after`."""
        item.state, item.outcome = "settled", "lost"

    @property
    def url(self) -> str:
        """URL for workers."""
        return f"https://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve on loopback."""
        key, certificate = self._directory / "server.key", self._directory / "server.crt"
        self._write_server_certificate(key, certificate)
        app = Starlette(
            routes=[Route("/edge/v1/{what}", self._serve, methods=["POST"]), Route("/healthz", _healthz)]
        )
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=self.port,
            ssl_keyfile=key,
            ssl_certfile=str(certificate),
            ssl_ca_certs=str(self.ca_file),
            ssl_cert_reqs=ssl.CERT_OPTIONAL,
            log_level="critical",
            lifespan="off",
            ws="none",
            timeout_keep_alive=60,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=asyncio.run, args=(self._server.serve(),), daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 10
        while not self._server.started and time.monotonic() < deadline:
            time.sleep(0.01)

    def stop(self) -> None:
        """Stop serving; the ledger stays."""
        if self._server is not None and self._thread is not None:
            self._server.should_exit = True
            self._server.force_exit = True
            self._thread.join(10)
            self._server = None

    # --- serving -----------------------------------------------------------------------------------

    async def _serve(self, request: Request) -> Response:
        what = request.path_params["what"]
        self.requests.append((time.monotonic(), what))
        fault = self.fault
        if fault is not None and not what.startswith(fault.when):
            fault = None
        if fault is not None and not fault.after:
            return fault.act(request, None)
        content = await request.body()
        while self.hold_back(what, content):
            await asyncio.sleep(0.02)
        response = self._answer(what, content)
        return fault.act(request, response) if fault is not None else response

    def _answer(self, what: str, content: bytes) -> Response:
        if self.revoked and what != "enrol":
            return _problem(403, RefusalReason.REVOKED, "this worker is revoked")
        answers = {
            "enrol": lambda: self._enrol(EnrolRequest.model_validate_json(content)),
            "renew": lambda: self._renew(RenewRequest.model_validate_json(content)),
            "claim": lambda: self._claim(ClaimRequest.model_validate_json(content)),
            "heartbeat": lambda: self._heartbeat(Heartbeat.model_validate_json(content)),
            "exchange": lambda: self._exchange(ExchangeRequest.model_validate_json(content)),
            "release": lambda: self._release(ReleaseRequest.model_validate_json(content)),
        }
        found = answers[what]()
        if isinstance(found, Response):
            return found
        return Response(found.model_dump_json(), media_type="application/json")

    worker = "worker-1"

    def _enrol(self, request: EnrolRequest) -> Credentials | Response:
        self.enrolments += 1
        if self.revoked or getattr(request.join, "token", "") != "join-me":
            return _problem(403, RefusalReason.FORBIDDEN, "the join token is not good")
        self.worker = request.worker
        return self._credentials(request.csr_pem)

    def _renew(self, request: RenewRequest) -> Credentials:
        self.renewals += 1
        return self._credentials(request.csr_pem)

    def _credentials(self, csr_pem: str) -> Credentials:
        now = datetime.now(UTC)
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        life = timedelta(seconds=self.certificate_seconds)
        certificate = (
            _builder("worker", csr.public_key(), self._ca.subject)
            # As the real gateway does, for workers whose clocks are behind.
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + life)
            .sign(self._ca_key, hashes.SHA256())
        )
        return Credentials(
            worker_id=self.worker,
            certificate_pem=certificate.public_bytes(Encoding.PEM).decode(),
            access_token="token",
            expires_at=now + life,
            renew_after=now + life / 2,
            trust=TrustBundle(
                version="1",
                ca_pem=self._ca.public_bytes(Encoding.PEM).decode(),
                verify_keys=(self.signer.verify_key,),
            ),
            settings=self.region,
        )

    def _claim(self, request: ClaimRequest) -> ClaimResponse:
        grants, refusals = [], []
        for index, envelope in enumerate(request.envelopes):
            found = self._claim_one(index, envelope)
            (grants if isinstance(found, Grant) else refusals).append(found)
        return ClaimResponse(grants=tuple(grants), refusals=tuple(refusals))

    def _claim_one(self, index: int, envelope: str) -> Grant | Refusal:
        def refuse(reason: RefusalReason, disposition: Disposition = Disposition.DROP) -> Refusal:
            return Refusal(index=index, reason=reason, detail=str(reason), disposition=disposition)

        try:
            message = Verifier([self.signer.verify_key]).open(envelope)
        except InvalidEnvelope as error:
            return refuse(error.reason, Disposition.DEAD_LETTER)
        item = self.items.get(message.item_id)
        if item is None:
            return refuse(RefusalReason.UNKNOWN_ITEM)
        if item.state == "settled":
            return refuse(RefusalReason.SETTLED)
        if item.state == "claimed":
            # The holder repeats a claim whose answer was lost: it gets the same grant.
            if item.holder != self.worker or message.epoch != item.epoch - 1:
                return refuse(RefusalReason.ALREADY_CLAIMED)
        elif message.epoch != item.epoch:
            return refuse(RefusalReason.STALE_EPOCH)
        else:
            item.epoch += 1
            item.state, item.holder = "claimed", self.worker
        return Grant(
            item_id=item.item_id,
            ti_id=item.ti_id,
            epoch=item.epoch,
            lease_seconds=60,
            slots=0 if item.trigger else item.slots,
            resources=item.resources,
            trigger=item.trigger,
            ti=item.ti,
            ti_context=item.ti_context,
            start_date=datetime(2025, 1, 1, tzinfo=UTC),
            started_as=StartedAs(hostname=self.worker, unixname="airbridge", pid=item.epoch),
            dag_rel_path="dag.py",
            bundle=item.bundle,
            log_path=f"dag_id=dag/run_id=run/task_id={item.ti['task_id']}/attempt=1.log",
            disconnect=item.disconnect,
        )

    def _heartbeat(self, heartbeat: Heartbeat) -> HeartbeatResponse:
        self.events |= {event.uid: event for event in heartbeat.events}
        # Each command is sent once, with the next heartbeat's answer.
        commands, self.commands = [*self.commands], []
        for lease in heartbeat.leases:
            item = self.items.get(lease.item_id)
            if item is None or item.state != "claimed" or item.epoch != lease.epoch:
                reason = RefusalReason.LOST if item and item.outcome == "lost" else RefusalReason.NOT_HOLDER
                commands.append(
                    {"kind": "cancel", "item_id": lease.item_id, "epoch": lease.epoch, "reason": reason}
                )
        response = HeartbeatResponse(
            server_time=datetime.now(UTC),
            lease_seconds=60,
            interval_seconds=self.heartbeat_seconds,
            commands=commands,
            events_taken=len(heartbeat.events),
        )
        # After its answer, so that a test that has seen it may change what the next one is told.
        self.heartbeats.append(heartbeat)
        return response

    def _exchange(self, request: ExchangeRequest) -> ExchangeResponse:
        return ExchangeResponse(results=tuple(self._apply(record) for record in request.records))

    def _apply(self, record: Record) -> RecordResult:
        def result(
            status: int, body: str | None = None, refused: RefusalReason | None = None
        ) -> RecordResult:
            return RecordResult(
                item_id=record.item_id,
                epoch=record.epoch,
                seq=record.seq,
                status=status,
                body=body,
                refused=refused,
            )

        item = self.items[record.item_id]
        # Idempotency: a write that is sent again gets its first answer. Reads are not stored.
        known = item.answers.get((record.epoch, record.seq)) if record.method != "GET" else None
        if known is not None:
            return known
        reason = _why_refused(item, record)
        if reason is not None:
            self.refused.append(result(409, None, reason))
            return self.refused[-1]
        if record.method == "GET":
            self.reads.append(record)
            return self._read(item, record, result)
        for part, (status, body) in self.denied.items():
            if part in record.path:
                item.answers[record.epoch, record.seq] = result(status, body)
                return item.answers[record.epoch, record.seq]
        item.applied.append(record)
        kind = record.path.split("/")[0]
        if record.path == TRIGGER_EVENT:
            item.state, item.event = "settled", record.body
        elif record.path.endswith("/state"):
            item.state, item.outcome = "settled", json.loads(record.body or "{}")["state"]
        elif kind == "xcoms":
            item.xcoms[record.path.split("/")[-1]] = json.loads(record.body or "null")
        elif kind == "variables" and record.method == "PUT":
            self.variables[record.path.split("/")[1]] = json.loads(record.body or "{}")["val"]
        answer = item.answers[record.epoch, record.seq] = result(201, "{}")
        return answer

    def _read(self, item: Item, record: Record, result: Callable[..., RecordResult]) -> RecordResult:
        parts = record.path.split("/")
        if parts[0] == "variables" and parts[1] in self.variables:
            return result(200, json.dumps({"key": parts[1], "value": self.variables[parts[1]]}))
        if parts[0] == "xcoms" and parts[4] in item.xcoms:
            return result(200, json.dumps({"key": parts[4], "value": item.xcoms[parts[4]]}))
        return result(404, json.dumps({"detail": "not found"}))

    def _release(self, request: ReleaseRequest) -> ReleaseResponse:
        for lease in request.items:
            item = self.items[lease.item_id]
            if item.state == "claimed" and item.epoch == lease.epoch:
                item.state, item.holder = "sent", None
        return ReleaseResponse(released=request.items)

    def _write_server_certificate(self, key_file: Path, certificate_file: Path) -> None:
        import ipaddress

        key = ec.generate_private_key(ec.SECP256R1())
        now = datetime.now(UTC)
        names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
        certificate = (
            _builder("gateway", key.public_key(), self._ca.subject)
            .add_extension(names, critical=False)
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .sign(self._ca_key, hashes.SHA256())
        )
        key_file.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        certificate_file.write_bytes(certificate.public_bytes(Encoding.PEM))


def _why_refused(item: Item, record: Record) -> RefusalReason | None:
    if item.state == "settled" and item.outcome == "lost":
        return RefusalReason.LOST
    if item.epoch != record.epoch:
        return RefusalReason.STALE_EPOCH
    if record.method == "GET":
        return None
    if item.queued_again:
        return RefusalReason.SETTLED
    return RefusalReason.CANCELLED if item.outcome == "cancelled" else None


def busy(retry_after: float = 0.1) -> Fault:
    """Shed load."""
    return Fault(lambda *_: Response(status_code=503, headers={"Retry-After": str(retry_after)}), after=False)


def garbage() -> Fault:
    """Answer with HTML, after having applied the request."""
    return Fault(lambda *_: Response("<html>It works!</html>", media_type="text/html"), after=True)


def noise() -> Fault:
    """Answer bytes that are no text, after having applied the request."""
    return Fault(lambda *_: Response(bytes(range(256)) * 40, media_type="application/json"), after=True)


def half_an_answer() -> Fault:
    """Answer with the first half of the right answer, as a complete response."""

    def halve(_: Request, right: Response | None) -> Response:
        body = bytes(right.body) if right is not None else b""
        return Response(body[: len(body) // 2], media_type="application/json")

    return Fault(halve, after=True)


def somebody_elses_answer() -> Fault:
    """Answer exchanges with well-formed results of other records than those in the request."""

    def swap(_: Request, right: Response | None) -> Response:
        answer = json.loads(bytes(right.body)) if right is not None else {}
        for result in answer.get("results", ()):
            result["seq"] += 1
        return Response(json.dumps(answer), media_type="application/json")

    return Fault(swap, after=True, when="exchange")


def redirected() -> Fault:
    """Send every request elsewhere."""
    return Fault(
        lambda *_: Response(status_code=302, headers={"Location": "https://127.0.0.1:1/login"}), after=True
    )


def broken_inside() -> Fault:
    """Answer 500 with a page of a proxy, after having applied the request."""
    return Fault(lambda *_: Response("<h1>Internal Server Error</h1>", status_code=500), after=True)


def lose_answers(when: str) -> Fault:
    """Apply requests and lose the answers: what the worker sees is an error of a proxy on the way."""
    return Fault(lambda *_: Response(status_code=504), after=True, when=when)


async def _healthz(_: Request) -> Response:
    return Response("ok")


def _problem(status: int, reason: RefusalReason, detail: str) -> Response:
    return Response(
        Problem(status=status, reason=reason, detail=detail).model_dump_json(), status_code=status
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _builder(name: str, key: Any, issuer: x509.Name) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
    )


def _ca_certificate(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test ca")])
    now = datetime.now(UTC)
    return (
        _builder("test ca", key.public_key(), name)
        .not_valid_before(now - timedelta(minutes=5))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
