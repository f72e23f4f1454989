"""Reads of sockets that code of others writes to: what is kept is bounded, and an announced length takes no memory by itself.

A reader is called when its socket is readable, and returns False at its end.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Final

# Bytes that one call takes from the socket at most.
_PIECE: Final = 256 * 1024

_HEAD: Final = 4


class LineReader:
    """Hands on lines, each with its end; the last one may have none.

    A line of more than `longest` bytes comes in pieces of that size, or, with `too_long`, as what that returns for its length.
    """

    def __init__(
        self,
        handle: Callable[[bytes], object],
        longest: int,
        too_long: Callable[[int], bytes] | None = None,
    ) -> None:
        self._handle = handle
        self._longest = longest
        self._too_long = too_long
        self._line = bytearray()
        self._left_out = 0

    def __call__(self, sock: socket.socket) -> bool:
        """Read what has come."""
        piece = sock.recv(_PIECE)
        *ended, rest = piece.split(b"\n")
        for part in ended:
            self._add(part)
            self._end(b"\n")
        self._add(rest)
        if not piece and (self._line or self._left_out):
            self._end(b"")
        return bool(piece)

    def _add(self, part: bytes) -> None:
        if self._too_long is not None and self._left_out + len(self._line) + len(part) > self._longest:
            self._left_out += len(self._line) + len(part)
            self._line.clear()
            return
        self._line += part
        while len(self._line) > self._longest:
            self._handle(bytes(self._line[: self._longest]))
            del self._line[: self._longest]

    def _end(self, newline: bytes) -> None:
        line = bytes(self._line) + newline
        if self._left_out and self._too_long is not None:
            line = self._too_long(self._left_out)
        self._line.clear()
        self._left_out = 0
        self._handle(line)


class FrameReader:
    """Hands on frames: a 4-byte big-endian length, and so many bytes. Raises `ValueError` for a length of more than `longest`."""

    def __init__(self, handle: Callable[[bytes], object], longest: int) -> None:
        self._handle = handle
        self._longest = longest
        self._buffer = bytearray()

    def __call__(self, sock: socket.socket) -> bool:
        """Read what has come."""
        piece = sock.recv(_PIECE)
        self._buffer += piece
        for frame in self._frames():
            self._handle(frame)
        return bool(piece)

    def _frames(self) -> Iterator[bytes]:
        while len(self._buffer) >= _HEAD:
            end = _HEAD + int.from_bytes(self._buffer[:_HEAD], "big")
            if end - _HEAD > self._longest:
                raise ValueError(f"a message of {end - _HEAD} bytes; at most {self._longest} are allowed")
            if len(self._buffer) < end:
                return
            frame = bytes(self._buffer[_HEAD:end])
            del self._buffer[:end]
            yield frame
