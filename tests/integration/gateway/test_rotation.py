"""Rotation of every key under a running gateway, and revocation: honest workers stay connected, all others are refused."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding
from structlog.testing import capture_logs
from tests.integration.gateway.test_metrics import families_of
from tests.integration.gateway.world import (
    HOUR,
    TRUST_DOMAIN,
    VERSIONS,
    Worker,
    World,
    csr_pem,
    finished,
)
from tests.support.platform import wait_for

from airbridge.control_plane.exceptions import SecretsError
from airbridge.control_plane.gateway.background.authority_expiry import AuthorityExpiry
from airbridge.control_plane.gateway.background.snapshot_signatures import SnapshotSignatures
from airbridge.control_plane.identity import rotation, secrets
from airbridge.control_plane.identity.ca import ISSUING_LIFETIME, CertificateAuthority, key_id
from airbridge.control_plane.observability.alarms import ALERTS
from airbridge.core.code.signature import PUBLISH_KEY, SnapshotSigner, SnapshotVerifier, key_of
from airbridge.core.protocol import Credentials, RefusalReason, RenewCommand, TrustCommand
from airbridge.core.signing import Signer
from airbridge.executor.bundles import registry, versions
from airbridge.executor.ledger.models import WorkerRow


def follow(world: World) -> None:
    """Let the gateway look at its files now."""
    asyncio.run_coroutine_threadsafe(world.gateway.key_reloader.reload(), world.loop).result(10)


def renew(worker: Worker) -> Credentials:
    key = ec.generate_private_key(ec.SECP256R1())
    response = worker.post("renew", {"csr_pem": csr_pem(key), "versions": VERSIONS.model_dump()})
    assert response.status_code == 200, response.text
    worker.key = key
    credentials = Credentials.model_validate_json(response.content)
    worker.use(credentials)
    return credentials


def commands(worker: Worker, trust_version: str) -> list[Any]:
    return list(worker.beat(trust_version=trust_version).commands)


def ordered_to_renew(worker: Worker, trust_version: str) -> bool:
    return any(isinstance(each, RenewCommand) for each in commands(worker, trust_version))


@pytest.fixture
def directory(world: World) -> Iterator[Path]:
    """The gateway's secrets directory, put back as it was afterwards."""
    path = world.directory / "secrets"
    before = {each: each.read_bytes() for each in path.iterdir() if each.is_file()}
    yield path
    world.close_workers()
    for each in list(path.iterdir()):
        if each.is_file() and each not in before:
            each.unlink()
    for each, content in before.items():
        secrets.write(each, content)
    follow(world)


def test_issuing_ca_rotation_is_seamless(world: World, directory: Path) -> None:
    """Old certificates stay valid, their holders are ordered to renew, new ones come from the new CA; roots and trust stay."""
    [item] = world.items()
    worker = world.worker()
    grant = worker.grant(item)
    before, trust = world.ca.key_id, world.keyring.keys.trust.version
    root = secrets.load_root(directory / secrets.ROOT_DIRECTORY)
    rotation.rotate_issuing_ca(directory, root, TRUST_DOMAIN, datetime.now(UTC))
    follow(world)
    assert world.ca.key_id != before
    assert world.keyring.keys.trust.version == trust
    assert ordered_to_renew(worker, trust)
    renewed = x509.load_pem_x509_certificates(renew(worker).certificate_pem.encode())
    assert [key_id(each) for each in renewed[1:]] == [world.ca.key_id]
    assert not ordered_to_renew(worker, trust)
    assert worker.exchange(finished(grant, 1)).results[0].status == 204
    [row] = world.audited("keys.changed")[-1:]
    assert (row.detail["issuing_ca"], row.detail["before"]["issuing_ca"]) == (world.ca.key_id, before)


def test_ending_ca_raises_an_alarm(world: World, directory: Path) -> None:
    """Ten days before its end the issuing CA is in the metrics, below an alarm's threshold, and in the gateway's log."""
    root = secrets.load_root(directory / secrets.ROOT_DIRECTORY)
    left = timedelta(days=10)
    rotation.rotate_issuing_ca(directory, root, TRUST_DOMAIN, datetime.now(UTC) - ISSUING_LIFETIME + left)
    follow(world)
    gauge = families_of(world)["airbridge_ca_left_seconds"]
    found = {sample.labels["kind"]: sample.value for sample in gauge.samples}
    [alert] = [each for each in ALERTS if each.metric.name == gauge.name]
    assert left.total_seconds() == pytest.approx(found["issuing"], abs=60)
    assert found["issuing"] < alert.threshold < found["root"]
    with capture_logs() as events:
        AuthorityExpiry(world.keyring, lambda: datetime.now(UTC)).check()
    [warned] = [each for each in events if each["event"] == "gateway.ca_ends"]
    assert ("issuing", world.ca.key_id) == (warned["kind"], warned["key_id"])


def test_ended_ca_is_replaced_under_running_gateway(world: World, directory: Path) -> None:
    """A gateway whose issuing CA has ended keeps its certificate, and takes up the next CA."""
    root = secrets.load_root(directory / secrets.ROOT_DIRECTORY)
    ended = datetime.now(UTC) - ISSUING_LIFETIME - HOUR
    rotation.rotate_issuing_ca(directory, root, TRUST_DOMAIN, ended)
    follow(world)
    assert world.ca.certificate.not_valid_after_utc < datetime.now(UTC)
    rotation.rotate_issuing_ca(directory, root, TRUST_DOMAIN, datetime.now(UTC))
    follow(world)
    world.worker().beat()


def test_revoked_issuing_ca_requires_enrolment(world: World, directory: Path) -> None:
    """401 on the next request of an open connection, renewal included; enrolment under the CA in use works."""
    worker = world.worker()
    worker.beat()
    old = world.ca
    root = secrets.load_root(directory / secrets.ROOT_DIRECTORY)
    rotation.rotate_issuing_ca(directory, root, TRUST_DOMAIN, datetime.now(UTC))
    follow(world)
    with world.operator(world.access_token("revocations:*")) as operator:
        asked = {"kind": "issuer", "value": old.key_id, "reason": "key leaked"}
        assert operator.post("/operator/v1/revocations", json=asked).status_code == 200
        try:
            body = {"csr_pem": csr_pem(worker.key), "versions": VERSIONS.model_dump()}
            refused = worker.post("renew", body)
            assert (refused.status_code, "enrol again" in refused.json()["detail"]) == (401, True)
            worker.present(None, "")
            worker.enrol(world.join_token())
            worker.beat()
            forged = Worker(world, "eu-west-1", "default", "forged")
            leaf = old.issue_worker(csr_pem(forged.key), forged.name, datetime.now(UTC), HOUR)
            forged.present(leaf.public_bytes(Encoding.PEM).decode() + old.chain_pem, worker.token)
            assert forged.post("claim", {"envelopes": ["x"]}).status_code == 401
        finally:
            operator.delete("/operator/v1/revocations", params={"kind": "issuer", "value": old.key_id})
    assert [row.detail["value"] for row in world.audited("revocation.added")[-1:]] == [old.key_id]
    assert [row.detail["value"] for row in world.audited("revocation.removed")[-1:]] == [old.key_id]


def test_root_rotation_overlaps(world: World, directory: Path, tmp_path: Path) -> None:
    """A new root reaches workers by heartbeat; then it issues; then the old one goes and what it signed is refused."""
    worker = world.worker()
    first = world.keyring.keys.trust
    old_root = secrets.load_root(directory / secrets.ROOT_DIRECTORY)
    new_root = secrets.create_root(tmp_path / "root", TRUST_DOMAIN, datetime.now(UTC))
    with pytest.raises(SecretsError, match="is not trusted yet"):
        rotation.rotate_issuing_ca(directory, new_root, TRUST_DOMAIN, datetime.now(UTC))
    rotation.add_root(directory, new_root.certificate)
    follow(world)
    [told] = [each for each in commands(worker, first.version) if isinstance(each, TrustCommand)]
    assert len(x509.load_pem_x509_certificates(told.trust.ca_pem.encode())) == 2
    commands(worker, told.trust.version)
    with world.metadata.session() as session:
        assert session.get(WorkerRow, worker.name.worker).trust_version == told.trust.version
    rotation.rotate_issuing_ca(directory, new_root, TRUST_DOMAIN, datetime.now(UTC))
    follow(world)
    behind = world.worker()
    # The worker has taken up both roots; `behind` has only the old one.
    worker.trust = told.trust.ca_pem
    renew(worker)
    under_old = CertificateAuthority(*issued(old_root), (old_root.certificate,))
    with pytest.raises(SecretsError, match="'airbridge ca rotate' under another root first"):
        rotation.drop_root(directory, new_root.key_id)
    rotation.drop_root(directory, old_root.key_id)
    follow(world)
    assert [each.key_id for each in (new_root,)] == [key_id(root) for root in world.ca.roots]
    worker.close()
    worker.beat()
    behind.close()
    behind.trust = first.ca_pem
    with pytest.raises(httpx.ConnectError):
        behind.beat()
    stranger = Worker(world, "eu-west-1", "default", "stranger")
    leaf = under_old.issue_worker(csr_pem(stranger.key), stranger.name, datetime.now(UTC), HOUR)
    stranger.present(leaf.public_bytes(Encoding.PEM).decode() + under_old.chain_pem, worker.token)
    with pytest.raises((httpx.TransportError, ssl.SSLError)):
        stranger.post("claim", {"envelopes": ["x"]})


def test_signing_key_rotation_overlaps(world: World, directory: Path) -> None:
    """The new key is known before it signs, both are accepted while messages are under way, and the old one is retired last."""
    first, second = world.items(2)
    worker = world.worker()
    before = world.keyring.keys.trust.version
    staged = rotation.stage_signing_key(directory)
    follow(world)
    [told] = [each for each in commands(worker, before) if isinstance(each, TrustCommand)]
    assert staged.kid in {key.kid for key in told.trust.verify_keys}
    under_way = world.envelope(first)
    rotation.activate_signing_key(directory)
    signer = Signer.from_pem((directory / secrets.SIGNING_KEY).read_bytes())
    assert signer.verify_key.kid == staged.kid
    assert len(worker.claim(under_way, world.envelope(second, signer)).grants) == 2
    [retired] = rotation.retire_signing_keys(directory)
    follow(world)
    assert retired.kid == world.signer.verify_key.kid
    [item] = world.items()
    [refusal] = worker.claim(world.envelope(item)).refusals
    assert refusal.reason is RefusalReason.BAD_SIGNATURE
    assert worker.claim(world.envelope(item, signer)).grants


def test_token_key_rotation_overlaps(world: World, directory: Path) -> None:
    """Tokens of the old key stay valid and their holders are ordered to renew; after it is retired they are refused."""
    renewed, late = world.worker(), world.worker()
    trust = world.keyring.keys.trust.version
    assert not ordered_to_renew(renewed, trust)
    rotation.rotate_token_key(directory)
    follow(world)
    assert ordered_to_renew(renewed, trust)
    renew(renewed)
    assert not ordered_to_renew(renewed, trust)
    rotation.retire_token_keys(directory)
    follow(world)
    renewed.beat()
    assert late.post("claim", {"envelopes": ["x"]}).status_code == 401


def test_inconsistent_key_files_change_nothing(world: World, directory: Path) -> None:
    """A key without its certificate is not taken up; the gateway goes on with what it has."""
    worker, before = world.worker(), world.ca.key_id
    other = CertificateAuthority.generate(TRUST_DOMAIN, datetime.now(UTC))
    secrets.write(directory / secrets.CA_KEY, other.key_pem())
    follow(world)
    assert world.ca.key_id == before
    worker.beat()


@pytest.mark.parametrize(
    ("scope", "status"),
    [
        ("revocations:write pool/eu-west-1/*", 200),
        ("revocations:write worker/*", 403),
        ("revocations:read", 403),
        ("workers:revoke", 403),
    ],
)
def test_revocation_scope_limits_targets(world: World, scope: str, status: int) -> None:
    """A scope names a kind and a pattern of what may be revoked."""
    asked = {"kind": "pool", "value": "eu-west-1/none", "reason": "test"}
    with world.operator(world.access_token(scope)) as operator:
        assert operator.post("/operator/v1/revocations", json=asked).status_code == status
        if status == 200:
            gone = operator.delete(
                "/operator/v1/revocations", params={"kind": "pool", "value": "eu-west-1/none"}
            )
            assert gone.status_code == 200
            again = operator.delete(
                "/operator/v1/revocations", params={"kind": "pool", "value": "eu-west-1/none"}
            )
            assert again.status_code == 404


def issued(root: Any) -> tuple[Any, Any]:
    ca = root.issue_authority(TRUST_DOMAIN, datetime.now(UTC))
    return ca.certificate, ca._key


def test_workers_send_their_chain(world: World) -> None:
    """A worker's certificate comes with its issuing CA's: gateways trust the root alone."""
    worker = world.worker()
    chain = x509.load_pem_x509_certificates((worker.certificate_pem or "").encode())
    assert len(chain) == 2
    alone = chain[0].public_bytes(Encoding.PEM).decode()
    worker.present(alone, worker.token)
    with pytest.raises((httpx.TransportError, ssl.SSLError)):
        worker.beat()


# --- Snapshots of DAG code

VERSION = f"sha256:{'a' * 64}"


def recorded(world: World, bundle: str, signature: str) -> None:
    with world.metadata.session() as session:
        versions.sign(session, bundle, VERSION, "ci", signature)
        session.commit()


def silence(world: World) -> None:
    """Let no worker of earlier tests be waited for."""
    with world.metadata.session() as session:
        session.query(WorkerRow).update({"last_heartbeat_at": None})
        session.commit()


def signature_of(world: World, bundle: str) -> str | None:
    with world.metadata.session() as session:
        return versions.signatures(session, [(bundle, VERSION)]).get((bundle, VERSION))


def test_publishing_key_rotation_signs_snapshots_anew(world: World, directory: Path) -> None:
    """What the old key signed is good under the new one alone; what no known key signed is not made good."""
    old = registry.read_signer(directory / PUBLISH_KEY)
    stranger = SnapshotSigner(Ed25519PrivateKey.generate())
    recorded(world, "mine", old.sign("mine", VERSION, "ci"))
    forged = stranger.sign("forged", VERSION, "ci")
    recorded(world, "forged", forged)
    other = old.sign("mine", VERSION, "ci")
    recorded(world, "renamed", other)
    silence(world)
    new = rotation.rotate_publishing_key(directory)
    wait_for(lambda: key_of(signature_of(world, "mine") or "") == new.kid, "the gateway to sign it anew")
    assert SnapshotVerifier([new]).check("mine", VERSION, signature_of(world, "mine")) == "ci"
    assert (signature_of(world, "forged"), signature_of(world, "renamed")) == (forged, other)
    with world.operator(world.access_token("workers:read")) as operator:
        signed_by = operator.get("/operator/v1/keys").json()["snapshots_signed_by"]
    assert signed_by[new.kid] >= 1
    assert signed_by[old.verify_key.kid] == 1
    assert world.audited("snapshots.signed_anew")[-1].detail["key"] == new.kid
    assert rotation.retire_publishing_keys(directory) == (old.verify_key,)
    assert secrets.load_publish_keys(directory) == (new,)


def test_snapshots_are_signed_anew_once_workers_have_the_key(world: World, directory: Path) -> None:
    """What is granted in between is good for a worker that has the old keys; also what an old key signs later is signed anew."""
    old = registry.read_signer(directory / PUBLISH_KEY)
    recorded(world, "mine", old.sign("mine", VERSION, "ci"))
    silence(world)
    worker = world.worker()
    worker.beat(trust_version=world.keyring.keys.trust.version)
    new = rotation.rotate_publishing_key(directory)
    follow(world)
    trust = world.keyring.keys.trust.version
    signatures = SnapshotSignatures(world.keyring, 90.0)
    assert signatures.turn() == 0
    assert key_of(signature_of(world, "mine") or "") == old.verify_key.kid
    worker.beat(trust_version=trust)
    assert signatures.turn() >= 1
    assert key_of(signature_of(world, "mine") or "") == new.kid
    recorded(world, "late", old.sign("late", VERSION, "ci"))
    wait_for(lambda: key_of(signature_of(world, "late") or "") == new.kid, "the gateway to sign it anew")


def test_nothing_is_signed_with_a_key_that_workers_lack(world: World, directory: Path) -> None:
    """A directory that got the key before the list of public keys changes nothing yet."""
    old = registry.read_signer(directory / PUBLISH_KEY)
    signature = old.sign("mine", VERSION, "ci")
    recorded(world, "mine", signature)
    secrets.write(directory / PUBLISH_KEY, Signer.generate().to_pem())
    assert SnapshotSignatures(world.keyring, 90.0).turn() == 0
    assert signature_of(world, "mine") == signature
