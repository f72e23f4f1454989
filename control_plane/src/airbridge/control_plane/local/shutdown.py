"""Shutdown of a platform that another process supervises."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable
from typing import Self

from airbridge.control_plane.local import state
from airbridge.control_plane.local.exceptions import LocalModeError, NotRunning
from airbridge.control_plane.local.layout import StateDir

_POLL_SECONDS = 0.1


def shut_down(
    directory: StateDir, timeout_seconds: float = 60.0, kill: Callable[[int, int], None] = os.kill
) -> int:
    """Terminate the supervisor, wait until the platform has stopped, and return its pid.

    A supervisor that does not end is killed; the kernel then ends its children. Raises `NotRunning` if there is none.
    """
    pid = state.lock_holder(directory)
    if pid is None:
        raise NotRunning(directory.root)
    with _Ending(pid) as ending:
        for number in (signal.SIGTERM, signal.SIGKILL):
            kill(pid, number)
            if _released(directory, timeout_seconds):
                ending.wait(timeout_seconds)
                return pid
    raise LocalModeError(f"process {pid} holds {directory.root} and does not end, even after SIGKILL")


class _Ending:
    """Waits for the end of a process that need not be a child: it releases the lock a moment before it ends."""

    def __init__(self, pid: int) -> None:
        try:
            self._pidfd: int | None = os.pidfd_open(pid)
        except ProcessLookupError:
            self._pidfd = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pidfd is not None:
            os.close(self._pidfd)

    def wait(self, timeout_seconds: float) -> None:
        """Wait until the process has ended, or for the timeout."""
        if self._pidfd is not None:
            select.select([self._pidfd], [], [], timeout_seconds)


def _released(directory: StateDir, timeout_seconds: float) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if state.lock_holder(directory) is None:
            return True
        time.sleep(_POLL_SECONDS)
    return False
