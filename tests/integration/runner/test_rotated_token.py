"""A token that its issuer replaces while the worker runs stays hidden from tasks."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.runner.attacks import HEAD, TAIL
from tests.integration.runner.world import World

from airbridge.core.sandbox import landlock
from airbridge.edge_worker.settings import load

pytestmark = pytest.mark.skipif(not landlock.abi(), reason="this kernel has no Landlock")


class Volume:
    """A projected volume: `token` leads to `..data/token`, and `..data` to a directory that is exchanged."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = folder / "token"
        self.renew("first")
        self.token.symlink_to("..data/token")

    def renew(self, text: str) -> None:
        """Replace the token, as the kubelet does."""
        place = self.folder / f"..{text}"
        place.mkdir()
        (place / "token").write_text(text)
        fresh = self.folder / "..data_tmp"
        fresh.symlink_to(place.name)
        fresh.replace(self.folder / "..data")


@pytest.fixture
def root() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(prefix="airbridge-token-", dir="/var/tmp"))
    yield made
    shutil.rmtree(made)


def test_replaced_token_stays_hidden(root: Path) -> None:
    """Neither the token that was there when the worker started nor its successors are read or listed by a task."""
    (root / "state").mkdir()
    (root / "join").mkdir()
    volume = Volume(root / "join")
    settings = load(
        None,
        gateway_url="https://unused",
        ca_file=root / "ca",
        region="gke",
        state_dir=root / "state",
        join_method="kubernetes",
        join_token_file=volume.token,
    )
    world = World(root / "state", hidden=settings.hidden_from_tasks[1:])
    try:
        volume.renew("second")
        attack = f"""
def result():
    volume = Path({str(volume.folder)!r})
    tries = {{
        "token": volume / "token",
        "first": volume / "..first/token",
        "second": volume / "..second/token",
    }}
    return [*(name for name, path in tries.items() if not denied(path.read_bytes)),
            *(["list"] if not denied(os.listdir, volume) and os.listdir(volume) else [])]
"""
        run = world.do(world.run(world.write(HEAD + attack + TAIL), "t"))
        assert run.proxy.pushed() == [], run.log
    finally:
        world.close()


def test_linked_join_token_is_hidden_with_its_directory(root: Path) -> None:
    """A join token in a Secret's volume is exchanged in the same way, whatever the method."""
    volume = Volume(root)
    common = {"gateway_url": "https://unused", "ca_file": root / "ca", "region": "r", "state_dir": root / "s"}
    assert root in load(None, **common, join_token_file=volume.token).hidden_from_tasks
    plain = root / "plain"
    plain.write_text("x")
    assert root not in load(None, **common, join_token_file=plain).hidden_from_tasks
