"""Waiting for sockets and for children at once, in the loops of the zygote and its templates."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Iterable
from contextlib import suppress
from typing import Protocol, TypeVar


class Waitable(Protocol):
    """Anything with a descriptor."""

    def fileno(self) -> int:
        """Return the descriptor."""


_W = TypeVar("_W", bound=Waitable)


class ChildSignals:
    """A descriptor that becomes readable when a child ends."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        # A handler of Python's is needed for the wake-up descriptor to be written to.
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def fileno(self) -> int:
        """Return the descriptor to wait on."""
        return self._read

    def drain(self) -> None:
        """Drop the signals received so far."""
        with suppress(BlockingIOError):
            while os.read(self._read, 4096):
                pass

    def close(self) -> None:
        """Close the pipe in a forked child, so that its signals do not reach the parent's descriptor."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.close(self._read)
        os.close(self._write)


def wait_readable(sources: Iterable[_W], timeout: float | None = None) -> list[_W]:
    """Return those that are readable (or at their end), after `timeout` seconds at the latest."""
    by_fd = {source.fileno(): source for source in sources}
    poller = select.poll()
    for fd in by_fd:
        poller.register(fd, select.POLLIN)
    return [by_fd[fd] for fd, _event in poller.poll(None if timeout is None else timeout * 1000)]
