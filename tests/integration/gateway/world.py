"""A running gateway on loopback with real certificates, and workers that connect to it over real TLS."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import ssl
import tempfile
import threading
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from sqlalchemy import select
from tests.integration.gateway import seeding
from tests.support.airflow_home import Metadata

from airbridge.control_plane import local, task_options
from airbridge.control_plane.dags import Accepted, PushTerms, Steps
from airbridge.control_plane.environments import EnvironmentReceiver
from airbridge.control_plane.gateway.api.operators import Publish
from airbridge.control_plane.gateway.audit.denials import Rates
from airbridge.control_plane.gateway.server import Gateway, GatewayComponents, join_issuers
from airbridge.control_plane.gateway.transfer.sources import Sources
from airbridge.control_plane.identity import secrets, tokens
from airbridge.control_plane.identity.ca import CertificateAuthority
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.control_plane.parity import Parity
from airbridge.control_plane.policy.approved import policy_of
from airbridge.control_plane.policy.reload import ReloadedPolicy
from airbridge.control_plane.sign_in.rules import SignInRules
from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.aws.queue import MemoryQueue
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import BundleError
from airbridge.core.protocol import (
    PROTOCOL_VERSION,
    VERSION_HEADER,
    CancelCommand,
    ClaimResponse,
    Credentials,
    ExchangeResponse,
    Grant,
    Heartbeat,
    HeartbeatResponse,
    LeaseRef,
    Record,
    Versions,
)
from airbridge.core.signing import Signer
from airbridge.core.wire import rejoin
from airbridge.executor._airflow import new_session
from airbridge.executor.bundle_settings import PackageSettings
from airbridge.executor.bundles.registry import MemoryRegistry
from airbridge.executor.bundles.store import BundleStore
from airbridge.executor.ledger.identity import revocations
from airbridge.executor.ledger.identity.models import RevocationRow
from airbridge.executor.ledger.models import AuditRow, EventRow, WorkItemRow
from airbridge.executor.settings import Settings

TRUST_DOMAIN = "airbridge.test"
HOUR = timedelta(hours=1)
NUMBERS = itertools.count()
"""Of workers: several worlds may share a database."""
VERSIONS = Versions(airbridge="0.1.0", airflow="3.0.4", task_sdk="1.0.4", python="3.11.7")
# Read without `problems`: its workers try every route, those of the gateway's transport and those of stored XComs, which no
# deployment offers to one pool.
CATALOGUE = Catalogue.model_validate(
    tomllib.loads("""
    home_region = "us-east-1"
    [[region]]
    name = "us-east-1"
    transport = "gateway"
    log_bucket = "us-logs"
    bundle_bucket = "us-dags"
    [[region.pool]]
    queue_url = "http://127.0.0.1:1/us"
    [[region]]
    name = "eu-west-1"
    transport = "gateway"
    log_bucket = "eu-logs"
    bundle_bucket = "eu-dags"
    xcom_inline_bytes = 1024
    [[region.pool]]
    queue_url = "http://127.0.0.1:1/eu"
    secrets_backend = "tests.Backend"
    [[region.pool]]
    name = "gpu"
    queue_url = "http://127.0.0.1:1/eu-gpu"
    secrets_backend = "tests.Backend"
    [[limit]]
    name = "erp"
    max_running = 20
    starts_per_minute = 60
    """)
)


SLOW_PUSHES = threading.Event()
"""Set: pushes of ``slow`` end."""


def publish(_bundle: str, archive: bytes, _terms: PushTerms) -> Steps:
    """Stand in for the bundle store."""
    if archive == b"slow":
        SLOW_PUSHES.wait(30)
    if archive == b"broken":
        raise BundleError("dag.py, line 3: SyntaxError: invalid syntax")
    yield lambda: None
    return Accepted(f"sha256:{len(archive):064x}", 1.5)


@dataclass
class MovedClock:
    """The gateway's clock, which a test moves on."""

    ahead: timedelta = timedelta(0)

    def __call__(self) -> datetime:
        return datetime.now(UTC) + self.ahead


@dataclass
class World:
    """The gateway and what tests need to get at it."""

    metadata: Metadata
    directory: Path
    gateway: Gateway
    keyring: Keyring
    signer: Signer
    policy: ReloadedPolicy
    loop: asyncio.AbstractEventLoop
    clock: MovedClock
    number: Iterator[int] = field(default_factory=lambda: NUMBERS)
    workers: list[Worker] = field(default_factory=list)

    @property
    def ca(self) -> CertificateAuthority:
        """The issuing CA of this moment."""
        return self.keyring.keys.ca

    def close_workers(self) -> None:
        """Close every connection that workers have open."""
        while self.workers:
            self.workers.pop().close()

    @contextmanager
    def under(self, policy: str) -> Iterator[None]:
        """Put this policy in force for the block."""
        path = self.directory / "policy.toml"
        before = path.read_text()
        path.write_text(policy)
        self.policy.reload()
        try:
            yield
        finally:
            path.write_text(before)
            self.policy.reload()

    @property
    def edge_url(self) -> str:
        return f"https://127.0.0.1:{self.gateway.edge_port}"

    @property
    def operator_url(self) -> str:
        return f"https://127.0.0.1:{self.gateway.operator_port}"

    def join_token(self, region: str = "eu-west-1", pool: str = "default", **more: Any) -> str:
        with self.metadata.session() as session:
            issued = tokens.create_join(
                session, region=region, pool=pool, owner="test", ttl=more.pop("ttl", HOUR), **more
            )
            session.commit()
            return issued.text

    def access_token(self, *scopes: str, ttl: timedelta = HOUR, owner: str = "test") -> str:
        with self.metadata.session() as session:
            issued = tokens.create_access(session, scopes=scopes, owner=owner, actor="test", ttl=ttl)
            session.commit()
            return issued.text

    def worker(self, region: str = "eu-west-1", pool: str = "default", name: str | None = None) -> Worker:
        """An enrolled worker."""
        worker = Worker(self, region, pool, name or f"worker-{next(self.number)}")
        worker.enrol(self.join_token(region, pool))
        return worker

    def items(
        self, count: int = 1, *, region: str = "eu-west-1", pool: str = "default", **more: Any
    ) -> list[str]:
        """Queue a run of `count` tasks; return the ids of their work items."""
        with self.metadata.session() as session:
            tasks = seeding.queued_tasks(session, count, **more)
            rows = seeding.placed_items(session, tasks, region=region, pool=pool)
            return [row.id for row in rows]

    def envelope(self, item_id: str, /, signer: Signer | None = None, **changes: Any) -> str:
        """The signed message of a work item."""
        with self.metadata.session() as session:
            row = session.get(WorkItemRow, item_id)
            return (signer or self.signer).sign(seeding.work_item(session, row, **changes))

    def row(self, item_id: str) -> WorkItemRow:
        with self.metadata.session() as session:
            row: WorkItemRow = session.get(WorkItemRow, item_id)
            session.expunge(row)
            return row

    def task(self, item_id: str) -> Any:
        from airflow.models.taskinstance import TaskInstance

        with self.metadata.session() as session:
            row = session.get(WorkItemRow, item_id)
            ti = session.scalars(select(TaskInstance).where(TaskInstance.id == row.ti_id)).one()
            session.expunge_all()
            return ti

    def set_task_state(self, item_id: str, state: str) -> None:
        """Set a task instance's state, as a click in the UI does."""
        from airflow.models.taskinstance import TaskInstance

        with self.metadata.session() as session:
            row = session.get(WorkItemRow, item_id)
            session.get(TaskInstance, row.ti_id).state = state
            session.commit()

    def events(self, event: str) -> list[EventRow]:
        with self.metadata.session() as session:
            return list(
                session.scalars(select(EventRow).where(EventRow.event == event).order_by(EventRow.id))
            )

    def audited(self, event: str, **equal: Any) -> list[AuditRow]:
        """Rows of the audit trail, oldest first."""
        query = select(AuditRow).where(AuditRow.event == event).order_by(AuditRow.id)
        for name, value in equal.items():
            query = query.where(getattr(AuditRow, name) == value)
        with self.metadata.session() as session:
            return list(session.scalars(query))

    def revocations(self) -> list[RevocationRow]:
        """Everything that is revoked."""
        with self.metadata.session() as session:
            return revocations.list_all(session)

    def operator(self, token: str | None) -> httpx.Client:
        context = ssl.create_default_context(cadata=self.ca.certificate_pem)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return httpx.Client(base_url=self.operator_url, verify=context, headers=headers, trust_env=False)


def csr_pem(key: ec.EllipticCurvePrivateKey) -> str:
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def client_context(
    ca_pem: str, certificate_pem: str | None = None, key: ec.EllipticCurvePrivateKey | None = None
) -> ssl.SSLContext:
    """A client's TLS context, with a certificate if given."""
    context = ssl.create_default_context(cadata=ca_pem)
    if certificate_pem is not None and key is not None:
        # `load_cert_chain` reads files only.
        with tempfile.TemporaryDirectory() as directory:
            path = Path(directory) / "client.pem"
            pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            path.write_bytes(certificate_pem.encode() + pem)
            context.load_cert_chain(path)
    return context


class Worker:
    """A worker's side of the wire."""

    def __init__(self, world: World, region: str, pool: str, name: str) -> None:
        self.world = world
        self.name = WorkerName(TRUST_DOMAIN, region, pool, name)
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.rejoin_key = Ed25519PrivateKey.generate()
        self.versions = VERSIONS.model_dump()
        self.certificate_pem: str | None = None
        self.token = ""
        self.trust: str | None = None
        """The roots it trusts; None: the gateway's of the moment it connects."""
        self._client: httpx.Client | None = None
        world.workers.append(self)

    def enrolment(self, join_token: str, csr: str | None = None) -> dict[str, Any]:
        """The body of an enrolment, with a proof of this host's rejoin key."""
        csr, name = csr or csr_pem(self.key), self.name
        proof = rejoin.prove(self.rejoin_key, name.region, name.pool, name.worker, csr)
        return {
            "region": name.region,
            "pool": name.pool,
            "worker": name.worker,
            "csr_pem": csr,
            "join": {"method": "token", "token": join_token},
            "rejoin": proof.model_dump(),
            "versions": self.versions,
        }

    def enrol(self, join_token: str, **changes: Any) -> Credentials:
        response = self.post("enrol", self.enrolment(join_token, changes.get("csr_pem")) | changes)
        response.raise_for_status()
        credentials = Credentials.model_validate_json(response.content)
        self.use(credentials)
        return credentials

    def use(self, credentials: Credentials) -> None:
        self.present(credentials.certificate_pem, credentials.access_token)

    def present(self, certificate_pem: str | None, token: str) -> None:
        """Use this certificate and token from now on."""
        self.close()
        self.certificate_pem = certificate_pem
        self.token = token

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    @property
    def client(self) -> httpx.Client:
        if self._client is None:
            context = client_context(
                self.trust or self.world.ca.certificate_pem, self.certificate_pem, self.key
            )
            self._client = httpx.Client(
                base_url=self.world.edge_url, verify=context, trust_env=False, timeout=30
            )
        return self._client

    def post(self, what: str, body: Any, headers: dict[str, str] | None = None) -> httpx.Response:
        sent = {VERSION_HEADER: str(PROTOCOL_VERSION), "Content-Type": "application/json"}
        if self.token:
            sent["Authorization"] = f"Bearer {self.token}"
        sent |= headers or {}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self.client.post(f"/edge/v1/{what}", content=content, headers=sent)

    def claim(self, *envelopes: str) -> ClaimResponse:
        response = self.post("claim", {"envelopes": envelopes})
        assert response.status_code == 200, response.text
        return ClaimResponse.model_validate_json(response.content)

    def grant(self, item_id: str) -> Grant:
        """Claim an item that is there for this worker."""
        answer = self.claim(self.world.envelope(item_id))
        assert not answer.refusals, answer.refusals
        return answer.grants[0]

    def exchange(self, *records: Record) -> ExchangeResponse:
        response = self.post("exchange", {"records": [record.model_dump(mode="json") for record in records]})
        assert response.status_code == 200, response.text
        return ExchangeResponse.model_validate_json(response.content)

    def try_beat(self) -> httpx.Response:
        """A heartbeat that may be refused."""
        heartbeat = Heartbeat(sent_at=datetime.now(UTC), versions=VERSIONS, slots_total=8, slots_used=0)
        return self.post("heartbeat", heartbeat.model_dump_json().encode())

    def beat(self, *leases: LeaseRef, **changes: Any) -> HeartbeatResponse:
        heartbeat = Heartbeat(
            sent_at=changes.pop("sent_at", None) or datetime.now(UTC),
            versions=Versions.model_validate(self.versions),
            slots_total=8,
            slots_used=changes.pop("slots_used", len(leases)),
            leases=leases,
            **changes,
        )
        response = self.post("heartbeat", heartbeat.model_dump_json().encode())
        assert response.status_code == 200, response.text
        return HeartbeatResponse.model_validate_json(response.content)

    def release(self, *leases: LeaseRef) -> None:
        body = {"items": [lease.model_dump(mode="json") for lease in leases], "detail": "drained"}
        response = self.post("release", body)
        assert response.status_code == 200, response.text


def cancels(response: HeartbeatResponse) -> list[CancelCommand]:
    """The cancel commands of a heartbeat's answer."""
    return [command for command in response.commands if isinstance(command, CancelCommand)]


def lease(grant: Grant) -> LeaseRef:
    return LeaseRef(item_id=grant.item_id, epoch=grant.epoch)


def record(grant: Grant, seq: int, method: str, path: str, body: Any = None, query: str = "") -> Record:
    """A record of the granted task; ``{ti}`` in the path is its task instance."""
    return Record(
        item_id=grant.item_id,
        epoch=grant.epoch,
        seq=seq,
        method=method,
        path=path.replace("{ti}", str(grant.ti_id)),
        query=query,
        body=json.dumps(body) if body is not None else None,
        recorded_at=datetime.now(UTC),
    )


def finished(grant: Grant, seq: int, state: str = "success") -> Record:
    """The record of a final state."""
    body = {"state": state, "end_date": datetime.now(UTC).isoformat()}
    return record(grant, seq, "PATCH", "task-instances/{ti}/state", body)


def xcom(grant: Grant, seq: int, key: str, value: Any, method: str = "POST") -> Record:
    """An XCom write of the granted task."""
    return record(grant, seq, method, xcom_path(grant, key), value)


def xcom_path(grant: Grant, key: str) -> str:
    return f"xcoms/{grant.ti['dag_id']}/{grant.ti['run_id']}/{grant.ti['task_id']}/{key}"


def uuids(ids: Sequence[str]) -> list[UUID]:
    return [UUID(each) for each in ids]


def environment_receiver(regions: Mapping[str, MemoryStore], registry: MemoryRegistry) -> EnvironmentReceiver:
    """A receiver for every bundle, over buckets and a registry in memory."""
    home = next(iter(regions))
    return EnvironmentReceiver(
        lambda bundle: BundleStore(bundle, home, regions, registry), lambda _: None, PackageSettings()
    )


def memory_sources(catalogue: Catalogue) -> Sources:
    """Return empty queues and buckets in memory."""
    return Sources(catalogue, lambda *_: MemoryQueue(), lambda _, bucket: MemoryStore(bucket))


@contextmanager
def running(
    metadata: Metadata,
    directory: Path,
    catalogue: Catalogue = CATALOGUE,
    denial_rates: Rates | None = None,
    environments: EnvironmentReceiver | None = None,
    sources: Sources | None = None,
    publish: Publish = publish,
    **changes: Any,
) -> Iterator[World]:
    """A gateway in a thread of this process, on free ports."""
    secrets_dir = directory / "secrets"
    secrets.create_all(secrets_dir, TRUST_DOMAIN, datetime.now(UTC))
    settings = Settings(
        regions_file=directory / "unread.toml",
        secrets_dir=secrets_dir,
        trust_domain=TRUST_DOMAIN,
        gateway_port=0,
        metrics_namespace="AirBridge",
        **{
            "gateway_requests_per_second_per_address": 0.0,
            **changes,
        },  # all requests of the tests come from one address
        operator_port=0,
    )
    keyring = Keyring.load(secrets_dir)
    shutil.copyfile(Path(local.__file__).with_name("policy.toml"), directory / "policy.toml")
    policy = (
        ReloadedPolicy(directory / "policy.toml")
        if "policy" not in (settings.four_eyes or ())
        else policy_of(settings)
    )
    clock = MovedClock()
    gateway = Gateway(
        GatewayComponents(
            settings=settings,
            keyring=keyring,
            catalogue=catalogue,
            parity=Parity.load(None, settings.worker_images or ()),
            publish=publish,
            environments=environments
            or environment_receiver(
                {"us-east-1": MemoryStore("us-east-1")}, MemoryRegistry(new_session=new_session)
            ),
            policy=policy,
            sources=sources or memory_sources(catalogue),
            denial_rates=denial_rates or Rates(),
            clock=clock,
            sign_in=SignInRules.read(settings.oidc_file) if settings.oidc_file else None,
            join_issuers=join_issuers(settings, catalogue),
            task_options=task_options.load(settings.task_options_withheld or ()),
        )
    )
    # The gateway's own loop in a thread, so that tests can use blocking clients.
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="gateway-under-test")
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(gateway.start(), loop).result(30)
        signer = Signer.from_pem((secrets_dir / secrets.SIGNING_KEY).read_bytes())
        yield World(metadata, directory, gateway, keyring, signer, policy, loop, clock)
        asyncio.run_coroutine_threadsafe(gateway.stop(), loop).result(30)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()
