"""Bodies under way: their number, their bytes, and the bounds that hold before one is parsed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.control_plane.gateway.api import requests
from airbridge.control_plane.gateway.api.body_reader import BodyLimit, BodyReader
from airbridge.control_plane.gateway.auth.authentication import PEER, Peer
from airbridge.control_plane.gateway.net.body_reads import UNRESERVED, BodyRead, BodyReadLimits, BodyReads
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.core import json_bounds
from airbridge.core.protocol import ExchangeRequest


class _Certificate:
    uri = "spiffe://airbridge.test/worker"


class Reader:
    """Bodies under way, and which of them were evicted."""

    def __init__(self, **limits: int) -> None:
        self.reads = BodyReads(BodyReadLimits(**limits))
        self.evicted: list[str] = []

    def begin(self, name: str, address: str = "192.0.2.1") -> BodyRead:
        certificate = cast("PeerCertificate", _Certificate()) if address == "worker" else None
        return self.reads.begin(Peer(f"{address}:4000", certificate), lambda: self.evicted.append(name))


def test_newest_body_evicts_oldest() -> None:
    """An address loses its own oldest bodies; another address and a worker lose none."""
    reader = Reader(per_address=2)
    reader.begin("other", "192.0.2.9")
    reader.begin("worker", "worker")
    first = reader.begin("1")
    for name in ("2", "3"):
        reader.begin(name)
    assert (reader.evicted, first.evicted) == (["1"], True)
    assert len(reader.reads) == 4


def test_all_addresses_share_a_limit() -> None:
    """Many addresses do not add up to more than the total, of which workers are no part."""
    reader = Reader(anonymous=2, per_worker=1)
    reader.begin("worker", "worker")
    for number in range(3):
        reader.begin(f"{number}", f"192.0.2.{number}")
    assert reader.evicted == ["0"]
    reader.begin("another", "worker")
    assert reader.evicted == ["0", "worker"]


def test_received_body_gives_its_place_back() -> None:
    """A body that has arrived is not evicted; its bytes are held until its request ends."""
    reader = Reader(per_address=1)
    read = reader.begin("1")
    read.reserve(2 * UNRESERVED)
    read.received()
    reader.begin("2").release()
    assert (reader.evicted, reader.reads.reserved_bytes) == ([], 2 * UNRESERVED)
    read.release()
    read.release()
    assert (len(reader.reads), reader.reads.reserved_bytes) == (0, 0)


def test_large_bodies_share_their_memory() -> None:
    """Bytes are reserved per caller and in total; small bodies need none."""
    half = 2 * UNRESERVED
    reader = Reader(bytes_per_caller=half, bytes_total=half + half // 2)
    first = reader.begin("1", "192.0.2.1")
    first.reserve(half)
    first.reserve(half)
    reader.begin("2", "192.0.2.1").reserve(UNRESERVED)
    with pytest.raises(Unavailable):
        reader.begin("3", "192.0.2.1").reserve(UNRESERVED + 1)
    with pytest.raises(Unavailable):
        reader.begin("4", "192.0.2.2").reserve(half)
    first.release()
    reader.begin("5", "192.0.2.2").reserve(half)


def test_largest_holder_gives_room_for_bytes() -> None:
    """A caller that asks for less than another holds evicts that one's oldest body; for as much it is refused."""
    unit = 2 * UNRESERVED
    reader = Reader(bytes_per_caller=3 * unit, bytes_total=4 * unit)
    largest, small = reader.begin("largest", "192.0.2.1"), reader.begin("small", "192.0.2.2")
    largest.reserve(3 * unit)
    small.reserve(unit)
    with pytest.raises(Unavailable):
        reader.begin("as large", "192.0.2.3").reserve(3 * unit)
    assert reader.evicted == []
    reader.begin("smaller", "192.0.2.4").reserve(2 * unit)
    assert (reader.evicted, reader.reads.reserved_bytes) == (["largest"], 3 * unit)
    with pytest.raises(Unavailable):
        largest.reserve(unit)
    largest.release()
    assert reader.reads.reserved_bytes == 3 * unit


def test_received_body_keeps_its_bytes() -> None:
    """A body that has arrived is worked on, whatever it holds."""
    unit = 2 * UNRESERVED
    reader = Reader(bytes_per_caller=2 * unit, bytes_total=2 * unit)
    received = reader.begin("received", "192.0.2.1")
    received.reserve(2 * unit)
    received.received()
    with pytest.raises(Unavailable):
        reader.begin("other", "192.0.2.2").reserve(unit)
    assert (reader.evicted, reader.reads.reserved_bytes) == ([], 2 * unit)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.sampled_from('ab"\\,[]{}:')),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.sampled_from('ab"\\,[')), inner),
    max_leaves=30,
)


def _count(value: Any) -> tuple[int, int]:
    """Return the number of values and of levels of containers."""
    if not isinstance(value, list | dict):
        return 1, 0
    inner = [_count(each) for each in (value.values() if isinstance(value, dict) else value)]
    return 1 + sum(each[0] for each in inner), 1 + max((each[1] for each in inner), default=0)


@given(json_values, st.booleans())
def test_values_and_levels_are_counted(value: Any, ascii_only: bool) -> None:
    """A text passes exactly at its own numbers, whatever its strings contain. An empty container may count as two values."""
    text = json.dumps(value, ensure_ascii=ascii_only).encode()
    values, levels = _count(value)
    json_bounds.check(text, 2 * values, levels)
    if values > 1:
        with pytest.raises(json_bounds.OutOfBounds):
            json_bounds.check(text, values - 1, levels)
    if levels:
        with pytest.raises(json_bounds.OutOfBounds):
            json_bounds.check(text, 2 * values, levels - 1)


def test_bounds_hold_before_json_faults() -> None:
    """A text that a parser refuses at its end is refused before."""
    for text in (b"[" * 1_000_000, b"[0," * 1_000, b'{"a":' * 1_000, b'""' * 100_000):
        with pytest.raises(json_bounds.OutOfBounds):
            json_bounds.check(text, 500)


def test_many_faults_are_counted_only() -> None:
    """Neither a fault in each of many places nor a number of values beyond the bound is described one by one."""
    records = [{"item_id": 0, "epoch": "x", "seq": 0, "method": "x", "path": 0}] * 3
    with pytest.raises(Refused, match=r"records\.0\.item_id"):
        requests.parse(json.dumps({"records": records}).encode(), ExchangeRequest)
    with pytest.raises(Refused, match="more than 10 values") as refused:
        requests.parse(json.dumps({"records": records}).encode(), ExchangeRequest, 10)
    assert refused.value.status == 413


class Slow:
    """Request whose body arrives in pieces of a size, one every 50 ms."""

    def __init__(self, piece: int, pieces: int) -> None:
        self._pieces = [b"x" * piece] * pieces
        self.headers = {"content-length": str(piece * pieces)}
        self.scope = {PEER: Peer("192.0.2.1:4000")}

    async def stream(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            await asyncio.sleep(0.05)
            yield piece


async def length_of(request: Any, limit: BodyLimit) -> int:
    async with BodyReader(BodyReads(), ThreadPool("parsing", threads=1, requests=1)).read(
        request, limit
    ) as body:
        return len(body)


def test_body_may_be_as_slow_as_its_line() -> None:
    """A body takes longer than its seconds if it arrives at the rate that its endpoint allows."""
    limit = BodyLimit(100_000, seconds=0.2, slowest=10_000)
    assert asyncio.run(length_of(Slow(2_000, 10), limit)) == 20_000


@pytest.mark.parametrize("slowest", [None, 10_000])
def test_slow_body_is_refused(slowest: int | None) -> None:
    """A body that arrives more slowly than its endpoint allows, or than its seconds where there is no rate, is refused."""
    limit = BodyLimit(100_000, seconds=0.2, slowest=slowest)
    request = Slow(2_000 if slowest is None else 100, 10)
    with pytest.raises(Refused) as refused:
        asyncio.run(length_of(request, limit))
    assert refused.value.status == 408
