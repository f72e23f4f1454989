"""The registry of bundles, in the database and in memory: current versions, signatures, and what two publishers see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.support.airflow_home import Metadata

from airbridge.core.code import environment
from airbridge.core.code.signature import SnapshotSigner, SnapshotVerifier
from airbridge.core.exceptions import BundleError, PreconditionFailed
from airbridge.core.signing import Signer
from airbridge.executor import _airflow
from airbridge.executor.bundles import versions
from airbridge.executor.bundles.registry import ADOPTED, DatabaseRegistry, MemoryRegistry, Registry

ONE, TWO, THREE = (f"sha256:{digit * 64}" for digit in "123")
Signature = Callable[[str, str], str | None]


@pytest.fixture
def signer() -> SnapshotSigner:
    return SnapshotSigner.from_pem(Signer.generate().to_pem())


@pytest.fixture(params=["database", "memory"])
def registry(
    request: pytest.FixtureRequest, signer: SnapshotSigner, sqlite_metadata: Metadata
) -> tuple[Registry, Signature]:
    """A registry, and how to read a signature from it."""
    if request.param == "memory":
        memory = MemoryRegistry(signer)
        return memory, lambda bundle, version: memory.signatures.get((bundle, version))

    def read(bundle: str, version: str) -> str | None:
        with sqlite_metadata.session() as session:
            return versions.signatures(session, [(bundle, version)]).get((bundle, version))

    return DatabaseRegistry(_airflow.new_session, lambda: signer), read


def test_published_version_is_current(registry: tuple[Registry, Signature], signer: SnapshotSigner) -> None:
    """A published version is current and signed, with the version before it; other bundles have none."""
    bundles, signature = registry
    assert bundles.current("dags") is None
    bundles.publish("dags", ONE, "ci", None)
    bundles.publish("dags", TWO, "push", 1)
    current = bundles.current("dags")
    assert current is not None
    assert (current.serial, current.version, current.previous, current.publisher) == (2, TWO, ONE, "push")
    verifier = SnapshotVerifier([signer.verify_key])
    assert verifier.check("dags", ONE, signature("dags", ONE)) == "ci"
    assert verifier.check("dags", TWO, signature("dags", TWO)) == "push"
    assert bundles.current("other") is None
    assert signature("other", ONE) is None


@pytest.mark.parametrize("seen", [None, 2])
def test_stale_publisher_loses(registry: tuple[Registry, Signature], seen: int | None) -> None:
    """A publisher that has not seen the current version changes nothing, and signs nothing."""
    bundles, signature = registry
    bundles.publish("dags", ONE, "ci", None)
    with pytest.raises(PreconditionFailed):
        bundles.publish("dags", TWO, "late", seen)
    current = bundles.current("dags")
    assert current is not None
    assert current.version == ONE
    assert signature("dags", TWO) is None


def test_earlier_versions_are_adopted_once(registry: tuple[Registry, Signature]) -> None:
    """Versions of before signatures are signed when a bundle has no version yet, and never later."""
    bundles, signature = registry
    bundles.adopt("dags", ONE, [ONE, TWO, "v1.0"])
    current = bundles.current("dags")
    assert current is not None
    assert (current.version, current.publisher) == (ONE, ADOPTED)
    assert signature("dags", TWO)
    assert signature("dags", "v1.0") is None
    bundles.adopt("dags", THREE, [THREE])
    assert bundles.current("dags") == current
    assert signature("dags", THREE) is None


def test_record_stands_with_the_change(registry: tuple[Registry, Signature]) -> None:
    """What records a publication is called in its transaction: if it fails, nothing is current, signed or kept."""
    bundles, signature = registry
    recorded: list[str] = []

    def fails(_session: object) -> None:
        raise BundleError("no record")

    with pytest.raises(BundleError, match="no record"):
        bundles.publish("dags", ONE, "ci", None, fails)
    files = {environment.MANIFEST: b"{}", environment.LOCK: b""}
    with pytest.raises(BundleError, match="no record"):
        bundles.keep_environment("dags", "inputs", files, "ci", fails)
    assert bundles.current("dags") is None
    assert signature("dags", ONE) is None
    assert bundles.environment("dags", "inputs") is None
    bundles.publish("dags", ONE, "ci", None, lambda _session: recorded.append(ONE))
    assert recorded == [ONE]


def test_database_away_is_transient() -> None:
    """A database that cannot be reached is a fault that passes."""

    def away() -> None:
        raise RuntimeError("no database here")

    with pytest.raises(BundleError) as caught:
        DatabaseRegistry(away, away).current("dags")  # type: ignore[arg-type] # it raises
    assert caught.value.transient
