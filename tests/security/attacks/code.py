"""Attacks by a writer to the code buckets of all regions: finding 4."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from tests.security.registry import attack

from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.code.signature import SnapshotSigner, SnapshotVerifier
from airbridge.core.code.snapshot import Snapshot, pack, unpack
from airbridge.core.exceptions import BundleError
from airbridge.core.signing import Signer
from airbridge.executor.bundles.registry import MemoryRegistry
from airbridge.executor.bundles.store import LOOK_AGAIN_SECONDS, BundleStore

REGIONS = ("home", "north")


def _signer() -> SnapshotSigner:
    return SnapshotSigner.from_pem(Signer.generate().to_pem())


@dataclass
class Plane:
    """A control plane with one bundle over two regions, and a worker's verifier."""

    folder: Path
    signer: SnapshotSigner = field(default_factory=_signer)
    buckets: dict[str, MemoryStore] = field(
        default_factory=lambda: {name: MemoryStore(name) for name in REGIONS}
    )
    seconds: float = 0.0

    def __post_init__(self) -> None:
        self.registry = MemoryRegistry(self.signer)
        self.verifier = SnapshotVerifier([self.signer.verify_key])
        self.store = BundleStore("dags", "home", self.buckets, self.registry, monotonic=lambda: self.seconds)

    def snapshot(self, code: str) -> Snapshot:
        """Pack a folder of one file."""
        (self.folder / "dags").mkdir(exist_ok=True)
        (self.folder / "dags" / "a.py").write_text(code)
        return pack(self.folder / "dags")

    def publish(self, code: str) -> Snapshot:
        """Publish this code."""
        snapshot = self.snapshot(code)
        self.store.publish(snapshot, "ci", self.store.pointer())
        return snapshot

    def run(self, version: str, bundle: str = "dags", signature: str | None = None) -> str:
        """Fetch code as a worker of region north does, and return it. Raises `BundleError`."""
        signature = signature or self.registry.signatures.get((bundle, version))
        self.verifier.check(bundle, version, signature)
        target = self.folder / hashlib.sha256(f"{bundle}{version}{self.seconds}".encode()).hexdigest()
        key = f"bundles/{bundle}/{version.removeprefix('sha256:')}.tar.gz"
        unpack(self.buckets["north"].stream(key), version, target)
        return (target / "a.py").read_text()

    def overwrite(self, version: str, archive: bytes) -> None:
        """Write an archive under a version's key everywhere."""
        for bucket in self.buckets.values():
            bucket.put(self.store.key(version), archive)

    def look_later(self, rebuild: Callable[[], bytes | None] = lambda: None) -> None:
        """Advance the clock past the dag-processor's next check of the copies."""
        self.seconds += LOOK_AGAIN_SECONDS + 1
        self.store.supply(self.store.pointer().version, rebuild)


@attack(4)
def swapped_pointer(folder: Path) -> None:
    """An object that names other code as current, in the form of before and in any other place, is not looked at."""
    plane = Plane(folder)
    good = plane.publish("A = 1\n")
    evil = plane.snapshot("EVIL = 1\n")
    plane.overwrite(evil.version, evil.compressed())
    text = json.dumps({"version": evil.version, "published_at": "2030-01-01T00:00:00Z", "actor": "ci"})
    for bucket in plane.buckets.values():
        for key in ("bundles/dags/CURRENT", "bundles/CURRENT", "CURRENT"):
            bucket.put(key, text.encode())
    assert plane.store.pointer().version == good.version
    plane.look_later()
    assert plane.store.pointer().version == good.version
    with pytest.raises(BundleError, match="has no signature"):
        plane.run(evil.version)


@attack(4)
def altered_archive(folder: Path) -> None:
    """Other code under the current version's key is refused by workers, reported, and replaced from a region that is whole."""
    plane = Plane(folder)
    good = plane.publish("A = 1\n")
    evil = plane.snapshot("EVIL = 1\n")
    plane.buckets["north"].put(plane.store.key(good.version), evil.compressed())
    with pytest.raises(BundleError, match="damaged or forged"):
        plane.run(good.version)
    plane.look_later()
    assert plane.run(good.version) == "A = 1\n"
    assert [event for event, _ in plane.registry.events] == ["bundle.repaired"]


@attack(4)
def altered_everywhere(folder: Path) -> None:
    """Altered in every region at once, home included, it is replaced from what the dag-processor has unpacked."""
    plane = Plane(folder)
    good = plane.publish("A = 1\n")
    plane.overwrite(good.version, gzip.compress(b"not a tar"))
    plane.look_later(good.compressed)
    assert plane.run(good.version) == "A = 1\n"
    assert {detail["was"] for _, detail in plane.registry.events} == {"altered"}


@attack(4)
def deleted_archive(folder: Path) -> None:
    """A deleted copy, in one region or in all, comes back, and is reported."""
    plane = Plane(folder)
    good = plane.publish("A = 1\n")
    plane.buckets["home"].delete([plane.store.key(good.version)])
    plane.look_later()
    assert plane.buckets["home"].head(plane.store.key(good.version))
    for bucket in plane.buckets.values():
        bucket.delete([plane.store.key(good.version)])
    plane.look_later(good.compressed)
    assert plane.run(good.version) == "A = 1\n"
    assert {detail["was"] for _, detail in plane.registry.events} == {"missing"}


@attack(4)
def replayed_version(folder: Path) -> None:
    """An old version, validly signed, under the current one's key, or named current again, is not run in its place."""
    plane = Plane(folder)
    old = plane.publish("BUG = 1\n")
    new = plane.publish("FIXED = 1\n")
    plane.overwrite(new.version, old.compressed())
    with pytest.raises(BundleError, match="damaged or forged"):
        plane.run(new.version)
    with pytest.raises(BundleError, match="does not match"):
        plane.run(new.version, signature=plane.registry.signatures["dags", old.version])
    assert plane.store.pointer().version == new.version


@attack(4)
def another_bundles_archive(folder: Path) -> None:
    """One team's signed snapshot, copied to another bundle's prefix, is not good there."""
    plane = Plane(folder)
    good = plane.publish("A = 1\n")
    for bucket in plane.buckets.values():
        bucket.put(f"bundles/payroll/{good.version.removeprefix('sha256:')}.tar.gz", good.compressed())
    signature = plane.registry.signatures["dags", good.version]
    with pytest.raises(BundleError, match="does not match"):
        plane.run(good.version, "payroll", signature)


@attack(4)
def forged_signature(folder: Path) -> None:
    """A signature by another key, by the key of work items, with another publisher, or of another form is refused."""
    plane = Plane(folder)
    good = plane.publish("A = 1\n")
    signature = json.loads(plane.registry.signatures["dags", good.version])
    forgeries = [
        _signer().sign("dags", good.version, "ci"),
        json.dumps(signature | {"publisher": "ceo"}),
        json.dumps(signature | {"kid": "0" * 16}),
        json.dumps(signature | {"v": 2}),
        json.dumps(signature | {"sig": signature["sig"][:-2]}),
        json.dumps([signature]),
        # deep enough to exhaust the recursion of a JSON parser
        "[" * 100_000,
        "",
    ]
    for forgery in forgeries:
        with pytest.raises(BundleError):
            plane.verifier.check("dags", good.version, forgery)
    plane.verifier.check("dags", good.version, json.dumps(signature))


CODE_ATTACKS: tuple[Callable[[Path], None], ...] = (
    swapped_pointer,
    altered_archive,
    altered_everywhere,
    deleted_archive,
    replayed_version,
    another_bundles_archive,
    forged_signature,
)
