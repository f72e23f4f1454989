"""Readers of what hostile code sends: bounded, and equal however the bytes are divided."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airbridge.core.sandbox.bounded_reads import FrameReader, LineReader


def feed(reader: Callable[[socket.socket], bool], *pieces: bytes) -> None:
    """Send each piece and have it read, then the end."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            for piece in filter(None, pieces):
                theirs.sendall(piece)
                assert reader(ours)
        assert not reader(ours)


@given(st.lists(st.binary(max_size=20).map(lambda part: part.replace(b"x", b"\n"))))
def test_lines_are_whole(pieces: list[bytes]) -> None:
    """Lines arrive whole, with their ends, however they were sent."""
    lines: list[bytes] = []
    feed(LineReader(lines.append, 10_000), *pieces)
    assert b"".join(pieces).splitlines(keepends=True) == lines or b"\r" in b"".join(pieces)
    assert b"".join(pieces) == b"".join(lines)


def test_long_lines_are_split() -> None:
    """A line that does not end is handed on in pieces while it comes."""
    lines: list[bytes] = []
    feed(LineReader(lines.append, 4), b"abc", b"def", b"ghijk\nl", b"m\n", b"no")
    assert [b"abcd", b"efgh", b"ijk\n", b"lm\n", b"no"] == lines


def test_long_lines_are_left_out() -> None:
    """A line that is too long is replaced by its size; the next is read."""
    lines: list[bytes] = []
    reader = LineReader(lines.append, 4, lambda size: b"<%d>" % size)
    feed(reader, b"abc", b"def", b"g\nfour\nl", b"m\n", b"longest")
    assert [b"<7>", b"four\n", b"lm\n", b"<7>"] == lines


@given(st.lists(st.binary(max_size=50)), st.integers(1, 60))
def test_frames_are_whole(frames: list[bytes], size: int) -> None:
    """Frames arrive whole, however they were sent."""
    found: list[bytes] = []
    stream = b"".join(len(frame).to_bytes(4, "big") + frame for frame in frames)
    feed(FrameReader(found.append, 50), *(stream[at : at + size] for at in range(0, len(stream), size)))
    assert frames == found


def test_announced_length_is_refused() -> None:
    """The head of a frame that is too long is enough to refuse it."""
    found: list[bytes] = []
    with pytest.raises(ValueError, match="a message of 51 bytes; at most 50 are allowed"):
        feed(FrameReader(found.append, 50), b"\x00\x00\x00\x01a\x00\x00\x00\x33")
    assert [b"a"] == found
