"""Keeps other processes on the host from reading a process's memory: the agent's key and token are nowhere else."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PR_SET_PDEATHSIG: Final = 1
_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def harden() -> bool:
    """Make this process non-dumpable: no ptrace, no /proc/<pid>/mem or environ for others of the same user, no core file.

    Returns whether it is. Inherited by what it forks, not by what it executes.
    """
    # A core file would hold the keys, wherever core_pattern sends it.
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return not is_dumpable()


def is_dumpable() -> bool:
    """Return whether others of the same user may read this process's memory."""
    return bool(_LIBC.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))


def soften() -> None:
    """Make this process dumpable again."""
    _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent, the process `parent`, has ended."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:  # it ended before
        os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def own_proc_entries() -> Iterator[None]:
    """For a moment, let this process write its own files in /proc, which a non-dumpable one's user does not own."""
    _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
