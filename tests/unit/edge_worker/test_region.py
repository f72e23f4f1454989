"""The worker's region: snapshots are checked with the keys of enrolment, also after a restart during a cut."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from airbridge.core.code.signature import SnapshotSigner
from airbridge.core.exceptions import BundleError, StoreError
from airbridge.core.protocol import BundleRef, Credentials, RegionSettings, TrustBundle, VerifyKey
from airbridge.core.signing import Signer
from airbridge.edge_worker.gateway_client.region import WorkerRegion

SIGNER = SnapshotSigner.from_pem(Signer.generate().to_pem())
REF = BundleRef(name="dags", version=f"sha256:{'1' * 64}")
NOW = datetime(2026, 1, 31, tzinfo=UTC)


def region() -> WorkerRegion:
    def no_store(*_: object) -> None:
        raise AssertionError

    return WorkerRegion(no_store)  # type: ignore[arg-type] # no bucket is opened


def credentials(*keys: VerifyKey) -> Credentials:
    return Credentials(
        worker_id="w",
        certificate_pem="",
        access_token="",
        expires_at=NOW,
        renew_after=NOW,
        trust=TrustBundle(version="1", ca_pem="", verify_keys=(), publish_keys=keys),
        settings=RegionSettings(
            region="eu-west-1", pool="default", queue_url="q", log_bucket="l", bundle_bucket="b"
        ),
    )


def test_signature_is_required() -> None:
    """With keys, only what the control plane signed is used; a missing, foreign or other bundle's signature is refused."""
    found = region()
    found.adopt(credentials(SIGNER.verify_key))
    good = SIGNER.sign(REF.name, REF.version, "ci")
    found.check_snapshot(REF, good)
    other = SnapshotSigner.from_pem(Signer.generate().to_pem())
    for signature in (None, other.sign(REF.name, REF.version, "ci"), SIGNER.sign("other", REF.version, "ci")):
        with pytest.raises(BundleError):
            found.check_snapshot(REF, signature)


def test_keys_outlive_the_process() -> None:
    """A restarted worker that cannot reach the gateway checks with the journalled keys."""
    before, after = region(), region()
    with pytest.raises(StoreError) as caught:
        after.check_snapshot(REF, None)
    assert caught.value.transient
    after.restore({change.name: change.value for change in before.adopt(credentials(SIGNER.verify_key))})
    after.check_snapshot(REF, SIGNER.sign(REF.name, REF.version, "ci"))
    with pytest.raises(BundleError):
        after.check_snapshot(REF, None)


def test_older_control_plane_signs_nothing() -> None:
    """A control plane of the version before makes no key known: its snapshots are known by their digests alone."""
    found = region()
    found.adopt(credentials())
    found.check_snapshot(REF, None)
