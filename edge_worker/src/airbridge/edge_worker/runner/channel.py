"""Where the Task SDK's log lines go, in whichever of the runner's processes they are written."""

from __future__ import annotations

import os
from typing import Final

_KEEP_BYTES: Final = 256 * 1024


class LogChannel:
    """A binary stream that can be pointed elsewhere after a fork, so that logging is configured only once.

    While it is `keeping`, lines are held: what a DAG file logs as it is parsed ahead of time belongs into the log of
    every task that is forked from it later, as if the task had parsed the file itself.
    """

    mode = "wb"
    name = "<airbridge log channel>"

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._kept = bytearray()
        self._keeping = False

    def keep(self, on: bool) -> None:
        """Hold what is written from now on, or stop doing so."""
        self._keeping = on

    def forget(self) -> None:
        """Drop what is held, and hold nothing more."""
        self._kept.clear()
        self._keeping = False

    def point_at(self, fd: int) -> None:
        """Write to `fd` from now on, what was held first."""
        self._fd = fd
        kept, self._kept = bytes(self._kept), bytearray()
        self._keeping = False
        self.write(kept)

    def write(self, data: bytes) -> int:
        """Write all of `data`."""
        if self._keeping:
            if len(self._kept) + len(data) <= _KEEP_BYTES:
                self._kept += data
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
