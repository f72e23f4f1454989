"""Eviction from the worker's cache of code, while tasks end at the same time."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.backoff import Backoff
from airbridge.core.protocol import BundleRef
from airbridge.edge_worker.storage import bundles
from airbridge.edge_worker.storage.bundles import Bundles

SIZES = (10, 10, 10, 500, 530)


@asynccontextmanager
async def kept(cache: Bundles, number: int, size: int) -> AsyncIterator[Path]:
    """Pin a directory of `size` bytes, made if it is not there."""

    def fetch(path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)  # a tree that is there already stays, as it does in `unpack`
        (path / "dag.py").write_bytes(b"x" * size)

    ref = BundleRef(name="dags", version=f"sha256:{number:064x}")
    async with cache._kept(ref, fetch, lambda _: None) as path:
        yield path


@pytest.fixture
def cache(tmp_path: Path) -> Bundles:
    """A cache that holds the three small ones and one of the large."""
    return Bundles(
        tmp_path,
        lambda: MemoryStore("code"),
        lambda _ref, _signature: None,
        max_bytes=1040,
        backoff=lambda: Backoff(0.001, 0.001, lambda: 0.5),
    )


async def filled(cache: Bundles) -> None:
    for number, size in enumerate(SIZES[:3]):
        async with kept(cache, number, size):
            pass


def slowly(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None] = lambda: time.sleep(0.1)) -> None:
    remove = bundles._remove

    def slow(path: Path) -> None:
        before()
        remove(path)

    monkeypatch.setattr(bundles, "_remove", slow)


def test_two_evictions_at_once(cache: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tasks that end together evict what is needed, once."""
    slowly(monkeypatch)

    async def ended(number: int, after: float, both: asyncio.Barrier) -> None:
        async with kept(cache, number, SIZES[number]):
            await both.wait()
            await asyncio.sleep(after)

    async def scenario() -> None:
        await filled(cache)
        both = asyncio.Barrier(2)
        await asyncio.gather(ended(3, 0.0, both), ended(4, 0.02, both))
        assert sorted(path.name[-1] for path in cache._sizes) == ["2", "3", "4"]
        assert cache.bytes == 1040

    asyncio.run(scenario())


def test_code_that_is_evicted_is_fetched_again(cache: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """Code that is needed while it is being evicted is fetched after that, and stays."""
    removing = threading.Event()

    def before() -> None:
        removing.set()
        time.sleep(0.1)

    slowly(monkeypatch, before)

    async def scenario() -> None:
        await filled(cache)
        async with kept(cache, 4, 1035):
            pass_over = asyncio.create_task(cache._evict())
            await asyncio.to_thread(removing.wait, 5)
            async with kept(cache, 0, SIZES[0]) as path:
                await pass_over
                assert (path / "dag.py").exists()

    asyncio.run(scenario())


def test_failed_eviction_fails_no_task(cache: Bundles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that cannot be removed stays counted, and the task whose end evicted it has ended well."""

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    async def scenario() -> None:
        await filled(cache)
        monkeypatch.setattr(bundles, "_remove", refuse)
        async with kept(cache, 4, 1035):
            pass
        assert cache.bytes == 1065

    asyncio.run(scenario())
