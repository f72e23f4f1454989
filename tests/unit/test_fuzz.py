"""No parser of what comes from the network crashes or hangs, whatever the bytes."""

from __future__ import annotations

import os
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fuzz.targets import TARGETS

EXAMPLES = int(os.environ.get("AIRBRIDGE_FUZZ_EXAMPLES", "60"))


@st.composite
def damaged(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """A well-formed input with bytes altered, cut, doubled or put in."""
    data = bytearray(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(data)))
        end = min(len(data), start + draw(st.integers(0, 12)))
        put_in = draw(
            st.one_of(st.binary(max_size=12), st.just(bytes(data[start:end]) * 2), st.sampled_from(DIGITS))
        )
        data[start:end] = put_in
    return bytes(data)


DIGITS = [b"null", b"-1", b"1e999", b"[" * 50, b"{" * 50, b'"\\ud800"', b"\x00", b"%00", b"../", b"9" * 400]


@pytest.mark.parametrize("name", sorted(TARGETS))
def test_parser_accepts_or_refuses_input(name: str) -> None:
    """Well-formed input is accepted; damaged and random input is refused with the parser's own error,
    within 2 s.
    """
    target = TARGETS[name]
    seeds = target.seeds()
    for seed in seeds:
        target.parse(seed)

    @settings(
        max_examples=EXAMPLES,
        deadline=timedelta(seconds=2),
        suppress_health_check=[HealthCheck.too_slow],
        database=None,
    )
    @given(st.one_of(damaged(seeds), st.binary(max_size=300)))
    def fuzz(data: bytes) -> None:
        target.parse(data)

    fuzz()
