"""Where a bundle's snapshots lie: the bundle buckets of all regions. Free of Airflow.

::

    bundles/<bundle>/<hex>.tar.gz          a snapshot, in every region; never changes
    bundles/<bundle>/CURRENT               home region only: which version is current (JSON, written conditionally)
    bundles/<bundle>/owed/<region>/<hex>   home region only: a snapshot that a region has yet to get

Publishing puts the snapshot into the home region's bucket first, then into all others at once, each retried with
exponential backoff and full jitter. **A version becomes current once every region has it, or after
`wait_seconds`**: one region that cannot be reached must not hold up deployments to the others. What a region lacks is
then recorded as owed and supplied by `supply`, which every later refresh of the bundle calls; until then, a worker
there looks for the snapshot several times and then fails the attempt, for Airflow to retry. Without the home region
nothing is published.

CURRENT is only written if it still says what the publisher has seen (If-Match), so of two publishers one loses and
looks again, and none overwrites what it has not seen.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import structlog
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from airbridge.executor.exceptions import BundleError, ObjectNotFound, PreconditionFailed, StoreError
from airbridge.executor.protocol import Digest
from airbridge.executor.regions import Catalogue, Region
from airbridge.executor.snapshot import Snapshot, hex_of, unpack
from airbridge.executor.store import ObjectStore, connect

log = structlog.get_logger(__name__)

BUNDLE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
PUBLISH_WAIT_SECONDS = 30.0
_BACKOFF_BASE_SECONDS = 0.2
_BACKOFF_LIMIT_SECONDS = 5.0


class Current(BaseModel):
    """Which version is current, since when, by whom, and which was before it."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    version: Digest
    previous: Digest | None = None
    published_at: AwareDatetime
    actor: str


@dataclass(frozen=True)
class Pointer:
    """`Current` as it was read, with the etag that a change must match; `current` is None before the first."""

    current: Current | None = None
    etag: str | None = None

    @property
    def version(self) -> str | None:
        """The current version, if there is one."""
        return self.current.version if self.current else None


@dataclass(frozen=True)
class Published:
    """A version that has become current, and the regions that have yet to get it."""

    version: str
    owed_to: tuple[str, ...] = ()


def connect_region(region: Region) -> ObjectStore:
    """The bundle bucket of a region."""
    return connect(region.name, region.bundle_bucket, endpoint_url=region.endpoint_url, attempts=2)


class BundleStore:
    """One bundle's snapshots over all regions. `stores` holds each region's bundle bucket."""

    def __init__(
        self,
        bundle: str,
        home: str,
        stores: Mapping[str, ObjectStore],
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
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
        self._now = now
        self._jitter = jitter
        self._supplied: set[tuple[str, str]] = set()

    @classmethod
    def of(cls, bundle: str, catalogue: Catalogue) -> BundleStore:
        """The bundle's store in the regions of the catalogue."""
        stores = {region.name: connect_region(region) for region in catalogue.regions}
        return cls(bundle, catalogue.home_region, stores)

    def key(self, version: str) -> str:
        """The key a snapshot lies under, in every region's bucket."""
        return f"bundles/{self.bundle}/{hex_of(version)}.tar.gz"

    @property
    def current_key(self) -> str:
        """The key of the pointer in the home region."""
        return f"bundles/{self.bundle}/CURRENT"

    def pointer(self) -> Pointer:
        """What is current. Raises `BundleError` if the home region cannot say."""
        try:
            stored = self._home.get(self.current_key)
            return Pointer(Current.model_validate_json(stored.data), stored.etag)
        except ObjectNotFound:
            return Pointer()
        except StoreError as error:
            raise self._home_error("which version is current cannot be read", error) from error
        except ValidationError as error:
            raise BundleError(f"s3://{self._home.bucket}/{self.current_key} is damaged: {error}") from error

    def fetch(self, version: str, destination: Path) -> None:
        """Unpack a snapshot from the home region. Raises `BundleError`."""
        try:
            unpack(self._home.stream(self.key(version)), version, destination)
        except StoreError as error:
            raise self._home_error(f"version {version} cannot be fetched", error) from error

    def publish(
        self, snapshot: Snapshot, actor: str, seen: Pointer, *, wait_seconds: float = PUBLISH_WAIT_SECONDS
    ) -> Published:
        """Put the snapshot into every region and make it current. `seen` is the pointer the decision rests on.

        Raises `PreconditionFailed` if another publisher changed the pointer meanwhile, else `BundleError`.
        """
        archive = snapshot.compressed()
        try:
            self._home.put(self.key(snapshot.version), archive)
            owed_to = self._spread(snapshot.version, archive, wait_seconds)
            for region in owed_to:
                self._home.put(self._owed_key(region, snapshot.version), b"")
            self._point_at(snapshot.version, actor, seen)
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

    def roll_to(self, version: str, actor: str, seen: Pointer) -> None:
        """Make a version current that is in the store already. Raises as `publish`."""
        try:
            if self._home.head(self.key(version)) is None:
                raise BundleError(f"bundle {self.bundle!r} has no version {version}")
            self._point_at(version, actor, seen)
        except PreconditionFailed:
            raise
        except StoreError as error:
            raise self._home_error(f"version {version} cannot be made current", error) from error

    def supply(self, version: str | None) -> tuple[str, ...]:
        """Give regions what they lack: what is owed to them and, if new to the catalogue, the current version.

        Returns the regions that still cannot be reached. Each is tried once, all at once. Raises `BundleError`
        only if the home region fails.
        """
        try:
            owed = set(self._owed())
            due = owed.copy()
            if version is not None:
                due |= {(name, version) for name in self._stores if (name, version) not in self._supplied}
            unreached = self._in_regions(due)
            self._home.delete([self._owed_key(*debt) for debt in sorted(owed & self._supplied)])
            return unreached
        except StoreError as error:
            raise self._home_error("snapshots cannot be copied to other regions", error) from error

    def _in_regions(self, debts: set[tuple[str, str]]) -> tuple[str, ...]:
        if not debts:
            return ()
        ordered = sorted(debts)
        with ThreadPoolExecutor(len({region for region, _ in debts}), "bundle-supply") as pool:
            settled = list(pool.map(lambda debt: self._supply_one(*debt), ordered))
        return tuple(sorted({region for (region, _), done in zip(ordered, settled, strict=True) if not done}))

    def _supply_one(self, region: str, version: str) -> bool:
        store = self._stores[region]
        try:
            present = store.head(self.key(version)) is not None
        except StoreError as error:
            return self._unsupplied(region, version, error)
        if not present:
            archive = self._archive(version)
            if archive is not None:
                try:
                    store.put(self.key(version), archive)
                except StoreError as error:
                    return self._unsupplied(region, version, error)
                log.info("bundle.supplied", bundle=self.bundle, version=version, region=region)
        self._supplied.add((region, version))
        return True

    def _archive(self, version: str) -> bytes | None:
        """A snapshot's archive as it lies in the home region; None if it has been expired there."""
        try:
            return self._home.get(self.key(version)).data
        except ObjectNotFound:
            return None

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

    def _spread(self, version: str, archive: bytes, wait_seconds: float) -> tuple[str, ...]:
        """Put the archive into every region but home, all at once; return those that could not be reached in time."""
        self._supplied.add((self.home_region, version))
        others = [name for name in self._stores if name != self.home_region]
        if not others:
            return ()
        deadline = self._monotonic() + wait_seconds
        with ThreadPoolExecutor(len(others), "bundle-publish") as pool:
            reached = list(pool.map(lambda name: self._send(name, version, archive, deadline), others))
        return tuple(name for name, done in zip(others, reached, strict=True) if not done)

    def _send(self, region: str, version: str, archive: bytes, deadline: float) -> bool:
        attempt = 0
        while True:
            try:
                self._stores[region].put(self.key(version), archive)
            except StoreError as error:
                delay = self._jitter(0, min(_BACKOFF_LIMIT_SECONDS, _BACKOFF_BASE_SECONDS * 2**attempt))
                if not error.transient or self._monotonic() + delay >= deadline:
                    return self._unsupplied(region, version, error)
                attempt += 1
                self._sleep(delay)
            else:
                self._supplied.add((region, version))
                return True

    def _point_at(self, version: str, actor: str, seen: Pointer) -> None:
        current = Current(version=version, previous=seen.version, published_at=self._now(), actor=actor)
        body = current.model_dump_json(indent=2).encode()
        if seen.etag is None:
            self._home.put(self.current_key, body, if_absent=True)
        else:
            self._home.put(self.current_key, body, if_match=seen.etag)

    def _home_error(self, what: str, error: StoreError) -> BundleError:
        return BundleError(f"bundle {self.bundle!r}: {what}: {error}", transient=error.transient)
