"""The images of the releases in force: a worker that runs another one gets neither an identity nor work."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from tests.integration.gateway.world import VERSIONS, Worker, World, running

from airbridge.core.protocol import Disposition, RefusalReason

RELEASED = "sha256:" + 64 * "a"
BEFORE = "sha256:" + 64 * "b"
STRANGE = "sha256:" + 64 * "c"


@pytest.fixture
def strict(world: World, tmp_path: Path) -> Iterator[World]:
    """Run a gateway over the same database that accepts two image digests."""
    with running(world.metadata, tmp_path, worker_images=(RELEASED, BEFORE)) as it:
        yield it
        it.close_workers()


def of(image: str | None) -> dict[str, object]:
    return VERSIONS.model_copy(update={"image": image}).model_dump()


def test_unreleased_image_is_refused(strict: World) -> None:
    """Refused with the digests that would be right; the item goes back, and a worker on a released image gets it."""
    [item] = strict.items()
    for number, image in enumerate((STRANGE, None)):
        stranger = Worker(strict, "eu-west-1", "default", f"stranger-{number}")
        with pytest.raises(httpx.HTTPStatusError) as refused:
            stranger.enrol(strict.join_token(), versions=of(image))
        problem = refused.value.response.json()
        assert (refused.value.response.status_code, problem["reason"]) == (403, "parity")
        assert RELEASED in problem["detail"]

    changed = Worker(strict, "eu-west-1", "default", "changed")
    changed.enrol(strict.join_token(), versions=of(BEFORE))
    beat = {"sent_at": "2026-01-01T00:00:00Z", "versions": of(STRANGE), "slots_total": 1, "slots_used": 0}
    assert '"kind":"drain"' in changed.post("heartbeat", beat).text
    [refusal] = changed.claim(strict.envelope(item)).refusals
    assert (refusal.reason, refusal.disposition) == (RefusalReason.PARITY, Disposition.RETURN)
    assert STRANGE in refusal.detail

    right = Worker(strict, "eu-west-1", "default", "right")
    right.enrol(strict.join_token(), versions=of(RELEASED))
    right.post("heartbeat", beat | {"versions": of(RELEASED)})
    assert right.claim(strict.envelope(item)).grants
