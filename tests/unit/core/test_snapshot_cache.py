from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from airbridge.core.code.snapshot_cache import LEFT_SECONDS, SnapshotCache
from airbridge.core.exceptions import BundleError


@dataclass
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def version(number: int) -> str:
    return f"sha256:{number:064x}"


def make(path: Path) -> None:
    path.mkdir(parents=True)
    (path / "a.py").write_text("A = 1\n")


def fail(path: Path) -> None:
    raise BundleError(f"{path} should not have been fetched")


def test_fetched_once(tmp_path: Path) -> None:
    """A version is fetched at its first use, and never again."""
    cache = SnapshotCache(tmp_path)
    assert cache.get(version(1), make) == tmp_path / version(1)
    assert cache.get(version(1), fail) == tmp_path / version(1)


def test_failed_fetch_leaves_nothing(tmp_path: Path) -> None:
    """An error of the fetch is passed on; the next call tries again."""
    cache = SnapshotCache(tmp_path)
    with pytest.raises(BundleError):
        cache.get(version(1), fail)
    assert cache.get(version(1), make).is_dir()


def test_least_recently_used_go_first(tmp_path: Path) -> None:
    """Over the bound, the version goes that was used longest ago."""
    clock = Clock()
    cache = SnapshotCache(tmp_path, max_versions=2, min_idle_seconds=10, clock=clock)
    for number in (1, 2):
        cache.get(version(number), make)
        clock.now += 100
    cache.get(version(1), fail)
    clock.now += 100
    cache.get(version(3), make)
    assert sorted(path.name for path in tmp_path.iterdir()) == [version(1), version(3)]


def test_recently_used_stay_over_the_bound(tmp_path: Path) -> None:
    """A version that a process may still be reading stays, even beyond the bound."""
    clock = Clock()
    cache = SnapshotCache(tmp_path, max_versions=1, min_idle_seconds=60, clock=clock)
    cache.get(version(1), make)
    clock.now += 59
    cache.get(version(2), make)
    assert cache.path(version(1)).is_dir()
    clock.now += 1
    assert cache.evict() == [version(1)]


def test_versions_in_use_stay(tmp_path: Path) -> None:
    """A version for which `in_use` returns true is never removed."""
    clock = Clock()
    in_use = {version(1)}
    cache = SnapshotCache(
        tmp_path, max_versions=1, min_idle_seconds=0, in_use=in_use.__contains__, clock=clock
    )
    for number in (1, 2, 3):
        cache.get(version(number), make)
        clock.now += 100
    assert sorted(path.name for path in tmp_path.iterdir()) == [version(1), version(3)]


def test_left_scratch_directories_go(tmp_path: Path) -> None:
    """What a killed process left of a fetch or an eviction goes at a later fetch; what is being written stays."""
    clock = Clock()
    cache = SnapshotCache(tmp_path, clock=clock)
    for name, age in ((".unpack-a", 2.0), (".evicted-b", 2.0), (".unpack-c", 0.5), (".unpack-d", 2.0)):
        file = tmp_path / name / "snapshot.tar"
        file.parent.mkdir()
        file.touch()
        written = clock.now - age * LEFT_SECONDS
        os.utime(file, (written, written))
        os.utime(file.parent, (written, written))
    os.utime(tmp_path / ".unpack-d" / "snapshot.tar", (clock.now, clock.now))
    cache.get(version(1), make)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".unpack-c", ".unpack-d", version(1)]


def test_invalid_version_has_no_path(tmp_path: Path) -> None:
    """A version is checked before it becomes part of a path."""
    with pytest.raises(BundleError, match="is not a bundle version"):
        SnapshotCache(tmp_path).path("../../etc")
