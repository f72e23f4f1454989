"""Code whose signature is of a key that the worker does not have yet: waited for, as long as a key may take to arrive."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.backoff import Backoff
from airbridge.core.code import snapshot
from airbridge.core.exceptions import BundleError, UnknownKey
from airbridge.core.protocol import BundleRef
from airbridge.edge_worker.exceptions import SnapshotError
from airbridge.edge_worker.storage import bundles
from airbridge.edge_worker.storage.bundles import Bundles

REF = BundleRef(name="dags", version=f"sha256:{7:064x}")


def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, errors: list[BundleError]) -> Bundles:
    def check(_ref: BundleRef, _signature: str | None) -> None:
        if errors:
            raise errors.pop()

    monkeypatch.setattr(snapshot, "unpack", lambda _pieces, _version, path, **_: path.mkdir(parents=True))
    return Bundles(
        tmp_path,
        lambda: MemoryStore("code"),
        check,
        max_bytes=1000,
        backoff=lambda: Backoff(0.001, 0.001, lambda: 0.5),
    )


async def fetched(code: Bundles) -> None:
    async with code.pinned(REF, "signature"):
        pass


def unknown() -> list[BundleError]:
    return [UnknownKey("it is signed by unknown key 'ab'") for _ in range(20)]


def test_a_new_key_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes with a heartbeat's answer, long after three attempts."""
    errors = unknown()
    asyncio.run(fetched(cache(tmp_path, monkeypatch, errors)))
    assert errors == []


def test_a_key_that_never_comes_fails_the_fetch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forged signature may name any key."""
    monkeypatch.setattr(bundles, "KEY_SECONDS", -1.0)
    with pytest.raises(SnapshotError, match="unknown key"):
        asyncio.run(fetched(cache(tmp_path, monkeypatch, unknown())))


def test_a_wrong_signature_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three attempts, as for a damaged archive."""
    errors = [BundleError("the signature does not match", transient=True) for _ in range(20)]
    with pytest.raises(SnapshotError, match="does not match"):
        asyncio.run(fetched(cache(tmp_path, monkeypatch, errors)))
    assert len(errors) == 20 - bundles.DAMAGED_ATTEMPTS
