"""DAG code on the worker: snapshots and environments fetched once, verified by digest, immutable, least recently used out first."""

from __future__ import annotations

import asyncio
import builtins
import os
import shutil
import tempfile
import time
from collections import Counter, OrderedDict, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final
from urllib.parse import quote

import structlog

from airbridge.core.aws.daemon_thread import in_daemon_thread
from airbridge.core.backoff import Backoff
from airbridge.core.code import environment, snapshot
from airbridge.core.exceptions import BundleError, ObjectNotFound, StoreError, UnknownKey
from airbridge.core.protocol import BundleRef
from airbridge.edge_worker.exceptions import SnapshotError
from airbridge.edge_worker.transfer.interfaces import RegionStore

log = structlog.get_logger(__name__)

# How often a snapshot that is not in the region's bucket is looked for again: it may be on its way there.
NOT_FOUND_ATTEMPTS: Final = 6

DAMAGED_ATTEMPTS: Final = 3
# Seconds to wait for the key of a signature: a new one comes with a heartbeat's answer.
KEY_SECONDS: Final = 60.0


class Bundles:
    """The cache under `root`. For one event loop; the files may be read by anybody."""

    def __init__(
        self,
        root: Path,
        store: Callable[[], RegionStore],
        check: Callable[[BundleRef, str | None], None],
        *,
        max_bytes: int,
        backoff: Callable[[], Backoff],
    ) -> None:
        self._root = root
        self._store = store
        self._check = check
        self._max_bytes = max_bytes
        self._backoff = backoff
        self._sizes: OrderedDict[Path, int] = OrderedDict()
        self._pins: Counter[Path] = Counter()
        # Bytes of the archives of what was fetched, until they are reported.
        self._fetched: dict[Path, int] = {}
        # Of each directory: held while it is fetched or removed.
        self._fetching: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._evicting = asyncio.Lock()

    @property
    def bytes(self) -> int:
        """Bytes of all snapshots."""
        return sum(self._sizes.values())

    async def open(self) -> None:
        """Find what an earlier process left, the most recently used last."""
        found = await asyncio.to_thread(_scan, self._root)
        self._sizes.update(found)

    def has(self, ref: BundleRef) -> bool:
        """Return whether the snapshot is here already."""
        return self._path(ref) in self._sizes

    def take_fetched(self, *paths: Path | None) -> int:
        """Return the bytes that were fetched for these directories; each is returned once."""
        return sum(self._fetched.pop(path, 0) for path in paths if path is not None)

    def _path(self, ref: BundleRef) -> Path:
        return self._root / quote(ref.name, safe="") / snapshot.hex_of(ref.version)

    @asynccontextmanager
    async def pinned(
        self,
        ref: BundleRef,
        signature: str | None,
        failing: Callable[[str], None] = lambda _why: None,
    ) -> AsyncIterator[Path]:
        """Yield the snapshot's directory, kept while the block runs. Waits as long as the bucket is out of reach.

        `failing` gets the reason of each failed fetch. Raises `SnapshotError` if the snapshot is missing or fails its digest.
        """

        def fetch(path: Path) -> None:
            self._check(ref, signature)
            snapshot.unpack(self._archive(ref, path), ref.version, path, finish=_open_to_readers)

        async with self._kept(ref, fetch, failing) as path:
            yield path

    @asynccontextmanager
    async def environment(
        self, bundle: str, code: Path, failing: Callable[[str], None] = lambda _why: None
    ) -> AsyncIterator[Path | None]:
        """Yield the directory of the packages that an unpacked snapshot needs, or None; kept while the block runs.

        The snapshot is signed and names the environment, which needs no signature of its own. Raises `SnapshotError` as `pinned` does, and
        if there is none for this worker's Python and machine.
        """
        try:
            version = await asyncio.to_thread(environment.version_of, code)
        except BundleError as error:
            raise SnapshotError(f"DAG code {bundle}: {error}") from error
        if version is None:
            yield None
            return
        ref = BundleRef(name=bundle, version=version)

        def fetch(path: Path) -> None:
            environment.unpack_environment(self._archive(ref, path), version, path, finish=_open_to_readers)

        async with self._kept(ref, fetch, failing) as path:
            yield path

    @asynccontextmanager
    async def _kept(
        self, ref: BundleRef, fetch: Callable[[Path], None], failing: Callable[[str], None]
    ) -> AsyncIterator[Path]:
        """Yield a directory of the cache, kept while the block runs; `fetch` makes it if it is not there."""
        path = self._path(ref)
        self._pins[path] += 1
        try:
            async with self._fetching[path]:
                if path not in self._sizes:
                    await self._fetch_persistently(ref, fetch, path, failing)
                    self._sizes[path] = await asyncio.to_thread(_size, path)
            self._sizes.move_to_end(path)
            await asyncio.to_thread(os.utime, path)
            yield path
        finally:
            self._pins[path] -= 1
            await self._evict()

    async def _fetch_persistently(
        self, ref: BundleRef, fetch: Callable[[Path], None], path: Path, failing: Callable[[str], None]
    ) -> None:
        backoff = self._backoff()
        missing = damaged = 0
        began = time.monotonic()
        while True:
            try:
                await in_daemon_thread(lambda: _fetch(fetch, path))
                log.info("bundle.fetched", bundle=ref.name, version=ref.version)
                return
            except ObjectNotFound as error:
                missing += 1
                reason = f"it is not in the region's bucket: {error}"
                if missing >= NOT_FOUND_ATTEMPTS:
                    raise SnapshotError(f"DAG code {ref.name} {ref.version}: {error}") from error
            except BundleError as error:
                if not isinstance(error, UnknownKey) or time.monotonic() - began > KEY_SECONDS:
                    damaged += 1
                if damaged >= DAMAGED_ATTEMPTS:
                    raise SnapshotError(f"DAG code {ref.name} {ref.version}: {error}") from error
                reason = str(error)
            except (StoreError, OSError) as error:
                # A full disk, for one, may have space again.
                reason = str(error)
            failing(reason)
            pause = backoff.failed()
            log.warning(
                "bundle.fetch_failed", version=ref.version, detail=reason, retry_seconds=round(pause, 2)
            )
            await asyncio.sleep(pause)

    def _archive(self, ref: BundleRef, path: Path) -> Iterator[builtins.bytes]:
        self._fetched[path] = 0
        for piece in self._store().stream(f"bundles/{ref.name}/{snapshot.hex_of(ref.version)}.tar.gz"):
            self._fetched[path] += len(piece)
            yield piece

    async def _evict(self) -> None:
        """Remove what is not pinned, the least recently used first, until the rest is within the bound."""
        async with self._evicting:
            for path in [*self._sizes]:
                if self.bytes <= self._max_bytes:
                    return
                if self._pins[path] == 0:
                    await self._evict_one(path)

    async def _evict_one(self, path: Path) -> None:
        # Who wants it meanwhile waits, and fetches it again.
        async with self._fetching[path]:
            if self._pins[path] > 0:
                return
            size = self._sizes.pop(path)
            try:
                await asyncio.to_thread(_remove, path)
            except OSError as error:
                self._sizes[path] = size
                self._sizes.move_to_end(path, last=False)
                log.warning("bundle.not_evicted", path=str(path), detail=str(error))
                return
        log.info("bundle.evicted", path=str(path))


def _scan(root: Path) -> list[tuple[Path, int]]:
    root.mkdir(parents=True, exist_ok=True)
    found = [path for path in root.glob("*/*") if path.is_dir()]
    for path in [path for path in found if path.name.startswith(".")]:
        shutil.rmtree(path, ignore_errors=True)  # half a fetch, or half an eviction
        found.remove(path)
    return [(path, _size(path)) for path in sorted(found, key=lambda path: path.stat().st_mtime)]


def _fetch(fetch: Callable[[Path], None], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.parent.chmod(0o755)
    fetch(path)


def _open_to_readers(tree: Path) -> None:
    """Let tasks of another user read and execute what this one may, whatever its umask is."""
    for folder, _, names in os.walk(tree):
        Path(folder).chmod(0o755)
        for path in (Path(folder, name) for name in names):
            mode = path.stat().st_mode
            path.chmod(mode | (mode & 0o500) >> 3 | (mode & 0o500) >> 6)


def _size(path: Path) -> int:
    return sum(entry.stat().st_size for entry in path.rglob("*") if entry.is_file())


def _remove(path: Path) -> None:
    """Take the directory away at once, then delete it at leisure."""
    with tempfile.TemporaryDirectory(
        prefix=".evicted-", dir=path.parent, ignore_cleanup_errors=True
    ) as scratch:
        path.rename(Path(scratch, "tree"))
