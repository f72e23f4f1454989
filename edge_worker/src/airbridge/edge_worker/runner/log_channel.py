"""Destination of the Task SDK's log lines, in each of the runner's processes."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final

_BUFFER_BYTES: Final = 256 * 1024


class LogChannel:
    """A binary stream that can be redirected after a fork, so that logging is configured only once.

    While it is `buffering`, lines are held: lines that a DAG file logs as it is parsed ahead of time belong into the log
    of every task that is forked from it later, as if the task had parsed the file itself.
    """

    mode = "wb"
    name = "<airbridge log channel>"

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._buffer = bytearray()
        self._buffering = False
        #: Called with each line; returns whether it has taken it, so that it is not written here.
        self.divert: Callable[[bytes], bool] | None = None

    def buffer(self, on: bool) -> None:
        """Start or stop holding what is written."""
        self._buffering = on

    def discard(self) -> None:
        """Drop what is held, and stop holding."""
        self._buffer.clear()
        self._buffering = False

    def redirect(self, fd: int) -> None:
        """Write to `fd` from now on, beginning with what was held."""
        self._fd = fd
        kept, self._buffer = bytes(self._buffer), bytearray()
        self._buffering = False
        self.write(kept)

    def write(self, data: bytes) -> int:
        """Write all of `data`, or hold it while buffering."""
        if self._buffering:
            # Beyond the bound whole lines are dropped: a torn line would not be JSON.
            if len(self._buffer) + len(data) <= _BUFFER_BYTES:
                self._buffer += data
            return len(data)
        if self.divert is not None and self.divert(data):
            return len(data)
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]
        return len(data)

    def flush(self) -> None:
        """Do nothing: nothing is buffered."""

    def fileno(self) -> int:
        """Return the descriptor written to."""
        return self._fd
