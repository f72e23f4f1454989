"""Store of a bundle's snapshots: the bundle buckets of all regions. Imports no Airflow.

::

    bundles/<bundle>/<hex>.tar.gz          a snapshot or its environment, in every region; never changes
    bundles/<bundle>/owed/<region>/<hex>   home region only: a snapshot that a region has yet to get

Publishing puts the environment, if there is one, and the snapshot into the home region's bucket first, then into all others at once, each retried with
exponential backoff and full jitter. **A version becomes current once every region has it, or after
`wait_seconds`**: one region that cannot be reached must not hold up deployments to the others. What a region lacks is
then recorded as owed and supplied by `supply`, which every later refresh of the bundle calls; until then, a worker
there looks for the snapshot several times and then fails the attempt, for Airflow to retry. Without the home region
nothing is published.

Which version is current is not in a bucket but in the registry (the database), with the snapshot's signature: who can write to a
bucket can make no code current. A copy that is deleted or altered is noticed by `supply`, and replaced from another region. The pointer is only
changed if it still has the value that the publisher has read, so of two publishers one loses and reads again.
"""

from __future__ import annotations

import hashlib
import math
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import structlog

from airbridge.core.aws.object_store import ObjectStore, connect
from airbridge.core.catalogue import Catalogue
from airbridge.core.code.environment import LIMITS, MANIFEST, Environment, unpack_environment
from airbridge.core.code.snapshot import Snapshot, decompress, hex_of, unpack
from airbridge.core.exceptions import BundleError, ObjectNotFound, PreconditionFailed, StoreError
from airbridge.core.regions import Region
from airbridge.executor.bundles.registry import Recorder, Registry, record_nothing
from airbridge.executor.bundles.versions import CurrentVersion

log = structlog.get_logger(__name__)

BUNDLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PUBLISH_WAIT_SECONDS = 30.0
# How often the copies of the current version are looked at.
LOOK_AGAIN_SECONDS = 60.0
# Kept of a publication's time for making the version current.
_LAST_SECONDS = 10.0
_BACKOFF_BASE_SECONDS = 0.2
_BACKOFF_LIMIT_SECONDS = 5.0
_NONE: Mapping[str, Path] = MappingProxyType({})


@dataclass(frozen=True)
class Pointer:
    """Current version of a bundle, as it was read; None before the first."""

    current: CurrentVersion | None = None

    @property
    def version(self) -> str | None:
        """The current version, if there is one."""
        return self.current.version if self.current else None

    @property
    def serial(self) -> int | None:
        """Serial number that a change of the pointer must match."""
        return self.current.serial if self.current else None


@dataclass(frozen=True)
class Published:
    """A version that has become current, and the regions that have yet to get it."""

    version: str
    owed_to: tuple[str, ...] = ()


def connect_region(region: Region) -> ObjectStore:
    """The bundle bucket of a region."""
    return connect(region.aws, region.bundle_bucket, endpoint_url=region.endpoint_url, attempts=2)


class BundleStore:
    """One bundle's snapshots over all regions. `stores` holds each region's bundle bucket."""

    def __init__(
        self,
        bundle: str,
        home: str,
        stores: Mapping[str, ObjectStore],
        registry: Registry,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        jitter: Callable[[float, float], float] = random.uniform,
    ) -> None:
        if not BUNDLE_NAME.fullmatch(bundle):
            raise BundleError(
                f"{bundle!r} cannot name a bundle: 1 to 100 letters, digits, dots, underscores and hyphens can"
            )
        self.bundle = bundle
        self.home_region = home
        self._stores = dict(stores)
        self._home = self._stores[home]
        self._sleep = sleep
        self._monotonic = monotonic
        self._registry = registry
        self._jitter = jitter
        self._supplied: dict[tuple[str, str], str] = {}
        """Etag of each copy that is known to be whole."""
        self._looked_at: float | None = None

    @classmethod
    def of(cls, bundle: str, catalogue: Catalogue, registry: Registry) -> BundleStore:
        """The bundle's store in the regions of the catalogue."""
        stores = {region.name: connect_region(region) for region in catalogue.regions}
        return cls(bundle, catalogue.home_region, stores, registry)

    def key(self, version: str) -> str:
        """Return the key of a snapshot, which is the same in every region's bucket."""
        return f"bundles/{self.bundle}/{hex_of(version)}.tar.gz"

    def pointer(self) -> Pointer:
        """Return the pointer to the current version. Raises `BundleError` if the database cannot be read."""
        return Pointer(self._registry.current(self.bundle))

    def adopt(self, current: str, versions: Iterable[str]) -> None:
        """Take over versions that were published before snapshots were signed. Raises `BundleError`."""
        self._registry.adopt(self.bundle, current, versions)

    def fetch(self, version: str, destination: Path) -> None:
        """Unpack a snapshot from the home region. Raises `BundleError`."""
        try:
            unpack(self._home.stream(self.key(version)), version, destination)
        except StoreError as error:
            raise self._home_error(f"version {version} cannot be fetched", error) from error

    def fetch_environment(self, version: str, destination: Path) -> None:
        """Unpack an environment from the home region. Raises `BundleError`."""
        try:
            unpack_environment(self._home.stream(self.key(version)), version, destination)
        except StoreError as error:
            raise self._home_error(f"environment {version} cannot be fetched", error) from error

    def pushed_environment(self, inputs: str) -> Mapping[str, bytes] | None:
        """Return the files of the environment that was pushed for these inputs; None without one, or if its archives are gone.

        Raises `BundleError`.
        """
        files = self._registry.environment(self.bundle, inputs)
        if files is None:
            return None
        builds = Environment.decode(files[MANIFEST]).builds
        if gone := self.lacking(build.version for build in builds):
            log.warning("bundle.environment_gone", bundle=self.bundle, inputs=inputs, archives=gone)
            return None
        return files

    def lacking(self, environments: Iterable[str]) -> tuple[str, ...]:
        """Return the archives that the home region does not have. Raises `BundleError`."""
        try:
            return tuple(each for each in environments if self._home.head(self.key(each)) is None)
        except StoreError as error:
            raise self._home_error("environments cannot be looked up", error) from error

    def put_environment(
        self, version: str, archive: bytes, wait_seconds: float = PUBLISH_WAIT_SECONDS
    ) -> tuple[str, ...]:
        """Put an environment's archive into every region; return those that have yet to get it. Raises `BundleError`."""
        try:
            return self._put_everywhere(version, archive, self._monotonic() + wait_seconds)
        except StoreError as error:
            raise self._home_error(f"environment {version} cannot be stored", error) from error

    def keep_environment(
        self, inputs: str, files: Mapping[str, bytes], actor: str, recorder: Recorder = record_nothing
    ) -> None:
        """Let a pushed environment be used for its inputs. Its archives are in the store. Raises `BundleError`.

        `recorder` is called in the transaction that does it.
        """
        self._registry.keep_environment(self.bundle, inputs, files, actor, recorder)

    def publish(
        self,
        snapshot: Snapshot,
        actor: str,
        seen: Pointer,
        *,
        environments: Mapping[str, Path] = _NONE,
        wait_seconds: float = PUBLISH_WAIT_SECONDS,
        deadline: float = math.inf,
        recorder: Recorder = record_nothing,
    ) -> Published:
        """Put the snapshot into every region and make it current. `seen` is the pointer the decision rests on.

        `environments` are archives by version that the snapshot needs; they are put into every region before it. Regions out of reach
        are waited for once, whatever the number of archives. After `deadline` (of `time.monotonic`) nothing is made current; `recorder` is called
        in the transaction that does it.
        Raises `PreconditionFailed` if another publisher changed the pointer meanwhile, else `BundleError`.
        """
        archive = snapshot.compressed()
        until = min(self._monotonic() + wait_seconds, deadline - _LAST_SECONDS)
        try:
            for version, path in environments.items():
                self._put_everywhere(version, path.read_bytes(), until)
            owed_to = self._put_everywhere(snapshot.version, archive, until)
            if self._monotonic() >= deadline:
                raise BundleError(
                    f"bundle {self.bundle!r}: version {snapshot.version} took too long and is not published: push again",
                    transient=True,
                )
            self._registry.publish(self.bundle, snapshot.version, actor, seen.serial, recorder)
        except PreconditionFailed:
            raise
        except StoreError as error:
            raise self._home_error(f"version {snapshot.version} cannot be published", error) from error
        log.info(
            "bundle.published",
            bundle=self.bundle,
            version=snapshot.version,
            files=snapshot.files,
            archive_bytes=len(archive),
            actor=actor,
            owed_to=list(owed_to),
        )
        return Published(snapshot.version, owed_to)

    def _put_everywhere(self, version: str, archive: bytes, until: float) -> tuple[str, ...]:
        """Put an archive into the home region, then into the others; return those that it is owed to. Raises `StoreError`."""
        self._supplied[self.home_region, version] = self._home.put(self.key(version), archive)
        owed_to = self._spread(version, archive, until)
        for region in owed_to:
            self._home.put(self._owed_key(region, version), b"")
        return owed_to

    def roll_to(self, version: str, actor: str, seen: Pointer) -> None:
        """Make a version current that is in the store already. Raises as `publish`."""
        try:
            if self._home.head(self.key(version)) is None:
                raise BundleError(f"bundle {self.bundle!r} has no version {version}")
            self._registry.publish(self.bundle, version, actor, seen.serial)
        except PreconditionFailed:
            raise
        except StoreError as error:
            raise self._home_error(f"version {version} cannot be made current", error) from error

    def supply(
        self,
        version: str | None,
        rebuild: Callable[[], bytes | None] = lambda: None,
        *,
        environments: Iterable[str] = (),
    ) -> tuple[str, ...]:
        """Give regions what they lack: what is owed to them, and the current version where it is missing or altered.

        `rebuild` makes the current version's archive when no region has a good one; `environments` are the archives that the version
        needs. Returns the regions that still lack something, because they, or all good copies, cannot be
        reached. Each is tried once, all at once. Raises `BundleError` only if the home region fails.
        """
        try:
            owed = set(self._owed())
            due = owed.copy()
            if version is not None and self._is_due():
                due |= {(name, needed) for name in self._stores for needed in (version, *environments)}
            unsettled = self._in_regions(due, version, rebuild)
            self._home.delete([self._owed_key(*debt) for debt in sorted(owed - unsettled)])
            return tuple(sorted({region for region, _ in unsettled}))
        except StoreError as error:
            raise self._home_error("snapshots cannot be copied to other regions", error) from error

    def _is_due(self) -> bool:
        """Return whether the copies of the current version are due for another check."""
        now = self._monotonic()
        if self._looked_at is not None and now - self._looked_at < LOOK_AGAIN_SECONDS:
            return False
        self._looked_at = now
        return True

    def _in_regions(
        self, debts: set[tuple[str, str]], current: str | None, rebuild: Callable[[], bytes | None]
    ) -> set[tuple[str, str]]:
        """Settle debts, regions and what they may lack; return those that stay."""
        if not debts:
            return set()
        ordered = sorted(debts)

        def supply(debt: tuple[str, str]) -> bool:
            return self._supply_one(*debt, rebuild if debt[1] == current else lambda: None)

        with ThreadPoolExecutor(len({region for region, _ in debts}), "bundle-supply") as pool:
            settled = list(pool.map(supply, ordered))
        return {debt for debt, done in zip(ordered, settled, strict=True) if not done}

    def _supply_one(self, region: str, version: str, rebuild: Callable[[], bytes | None]) -> bool:
        try:
            lack = self._lack(region, version)
            if lack is None:
                return True
            archive = self._good_archive(version, region, rebuild)
            if archive is None:
                log.error("bundle.unrepaired", bundle=self.bundle, version=version, region=region, was=lack)
                self._supplied.setdefault((region, version), "")
                return True
            etag = self._stores[region].put(self.key(version), archive)
        except StoreError as error:
            return self._unsupplied(region, version, error)
        known = (region, version) in self._supplied
        self._supplied[region, version] = etag
        log.info("bundle.supplied", bundle=self.bundle, version=version, region=region, was=lack)
        if known or lack == "altered":
            self._registry.record("bundle.repaired", self.bundle, region=region, version=version, was=lack)
        return True

    def _lack(self, region: str, version: str) -> str | None:
        """Return what is wrong with a region's copy: missing or altered; None if it is whole."""
        store = self._stores[region]
        info = store.head(self.key(version))
        if info is None:
            return "missing"
        if self._supplied.get((region, version)) == info.etag:
            return None
        if not _is_whole(store.stream(self.key(version)), version):
            return "altered"
        self._supplied[region, version] = info.etag
        return None

    def _good_archive(self, version: str, besides: str, rebuild: Callable[[], bytes | None]) -> bytes | None:
        """Return a snapshot's archive from the first region whose copy is whole, home first, or made anew; None if it is lost.

        Raises `StoreError` if a copy that may be whole cannot be read.
        """
        unread: StoreError | None = None
        for name in sorted(self._stores, key=lambda each: each != self.home_region):
            if name == besides:
                continue
            try:
                archive = self._stores[name].get(self.key(version)).data
            except ObjectNotFound:
                continue
            except StoreError as error:
                unread = error
                continue
            if _is_whole([archive], version):
                return archive
        made = rebuild()
        if made is None and unread is not None:
            raise unread
        return made

    def _unsupplied(self, region: str, version: str, error: StoreError) -> bool:
        log.warning(
            "bundle.region_lacks", bundle=self.bundle, version=version, region=region, error=str(error)
        )
        return False

    def _owed(self) -> Iterator[tuple[str, str]]:
        prefix = f"bundles/{self.bundle}/owed/"
        for info in self._home.list(prefix):
            region, _, digits = info.key.removeprefix(prefix).partition("/")
            if region in self._stores:
                yield region, f"sha256:{digits}"
            else:
                self._home.delete([info.key])  # the region is no longer in the catalogue

    def _owed_key(self, region: str, version: str) -> str:
        return f"bundles/{self.bundle}/owed/{region}/{hex_of(version)}"

    def _spread(self, version: str, archive: bytes, until: float) -> tuple[str, ...]:
        """Put the archive into every region but home, all at once; return those that could not be reached in time. Each is tried once at least."""
        others = [name for name in self._stores if name != self.home_region]
        if not others:
            return ()
        with ThreadPoolExecutor(len(others), "bundle-publish") as pool:
            reached = list(pool.map(lambda name: self._send(name, version, archive, until), others))
        return tuple(name for name, done in zip(others, reached, strict=True) if not done)

    def _send(self, region: str, version: str, archive: bytes, until: float) -> bool:
        attempt = 0
        while True:
            try:
                etag = self._stores[region].put(self.key(version), archive)
            except StoreError as error:
                delay = self._jitter(0, min(_BACKOFF_LIMIT_SECONDS, _BACKOFF_BASE_SECONDS * 2**attempt))
                if not error.transient or self._monotonic() + delay >= until:
                    return self._unsupplied(region, version, error)
                attempt += 1
                self._sleep(delay)
            else:
                self._supplied[region, version] = etag
                return True

    def _home_error(self, what: str, error: StoreError) -> BundleError:
        return BundleError(f"bundle {self.bundle!r}: {what}: {error}", transient=error.transient)


def _is_whole(archive: Iterable[bytes], version: str) -> bool:
    """Return whether an archive's content has the digest that names it. Passes on `StoreError`."""
    digest, total = hashlib.sha256(), 0
    try:
        for piece in decompress(archive):
            total += len(piece)
            digest.update(piece)
            if total > LIMITS.tar_bytes:
                return False
    except BundleError:
        return False
    return digest.hexdigest() == hex_of(version)
