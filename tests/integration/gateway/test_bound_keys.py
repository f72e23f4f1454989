"""Joining by a bound key: at first use or by an operator, again after weeks, and never twice from one state directory."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from tests.integration.gateway.world import Worker, World, csr_pem, running
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres

from airbridge.core.catalogue import Catalogue
from airbridge.core.protocol import Credentials
from airbridge.edge_worker.gateway_client.bound_key import BoundKeyJoin, public_key_of
from airbridge.edge_worker.settings import WorkerSettings, load
from airbridge.executor.ledger.identity.models import BoundKeyRow, CertificateRow, JoinProofRow
from airbridge.executor.ledger.models import WorkerRow

CATALOGUE = Catalogue.parse(
    """
    home_region = "factory-7"
    [[region]]
    name = "factory-7"
    aws_region = "eu-central-1"
    transport = "gateway"
    log_bucket = "factory-logs"
    bundle_bucket = "factory-dags"
    [[region.pool]]
    queue_url = "http://127.0.0.1:1/factory"
    [[region.pool]]
    name = "strict"
    queue_url = "http://127.0.0.1:1/strict"
    max_absence_days = 30
    """
)
REJOINS_LATE = timedelta(days=40)


@pytest.fixture(scope="module")
def world(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A gateway for a factory without AWS."""
    name = postgres.create(postgres_template)
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(metadata, tmp_path_factory.mktemp("gateway"), CATALOGUE) as it,
    ):
        yield it
    postgres.drop(name)


@dataclass
class Host:
    """A host with a state directory, which joins as the worker's own code does."""

    world: World
    state: Path
    name: str
    pool: str = "default"
    token_file: Path | None = None

    def __post_init__(self) -> None:
        self.worker = Worker(self.world, "factory-7", self.pool, self.name)

    @property
    def settings(self) -> WorkerSettings:
        token = {} if self.token_file is None else {"join_token_file": self.token_file}
        return load(
            None,
            gateway_url="https://unused",
            ca_file=self.state / "ca",
            region="factory-7",
            pool=self.pool,
            name=self.name,
            state_dir=self.state,
            join_method="bound_key",
            **token,
        )

    @property
    def key(self) -> str:
        made = public_key_of(self.settings, make=True)
        assert made is not None
        return made

    def request(self) -> dict[str, Any]:
        """The body of the next join, noted as sent."""
        join = BoundKeyJoin(self.settings)
        csr = csr_pem(self.worker.key)
        self.worker.rejoin_key = join._key.open()
        proof = asyncio.run(join.proof(csr))
        return self.worker.enrolment("", csr) | {"join": proof.model_dump()}

    def send(self, body: dict[str, Any]) -> httpx.Response:
        running = (self.worker.certificate_pem, self.worker.token)
        self.worker.present(None, "")
        response = self.worker.post("enrol", body)
        self.worker.present(*running)
        return response

    def join(self) -> httpx.Response:
        """Join, and note the answer if it is an identity."""
        response = self.send(self.request())
        if response.status_code == 200:
            asyncio.run(BoundKeyJoin(self.settings).accepted())
            self.worker.use(Credentials.model_validate_json(response.content))
        return response

    def copied(self, to: Path) -> Host:
        """A host with a copy of the state directory."""
        shutil.copytree(self.state, to)
        return Host(self.world, to, self.name, self.pool, self.token_file)


@pytest.fixture
def host(world: World, tmp_path: Path) -> Host:
    """A host whose key an operator has bound."""
    made = Host(world, tmp_path / "state", f"press-{next(world.number)}")
    bind(world, made)
    return made


def bind(world: World, host: Host, *, key: str | None = None) -> None:
    with world.operator(world.access_token("tokens:create")) as operator:
        body = {"worker": host.name, "region": "factory-7", "pool": host.pool, "key": key or host.key}
        operator.post("/operator/v1/bound-keys", json=body).raise_for_status()


def test_operator_binds_a_key(world: World, host: Host) -> None:
    """A host whose key an operator bound joins without any token, is heard of, and is listed with its joins."""
    assert host.join().status_code == 200
    host.worker.beat()
    with world.operator(world.access_token("tokens:read")) as operator:
        listed = {each["worker"]: each for each in operator.get("/operator/v1/bound-keys").json()["keys"]}
    assert (listed[host.name]["key"], listed[host.name]["joins"]) == (host.key, 1)
    [bound] = world.audited("bound_key.bound", worker_id=host.name)
    assert bound.actor == "operator:test"


def test_token_binds_a_key_at_first_use(world: World, tmp_path: Path) -> None:
    """A one-use token binds the host's key; after that the host joins without it, and the token is no good to others."""
    token = tmp_path / "token"
    token.write_text(world.join_token("factory-7"))
    first = Host(world, tmp_path / "one", f"press-{next(world.number)}", token_file=token)
    assert first.join().status_code == 200
    other = Host(world, tmp_path / "two", f"press-{next(world.number)}", token_file=token)
    assert other.join().status_code == 403
    first.token_file = None
    assert first.join().status_code == 200


def test_unbound_key_is_refused(world: World, tmp_path: Path) -> None:
    """A host that nobody has admitted is told the command that would admit it."""
    stranger = Host(world, tmp_path / "state", f"press-{next(world.number)}")
    response = stranger.join()
    assert response.status_code == 403
    assert f"airbridge worker bind {stranger.name} --region factory-7" in response.json()["detail"]


def test_other_key_is_refused(world: World, host: Host, tmp_path: Path) -> None:
    """A bound name is its host's: not another key's, not a token's, whatever token there is."""
    host.join()
    thief = Host(world, tmp_path / "thief", host.name)
    thief.token_file = tmp_path / "token"
    thief.token_file.write_text(world.join_token("factory-7"))
    assert "another key is bound" in thief.join().json()["detail"]
    by_token = Worker(world, "factory-7", "default", host.name)
    refused = by_token.post("enrol", by_token.enrolment(world.join_token("factory-7")))
    assert "it joins by that alone" in refused.json()["detail"]
    host.worker.beat()


def test_forged_and_replayed_proofs_are_refused(world: World, host: Host) -> None:
    """A proof is good for one request: not for another count, key or certificate request, and not twice."""
    body = host.request()
    join = body["join"]
    for change in (
        {"counter": join["counter"] + 1},
        {"attempt": "0" * 32},
        {"public_key": Host(world, host.state.parent / "b", "b").key},
    ):
        assert host.send(body | {"join": join | change}).status_code == 403
    other_csr = body | {"csr_pem": csr_pem(Host(world, host.state.parent / "c", "c").worker.key)}
    assert host.send(other_csr).status_code == 403
    assert host.send(body).status_code == 200
    replayed = host.send(body)
    assert replayed.status_code == 403
    assert "used before" in replayed.json()["detail"]
    assert not world.audited("identity.forked", worker_id=host.name)


def test_lost_answer_is_no_copy(world: World, host: Host) -> None:
    """A join whose answer was lost is sent again under its name, and counts once."""
    assert host.send(host.request()).status_code == 200
    assert host.join().status_code == 200
    assert host.join().status_code == 200
    host.worker.beat()
    assert _row(world, host).counter == 2


def test_copied_state_directory_stops_both(world: World, host: Host, tmp_path: Path) -> None:
    """At the second join from a copied state directory the clone and the original are stopped, and the audit says why."""
    host.join()
    clone = host.copied(tmp_path / "clone")
    assert clone.join().status_code == 200
    # The original still runs. Its name has joined anew since, so it is told to join again, and that shows the copy.
    assert host.worker.try_beat().status_code == 401
    second = host.join()
    assert (second.status_code, second.json()["reason"]) == (403, "revoked")
    for each in (host, clone):
        assert each.worker.try_beat().json()["reason"] == "revoked"
        assert each.join().json()["reason"] == "revoked"
    [row] = world.audited("identity.forked", worker_id=host.name)
    assert "its state directory was copied: join number 2 came once more" in row.detail["why"]
    assert (row.detail["counter"], row.detail["counted"], row.detail["key"]) == (2, 2, host.key)


def test_copy_of_an_old_backup_is_detected(world: World, host: Host, tmp_path: Path) -> None:
    """A state directory restored from a backup has counted less, which is refused in the same way."""
    host.join()
    backup = host.copied(tmp_path / "backup")
    for _ in range(3):
        assert host.join().status_code == 200
    assert backup.join().json()["reason"] == "revoked"
    assert host.worker.try_beat().json()["reason"] == "revoked"
    [row] = world.audited("identity.forked", worker_id=host.name)
    assert "join number 2 came once more, after number 4" in row.detail["why"]


def test_host_that_was_off_for_weeks_joins_by_itself(world: World, host: Host) -> None:
    """After 40 days off, with its row and certificates long gone, a host joins without anybody's help."""
    host.join()
    _pass_days(world, host)
    assert host.join().status_code == 200
    host.worker.beat()


def test_policy_bounds_the_absence(world: World, tmp_path: Path) -> None:
    """A pool may say how long a host may have been away; an operator then binds the key again."""
    host = Host(world, tmp_path / "state", f"press-{next(world.number)}", pool="strict")
    bind(world, host)
    host.join()
    _pass_days(world, host)
    refused = host.join()
    assert refused.status_code == 403
    assert "was away for 40 days" in refused.json()["detail"]
    bind(world, host)
    assert host.join().status_code == 200


def test_unbound_host_cannot_join_again(world: World, host: Host) -> None:
    """A key that an operator removed admits nobody; only an operator of that pool may remove it."""
    host.join()
    with world.operator(world.access_token("tokens:create region=elsewhere")) as operator:
        assert operator.delete(f"/operator/v1/bound-keys/{host.name}").status_code == 403
    with world.operator(world.access_token("tokens:create")) as operator:
        assert operator.delete(f"/operator/v1/bound-keys/{host.name}").status_code == 200
        assert operator.delete(f"/operator/v1/bound-keys/{host.name}").status_code == 404
    assert host.join().status_code == 403


def test_keys_that_are_none_are_refused(world: World, host: Host) -> None:
    """Only an Ed25519 key, for a pool that there is, can be bound, and only with the scope for it."""
    with world.operator(world.access_token("tokens:create")) as operator:
        for change in ({"key": "abc"}, {"key": "x" * 65}, {"pool": "nowhere"}, {"worker": "No Name"}):
            body = {"worker": "w", "region": "factory-7", "key": host.key} | change
            assert operator.post("/operator/v1/bound-keys", json=body).status_code == 400, change
    with world.operator(world.access_token("tokens:read")) as reader:
        body = {"worker": "w", "region": "factory-7", "key": host.key}
        assert reader.post("/operator/v1/bound-keys", json=body).status_code == 403


def _row(world: World, host: Host) -> BoundKeyRow:
    with world.metadata.session() as session:
        row: BoundKeyRow = session.get(BoundKeyRow, host.name)
        session.expunge(row)
        return row


def _pass_days(world: World, host: Host) -> None:
    """Let 40 days go by for a host that is off: the gateway has forgotten its worker by then."""
    with world.metadata.session() as session:
        row = session.get(BoundKeyRow, host.name)
        row.seen_at -= REJOINS_LATE
        row.bound_at -= REJOINS_LATE
        for table, column in ((CertificateRow, "worker_id"), (JoinProofRow, "worker_id"), (WorkerRow, "id")):
            for gone in session.scalars(select(table).where(getattr(table, column) == host.name)):
                session.delete(gone)
        session.commit()
