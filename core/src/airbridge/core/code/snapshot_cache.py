"""A bounded local cache of unpacked snapshots, safe between threads and processes. Free of Airflow.

A snapshot's directory is named by its version, appears at once and never changes, so readers need no lock. The least
recently used go when there are more than `max_versions`; one that was used within `min_idle_seconds`, or that
`in_use` returns true for, is never removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from airbridge.core.code.snapshot import hex_of

log = structlog.get_logger(__name__)

# Scratch directories of `unpack` and of `SnapshotCache.evict`, and the age from which nobody writes to them any more.
_LEFT: Final = (".unpack-*", ".evicted-*")
LEFT_SECONDS: Final = 3600.0


def _never(_: str) -> bool:
    return False


@dataclass(frozen=True)
class SnapshotCache:
    """Unpacked snapshots of one bundle under `root`, at ``root/<version>``."""

    root: Path
    max_versions: int = 20
    min_idle_seconds: float = 3600.0
    in_use: Callable[[str], bool] = _never
    clock: Callable[[], float] = time.time

    def path(self, version: str) -> Path:
        """Return the path of the snapshot, whether it exists or not. Raises `BundleError` if `version` is none."""
        hex_of(version)
        return self.root / version

    def get(self, version: str, fetch: Callable[[Path], None]) -> Path:
        """The snapshot's directory; `fetch` makes it if it is not there. Passes on what `fetch` raises."""
        path = self.path(version)
        if not path.is_dir():
            self._remove_left()
            fetch(path)
            log.info("bundle.fetched", version=version, path=str(path))
            self.evict()
        self._touch(path)
        return path

    def evict(self) -> list[str]:
        """Remove what is over the bound, least recently used first; return the versions removed."""
        surplus = self._versions()[self.max_versions :]
        return [version for version, used in surplus if self._may_go(version, used) and self._remove(version)]

    def _remove_left(self) -> None:
        """Remove what processes left that were killed while they fetched or evicted a snapshot."""
        for path in (found for pattern in _LEFT for found in self.root.glob(pattern)):
            with suppress(OSError):  # it was removed meanwhile
                written = max(each.stat().st_mtime for each in (path, *path.iterdir()))
                if self.clock() - written >= LEFT_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)

    def _versions(self) -> list[tuple[str, float]]:
        """Every version with the time of its last use, the most recent first."""
        found = []
        for path in self.root.glob("sha256:*"):
            try:
                found.append((path.name, path.stat().st_mtime))
            except FileNotFoundError:
                continue
        return sorted(found, key=lambda each: each[1], reverse=True)

    def _may_go(self, version: str, used: float) -> bool:
        return self.clock() - used >= self.min_idle_seconds and not self.in_use(version)

    def _remove(self, version: str) -> bool:
        """Take the directory away at once, then delete it at leisure."""
        # Renamed first: a reader sees the whole tree or none.
        with tempfile.TemporaryDirectory(prefix=".evicted-", dir=self.root) as scratch:
            try:
                self.path(version).rename(Path(scratch, "tree"))
            except FileNotFoundError:
                return False
            shutil.rmtree(Path(scratch, "tree"), ignore_errors=True)
        log.info("bundle.evicted", version=version)
        return True

    def _touch(self, path: Path) -> None:
        now = self.clock()
        os.utime(path, (now, now))
