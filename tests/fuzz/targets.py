"""Every parser that reads bytes from the network, as a function of bytes that may raise nothing: what a parser refuses in
its own words is expected, anything else is a find. Shared by tests/unit/test_fuzz.py (hypothesis, in CI) and
tests/fuzz/run.py (atheris, ``make fuzz``)."""

from __future__ import annotations

import base64
import contextlib
import gzip
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from uuid import UUID

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from pydantic import ValidationError

from airbridge.control_plane.exceptions import InvalidIdentity, InvalidScope, Refused
from airbridge.control_plane.gateway.api import requests
from airbridge.control_plane.gateway.auth import task_permissions
from airbridge.control_plane.gateway.auth.authentication import bearer
from airbridge.control_plane.identity.access import AccessTokens
from airbridge.control_plane.identity.ca import CertificateAuthority
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.control_plane.task_logs import reader
from airbridge.core import protocol, signing
from airbridge.core.code import snapshot
from airbridge.core.exceptions import BundleError, InvalidEnvelope
from airbridge.core.signing import Signer, Verifier
from airbridge.edge_worker.exceptions import FrameError
from airbridge.edge_worker.proxy import protocol as proxy_protocol
from airbridge.edge_worker.proxy.protocol import Call, Cancel, Reply

NOW = datetime(2026, 1, 1, tzinfo=UTC)
NAME = WorkerName("airbridge.test", "eu-west-1", "default", "worker-1")
ITEM = UUID("5f535478-191e-4a95-a599-322ffba77ecd")
SMALL = snapshot.Limits(files=20, file_bytes=4096, total_bytes=16_384)


@cache
def _ca() -> CertificateAuthority:
    return CertificateAuthority.generate("airbridge.test", NOW)


@cache
def _csr() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


@cache
def _leaf() -> bytes:
    return _ca().issue_worker(_csr(), NAME, NOW, timedelta(hours=1)).public_bytes(Encoding.DER)


@cache
def _tokens() -> AccessTokens:
    return AccessTokens(Ed25519PrivateKey.generate())


@cache
def _signer() -> Signer:
    return Signer.generate()


def _item() -> protocol.WorkItem:
    bundle = protocol.BundleRef(name="dags", version="sha256:" + "a" * 64)
    return protocol.WorkItem(
        item_id=ITEM, ti_id=ITEM, epoch=1, region="eu-west-1", pool="default", bundle=bundle,
        dag_rel_path="dag.py", issued_at=NOW, expires_at=NOW,
    )  # fmt: skip


def _record(**changes: str) -> protocol.Record:
    fields = {"method": "POST", "path": "xcoms/d/r/t/key", "body": '"x"', **changes}
    return protocol.Record(item_id=ITEM, epoch=1, seq=1, recorded_at=NOW, **fields)  # type: ignore[arg-type] # JSON


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


# --- What the gateway reads ---


def envelope(data: bytes) -> None:
    """A message of a queue, at the gateway and at the worker."""
    text = _text(data)
    signing.claimed_item(text)
    try:
        Verifier([_signer().verify_key]).open(text)
    except InvalidEnvelope:
        return


REQUESTS = (
    protocol.EnrolRequest, protocol.RenewRequest, protocol.ClaimRequest, protocol.Heartbeat,
    protocol.ExchangeRequest, protocol.ReleaseRequest,
)  # fmt: skip


def request(data: bytes) -> None:
    """A request's body."""
    for model in REQUESTS:
        try:
            requests.parse(data, model)
        except Refused as error:
            error.problem().model_dump_json()


def access_token(data: bytes) -> None:
    """An Authorization header, and the token in it."""
    try:
        token = bearer({"headers": [(b"authorization", data)]})
        _tokens().verify(token, NAME, PeerCertificate.from_der(_leaf()), NOW)
    except Refused:
        return


def certificate(data: bytes) -> None:
    """A client's certificate, and the name in it."""
    try:
        WorkerName.parse(PeerCertificate.from_der(data).uri, NAME.trust_domain)
    except InvalidIdentity:
        return


def spiffe(data: bytes) -> None:
    """A SPIFFE URI."""
    try:
        WorkerName.parse(_text(data), NAME.trust_domain)
    except InvalidIdentity:
        return


def csr(data: bytes) -> None:
    """A certificate signing request."""
    try:
        _ca().issue_worker(_text(data), NAME, NOW, timedelta(hours=1))
    except InvalidIdentity:
        return


def scope(data: bytes) -> None:
    """A scope of an operator's token, and whether it allows something."""
    try:
        Scopes.parse([_text(data)]).allow("connections:read", _text(data), region="eu-west-1")
    except InvalidScope:
        return


def call(data: bytes) -> None:
    """Method, path and query of a task's call: which of the calls that there are it is."""
    method, _, rest = _text(data).partition(" ")
    path, _, query = rest.partition("?")
    task_permissions._find(method, path.lstrip("/"))
    task_permissions.parse_qs(query, keep_blank_values=True)


def archive(data: bytes) -> None:
    """A pushed or fetched tar."""
    with tempfile.TemporaryDirectory(prefix="airbridge-fuzz-") as folder:
        root = Path(folder, "tree")
        root.mkdir()
        with contextlib.suppress(BundleError):
            snapshot.extract(data, root, SMALL)
        outside = [path for path in Path(folder).iterdir() if path != root]
        assert not outside, f"the archive wrote outside of its directory: {outside}"
        assert sum(path.stat().st_size for path in root.rglob("*")) < 1_000_000


def log_segment(data: bytes) -> None:
    """A task's log as a bucket gives it, in pieces of odd sizes."""
    pieces = [data[at : at + 7] for at in range(0, len(data), 7)]
    whole = list(reader.lines(pieces, whole=True))
    assert list(reader.lines([data], whole=True)) == whole
    assert list(reader.lines(pieces, whole=False)) in (whole, whole[:-1])


# --- What the worker reads ---

ANSWERS = (
    protocol.Credentials, protocol.ClaimResponse, protocol.HeartbeatResponse, protocol.ExchangeResponse,
    protocol.ReleaseResponse, protocol.Problem, protocol.TrustBundle,
)  # fmt: skip


def answer(data: bytes) -> None:
    """An answer of the gateway: credentials, grants, commands, results, problems."""
    for model in ANSWERS:
        try:
            model.model_validate_json(data)
        except ValidationError:
            continue


def frame(data: bytes) -> None:
    """Frames of the proxy protocol, in both directions."""
    for read in (
        proxy_protocol.decode_call,
        proxy_protocol.decode_from_agent,
        lambda head: proxy_protocol.checked_length(head[:4].ljust(4, b"\0")),
    ):
        try:
            read(data)
        except FrameError:
            continue


@dataclass(frozen=True)
class Target:
    """A parser, and well-formed input to start from."""

    parse: Callable[[bytes], None]
    seeds: Callable[[], list[bytes]]


def _csrs() -> list[bytes]:
    """Return a valid request; one whose key is on an unknown curve; one of a version that does not exist."""
    der = x509.load_pem_x509_csr(_csr().encode()).public_bytes(Encoding.DER)
    curve, version = bytes.fromhex("2a8648ce3d030107"), b"\x02\x01\x00"
    forged = [der.replace(curve, curve[:-1] + b"\x7f"), der.replace(version, b"\x02\x01\x3b", 1)]
    return [_csr().encode(), *(_pem(each) for each in forged)]


def _pem(der: bytes) -> bytes:
    head, tail = (f"-----{word} CERTIFICATE REQUEST-----\n".encode() for word in ("BEGIN", "END"))
    return head + base64.encodebytes(der) + tail


def _envelopes() -> list[bytes]:
    good = _signer().sign(_item())
    body = base64.urlsafe_b64encode(b"{}").decode()
    return [good.encode(), json.dumps({**json.loads(good), "payload": body}).encode()]


def _requests() -> list[bytes]:
    versions = protocol.Versions(airbridge="0.1.0", airflow="3.0.4", task_sdk="1.0.4", python="3.11")
    lease = protocol.LeaseRef(item_id=ITEM, epoch=1)
    messages = (
        protocol.RenewRequest(csr_pem=_csr(), versions=versions),
        protocol.ClaimRequest(envelopes=(_signer().sign(_item()),)),
        protocol.Heartbeat(sent_at=NOW, versions=versions, slots_total=1, slots_used=0, leases=(lease,)),
        protocol.ExchangeRequest(records=(_record(),)),
        protocol.ReleaseRequest(items=(lease,)),
    )
    return [message.model_dump_json().encode() for message in messages]


def _answers() -> list[bytes]:
    trust = protocol.TrustBundle(
        version="1", ca_pem=_ca().certificate_pem, verify_keys=(_signer().verify_key,)
    )
    cancel = protocol.CancelCommand(item_id=ITEM, epoch=1, reason=protocol.RefusalReason.LOST)
    commands = (cancel, protocol.DrainCommand(), protocol.TrustCommand(trust=trust))
    messages = (
        trust,
        protocol.HeartbeatResponse(server_time=NOW, lease_seconds=1, interval_seconds=1, commands=commands),
        protocol.Problem(status=400, reason=protocol.RefusalReason.MALFORMED, detail="x"),
    )
    return [message.model_dump_json().encode() for message in messages]


def _archives() -> list[bytes]:
    made = []
    for name, kind in (
        ("dag.py", tarfile.REGTYPE),
        ("../out.py", tarfile.REGTYPE),
        ("link", tarfile.SYMTYPE),
    ):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, 5 * (kind == tarfile.REGTYPE), "/etc/passwd"
            tar.addfile(member, io.BytesIO(b"x = 1"))
        made.append(buffer.getvalue())
    return [*made, gzip.compress(made[0])]


def _tokens_of() -> list[bytes]:
    good = _tokens().mint(NAME, PeerCertificate.from_der(_leaf()), NOW, timedelta(hours=1))
    return [b"Bearer " + good.encode(), b"Bearer eyJhbGciOiJub25lIn0.e30."]


TARGETS: dict[str, Target] = {
    "envelope": Target(envelope, _envelopes),
    "request": Target(request, _requests),
    "access_token": Target(access_token, _tokens_of),
    "certificate": Target(certificate, lambda: [_leaf(), _leaf().replace(b"\xa0\x03\x02\x01\x02", b"\xa0\x03\x02\x01\x3b", 1)]),
    "spiffe": Target(spiffe, lambda: [NAME.uri.encode(), b"spiffe://airbridge.test/region/%2e%2e/pool/x/worker/y"]),
    "csr": Target(csr, _csrs),
    "scope": Target(scope, lambda: [b"work:claim queue=eu-*", b"connections:read eu_* region=eu-*"]),
    "call": Target(call, lambda: [b"GET xcoms/d/r/t/key?map_index=1", b"POST dag-runs/d/r/clear"]),
    "archive": Target(archive, _archives),
    "log_segment": Target(log_segment, lambda: [b'{"event": "x"}\n\xff\xfe\n{"half'] ),
    "answer": Target(answer, _answers),
    "frame": Target(
        frame,
        lambda: [
            proxy_protocol.encode(each)[4:]
            for each in (Call(1, "GET", "x", "", None), Reply(1, 200, {}, "{}"), Cancel("lost", ""))
        ],
    ),
}  # fmt: skip
