"""Anchors of the audit trail: written outside of the database, compared with the chain, and read by the command line."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tests.integration.gateway.world import World
from tests.security.attacks.evidence import EVIDENCE_ATTACKS

from airbridge.control_plane.gateway.audit import sealer
from airbridge.control_plane.gateway.audit.anchors import (
    Anchor,
    Anchors,
    BucketSink,
    FileSink,
    SyslogSink,
    sinks,
)
from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.exceptions import ConfigurationError

ANCHOR = Anchor(7, "ab" * 32, "2026-01-31T12:00:00+00:00")


def test_operators_get_the_last_anchors(world: World) -> None:
    """The gateway returns the last anchors of its own places; that requires the scope to read the trail."""
    with world.operator(world.access_token("audit:read")) as operator:
        assert operator.get("/operator/v1/audit/anchors").json() == {"anchors": []}
    with world.operator(world.access_token("workers:read")) as operator:
        assert operator.get("/operator/v1/audit/anchors").status_code == 403


@pytest.mark.parametrize(
    "make", [lambda path: FileSink(path / "a" / "b.jsonl"), lambda _: BucketSink(MemoryStore(), "anchors")]
)
def test_place_gives_back_the_last_anchors(
    tmp_path: Path, make: Callable[[Path], FileSink | BucketSink]
) -> None:
    """Written anchors are read back, the last one last; a second gateway that writes the same anchor changes nothing."""
    sink = make(tmp_path)
    assert sink.read() == []
    later = Anchor(9, "cd" * 32, ANCHOR.at)
    for each in (ANCHOR, later, later):
        sink.write(each)
    assert sink.read()[-1] == later
    assert ANCHOR in sink.read()


@pytest.mark.parametrize("kind", [FileSink, BucketSink])
def test_undecodable_anchor_is_left_out(tmp_path: Path, kind: type) -> None:
    """Bytes that are no text hide no anchor beside them."""
    if kind is FileSink:
        sink: FileSink | BucketSink = FileSink(tmp_path / "anchors")
        (tmp_path / "anchors").write_bytes(b"\xff\n")
    else:
        store = MemoryStore()
        sink = BucketSink(store, "anchors")
        store.put(f"anchors/{datetime.now(UTC):%Y-%m-%d}/00000000000000000000.json", b"\xff")
    sink.write(ANCHOR)
    assert sink.read() == [ANCHOR]


def test_unwritable_place_is_a_fault(world: World, tmp_path: Path) -> None:
    """A place that cannot be written is reported, and does not keep the others from theirs."""
    world.worker()
    sealer.seal_once()
    faults: list[str] = []
    (tmp_path / "file").write_text("")
    away, there = FileSink(tmp_path / "file" / "x"), FileSink(tmp_path / "there")
    Anchors([away, there, SyslogSink("127.0.0.1", 9)], faults.append).turn()
    assert set(faults) == {"unwritten"}
    assert len(there.read()) == 1


@pytest.mark.parametrize(
    "url", ["ftp://x", "file://relative", "s3://bucket", "s3://bucket/prefix", "syslog:///x", "x"]
)
def test_unknown_place_is_named(url: str) -> None:
    """A place that is not of a known form is refused with the forms."""
    with pytest.raises(ConfigurationError, match="must read file:///path"):
        sinks(f"file:///var/log/anchors, {url}")


@pytest.mark.parametrize("attack", EVIDENCE_ATTACKS, ids=lambda attack: attack.__name__)
def test_trail_attack(world: World, tmp_path: Path, attack: Callable[[World, Path], None]) -> None:
    """The owner of the database cannot cut the trail's end, or make it anew, without being seen."""
    attack(world, tmp_path)
