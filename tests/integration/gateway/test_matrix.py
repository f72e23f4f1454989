"""The negative matrix over real TLS: every cell gets its one answer, and every denial is in the audit trail."""

from __future__ import annotations

import base64
import json
import socket
import ssl
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from sqlalchemy import func, select, text
from tests.integration.gateway import matrix
from tests.integration.gateway.matrix import Answer, Cell
from tests.integration.gateway.world import (
    HOUR,
    TRUST_DOMAIN,
    VERSIONS,
    Worker,
    World,
    client_context,
    csr_pem,
    finished,
    running,
)
from tests.security.attacks import bodies, gadgets
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres

from airbridge.control_plane.gateway.audit.denials import Rates
from airbridge.control_plane.identity import secrets
from airbridge.control_plane.identity.access import AUDIENCE, ISSUER
from airbridge.control_plane.identity.ca import CertificateAuthority
from airbridge.core.protocol import Grant
from airbridge.core.signing import public_verify_key
from airbridge.executor.ledger.identity import revocations
from airbridge.executor.ledger.models import AuditRow

POLICY = """
schema = 1
[[rule]]
name = "matrix"
dags = ["*"]
queues.claim = ["*"]
variables.write = ["allowed"]
connections.read = ["allowed"]
"""
NARROW = ["metrics:read"]


@pytest.fixture(scope="module")
def world(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A gateway that writes down every denial, without a rate limit on those of unauthenticated callers."""
    everything = Rates(anonymous=1e6, anonymous_burst=1e6, authenticated=1e6, authenticated_burst=1e6)
    name = postgres.create(postgres_template)
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(metadata, tmp_path_factory.mktemp("gateway"), denial_rates=everything, **UNLIMITED) as it,
        it.under(POLICY),
    ):
        yield it
    postgres.drop(name)


UNLIMITED: dict[str, Any] = {
    "gateway_requests_per_second": 1e6,
    "gateway_requests_per_second_per_worker": 1e6,
    "gateway_requests_per_second_per_address": 1e6,
}


@dataclass
class Scene:
    """Everybody and everything in the matrix."""

    world: World
    workers: dict[str, Worker]
    third: Worker
    grants: dict[str, Grant]
    token_key: Ed25519PrivateKey
    envelopes: dict[str, str] = field(default_factory=dict)

    @classmethod
    def set(cls, world: World) -> Scene:
        right, third = world.worker(), world.worker()
        own, others, ended = world.items(3)
        grants = {"own": right.grant(own), "another's": third.grant(others), "ended": right.grant(ended)}
        right.exchange(finished(grants["ended"], 1))
        with world.metadata.session() as session:
            # Past the minutes in which callbacks may still call.
            session.execute(
                text(
                    "UPDATE airbridge_work_item SET settled_at = settled_at - interval '1 hour' WHERE id = :id"
                ),
                {"id": ended},
            )
            session.commit()
        grants["unknown"] = grants["own"].model_copy(update={"item_id": uuid4(), "ti_id": uuid4()})
        workers = {
            "right": right,
            "none": Worker(world, "eu-west-1", "default", "nobody"),
            "other-region": world.worker("us-east-1"),
            "other-pool": world.worker(pool="gpu"),
            "other-worker": world.worker(),
            "revoked": world.worker(),
            "other-ca": _impostor(
                world, CertificateAuthority.generate(TRUST_DOMAIN, datetime.now(UTC)), right
            ),
            "expired": _impostor(world, world.ca, right, datetime.now(UTC) - 2 * HOUR),
        }
        with world.metadata.session() as session:
            revocations.add(session, "worker", workers["revoked"].name.worker, "stolen", "test")
            session.commit()
        key = secrets.load_ed25519(world.directory / "secrets" / secrets.TOKEN_KEY)
        scene = cls(world, workers, third, grants, key)
        scene.envelopes = {name: scene._envelope(name) for name in grants}
        return scene

    def _envelope(self, name: str) -> str:
        if name == "unknown":
            return self.world.envelope(
                str(self.grants["own"].item_id), item_id=self.grants[name].item_id, epoch=0
            )
        return self.world.envelope(str(self.grants[name].item_id), epoch=0)

    def fresh(self) -> Grant:
        """Another item of the right worker, for what uses one up."""
        return self.workers["right"].grant(self.world.items()[0])

    # --- Tokens ---

    def token(self, cell: Cell) -> str:
        worker = self.workers[cell.caller]
        holder = worker if worker.token and cell.caller != "none" else self.workers["right"]
        match cell.token:
            case "none":
                return ""
            case "right":
                return holder.token
            case "other-cert":
                return self.third.token
            case "forged":
                return jwt.encode(_claims(holder), "x" * 32, algorithm="HS256", headers={"kid": self.kid})
            case "alg-none":
                return _unsigned(_claims(holder), self.kid)
            case "wrong-key":
                return jwt.encode(
                    _claims(holder),
                    Ed25519PrivateKey.generate(),
                    algorithm="EdDSA",
                    headers={"kid": self.kid},
                )
            case "expired":
                return self._sign({**_claims(holder), "exp": int((datetime.now(UTC) - HOUR).timestamp())})
            case _:
                return self._sign({**_claims(holder), "scopes": NARROW})

    @property
    def kid(self) -> str:
        return public_verify_key(self.token_key.public_key()).kid

    def _sign(self, claims: dict[str, Any]) -> str:
        return jwt.encode(claims, self.token_key, algorithm="EdDSA", headers={"kid": self.kid})

    # --- Requests ---

    def body(self, cell: Cell, grant: Grant) -> tuple[str, dict[str, Any]]:
        """The endpoint, and a well-formed request for the cell."""
        lease = {"item_id": str(grant.item_id), "epoch": grant.epoch}
        now = datetime.now(UTC).isoformat()
        match cell.action:
            case "renew":
                return "renew", {
                    "csr_pem": csr_pem(self.workers[cell.caller].key),
                    "versions": VERSIONS.model_dump(),
                }
            case "claim":
                return "claim", {"envelopes": [self.envelopes[cell.object]]}
            case "heartbeat":
                said = {"sent_at": now, "versions": VERSIONS.model_dump(), "slots_total": 8, "slots_used": 1}
                return "heartbeat", {**said, "leases": [lease]}
            case "release":
                return "release", {"items": [lease]}
            case "receive":
                return "queue/receive", {}
            case "code":
                return "code", {"bundle": "main", "version": f"sha256:{'0' * 64}"}
            case "credentials":
                return "credentials", {}
            case "log":
                segment = f"{grant.start_date:%Y%m%dT%H%M%S.%fZ}-{grant.epoch}-{grant.item_id}"
                return "logs/begin", {"key": f"logs/{grant.log_path.strip('/')}/{segment}/full.log"}
        method, path, content = _call(cell.action, grant)
        record = {"seq": next(_SEQ), "method": method, "path": path, "body": content, "recorded_at": now}
        return "exchange", {"records": [{**lease, **record}]}


_SEQ = iter(range(1, 1_000_000))


def _call(action: str, grant: Grant) -> tuple[str, str, str | None]:
    xcom = f"xcoms/{grant.ti['dag_id']}/{grant.ti['run_id']}/{grant.ti['task_id']}/matrix"
    state = json.dumps({"state": "success", "end_date": datetime.now(UTC).isoformat()})
    gadget = gadgets.exception(Path("/nonexistent"))
    hostile = bodies.deferral(next_kwargs={"__type": "dict", "__var": {"key": gadget}})
    return {
        "state": ("PATCH", f"task-instances/{grant.ti_id}/state", state),
        "xcom": ("POST", xcom, "1"),
        "variable": ("PUT", "variables/allowed", json.dumps({"val": "1", "description": None})),
        "connection": ("GET", "connections/allowed", None),
        "forbidden-connection": ("GET", "connections/other", None),
        "trigger": ("POST", f"dag-runs/{grant.ti['dag_id']}/matrix", "{}"),
        "hostile-state": ("PATCH", f"task-instances/{grant.ti_id}/state", json.dumps(hostile)),
        "hostile-xcom": ("POST", xcom, json.dumps(gadget)),
        "hostile-fields": ("PUT", f"task-instances/{grant.ti_id}/rtif", json.dumps({"field": gadget})),
    }[action]


def _impostor(world: World, ca: CertificateAuthority, of: Worker, now: datetime | None = None) -> Worker:
    worker = Worker(world, of.name.region, of.name.pool, of.name.worker)
    leaf = ca.issue_worker(csr_pem(worker.key), of.name, now or datetime.now(UTC), HOUR)
    worker.present(leaf.public_bytes(Encoding.PEM).decode() + ca.chain_pem, of.token)
    return worker


def _claims(holder: Worker) -> dict[str, Any]:
    good: dict[str, Any] = jwt.decode(holder.token, options={"verify_signature": False})
    now = datetime.now(UTC)
    assert (good["iss"], good["aud"]) == (ISSUER, AUDIENCE)
    return {**good, "iat": int(now.timestamp()), "exp": int((now + timedelta(hours=1)).timestamp())}


def _unsigned(claims: dict[str, Any], kid: str) -> str:
    parts = ({"alg": "none", "typ": "JWT", "kid": kid}, claims)
    return (
        ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in parts)
        + "."
    )


# --- What is seen -----------------------------------------------------------------------------------


def seen(scene: Scene, cell: Cell, grant: Grant) -> str:
    """Send the cell's request; return the outcome in the table's words."""
    worker = scene.workers[cell.caller]
    what, body = scene.body(cell, grant)
    if cell.caller in {"other-ca", "expired"}:
        return _shake(scene.world, worker)
    worker.token = scene.token(cell)
    response = worker.post(what, body)
    answer = response.json()
    if response.status_code != 200:
        return f"{response.status_code} {answer['reason']}"
    return _READERS.get(what, _read_exchange)(answer)


def _shake(world: World, worker: Worker) -> str:
    """Attempt a handshake and a request: in TLS 1.3 the client gets the refusal with its first read."""
    context = _contexts.setdefault(
        id(worker), client_context(world.ca.certificate_pem, worker.certificate_pem, worker.key)
    )
    try:
        with (
            socket.create_connection(("127.0.0.1", world.gateway.edge_port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
        ):
            secured.sendall(b"POST /edge/v1/claim HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
            return secured.recv(100).decode() or "no handshake"
    except (ssl.SSLError, ConnectionError):
        return "no handshake"


_contexts: dict[int, ssl.SSLContext] = {}


def _read_claim(answer: dict[str, Any]) -> str:
    return "ok" if answer["grants"] else f"refused: {answer['refusals'][0]['reason']}"


def _read_heartbeat(answer: dict[str, Any]) -> str:
    cancels = [each["reason"] for each in answer["commands"] if each["kind"] == "cancel"]
    return f"no lease: {cancels[0]}" if cancels else "ok"


def _read_exchange(answer: dict[str, Any]) -> str:
    [result] = answer["results"]
    if result["refused"]:
        return f"refused: {result['refused']}"
    if result["status"] < 300:
        return "ok"
    by_body = json.loads(result["body"])["detail"]["message"].startswith("body:")
    return f"{result['status']} {'body refused' if by_body else 'forbidden by policy'}"


_READERS = {
    **dict.fromkeys(("renew", "queue/receive", "logs/begin"), lambda _answer: "ok"),
    "claim": _read_claim,
    "heartbeat": _read_heartbeat,
}


def audited(world: World) -> Counter[str]:
    """Count the denials in the audit trail by event."""
    query = select(AuditRow.event, func.count()).where(AuditRow.verdict == "denied").group_by(AuditRow.event)
    with world.metadata.session() as session:
        return Counter(dict(session.execute(query).all()))


def releases(scene: Scene, cell: Cell, grant: Grant) -> str:
    """A release is always answered the same; whether it did anything is in the ledger."""
    said = seen_release(scene, cell, grant)
    if said != "ok":
        return said
    if cell.object == "unknown":
        return "no lease: unknown_item"
    row = scene.world.row(str(grant.item_id))
    if row.state == "placed":
        return "ok"
    return (
        "no lease: settled"
        if row.state == "settled" and row.worker_id == scene.workers[cell.caller].name.worker
        else "no lease: not_holder"
    )


def seen_release(scene: Scene, cell: Cell, grant: Grant) -> str:
    worker = scene.workers[cell.caller]
    if cell.caller in {"other-ca", "expired"}:
        return _shake(scene.world, worker)
    worker.token = scene.token(cell)
    response = worker.post(*scene.body(cell, grant))
    return "ok" if response.status_code == 200 else f"{response.status_code} {response.json()['reason']}"


def uses_up(cell: Cell, answer: Answer) -> bool:
    """Return whether the cell is allowed, or hostile, and changes its object."""
    if cell.object != "own" or answer.said not in {matrix.OK.said, "403 body refused"}:
        return False
    return cell.action in {"release", "state"} | matrix.HOSTILE


@pytest.mark.timeout(900)
def test_every_matrix_cell_is_enforced(world: World) -> None:
    """All cells, over real TLS; then nothing of the objects has changed, and the audit trail has grown by what was denied."""
    from airflow.models import Connection

    with world.metadata.session() as session:
        session.add(Connection(conn_id="allowed", conn_type="http"))
        session.commit()
    scene = Scene.set(world)
    right_key = scene.workers["right"].key
    assert isinstance(right_key, ec.EllipticCurvePrivateKey)
    tokens = {name: worker.token for name, worker in scene.workers.items()}
    before, wanted, wrong = audited(world), Counter[str](), []
    for cell in matrix.cells():
        scene.workers[cell.caller].token = tokens[cell.caller]
        answer = matrix.expected(cell)
        grant = scene.fresh() if uses_up(cell, answer) else scene.grants[cell.object]
        found = (releases if cell.action == "release" else seen)(scene, cell, grant)
        if found != answer.said:
            wrong.append((cell, answer.said, found))
        if answer.event is not None:
            wanted[answer.event] += 1
        for name, worker in scene.workers.items():
            worker.token = tokens[name]
    assert not wrong, f"{len(wrong)} cells, the first: {wrong[:5]}"
    _settle(world, before, wanted)
    assert audited(world) - before == wanted
    for name, state in (("own", "claimed"), ("another's", "claimed"), ("ended", "settled")):
        assert world.row(str(scene.grants[name].item_id)).state == state, name


def _settle(world: World, before: Counter[str], wanted: Counter[str]) -> None:
    """Wait for the audit rows of handshakes: the client gets the refusal a moment before they are written."""
    import time

    deadline = time.monotonic() + 10
    while audited(world) - before != wanted and time.monotonic() < deadline:
        time.sleep(0.1)


def test_matrix_page_is_current() -> None:
    """docs/reference/security-matrix.md is generated, and up to date; there are thousands of cells."""
    assert matrix.PAGE.read_text() == matrix.summary(), "run: python -m tests.integration.gateway.matrix"
    assert len(list(matrix.cells())) == 4352
