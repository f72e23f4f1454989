"""Keeps other processes on the host from reading a process's memory: the agent's key and token are nowhere else."""

from __future__ import annotations

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

_PR_GET_DUMPABLE: Final = 3
_PR_SET_DUMPABLE: Final = 4
_LIBC: Final = ctypes.CDLL(None, use_errno=True)


def harden() -> bool:
    """Make this process non-dumpable: no ptrace, no /proc/<pid>/mem or environ for others of the same user, no core file.

    Returns whether it is. Inherited by what it forks, not by what it executes.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return not is_dumpable()


def is_dumpable() -> bool:
    """Return whether others of the same user may read this process's memory."""
    return bool(_LIBC.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))


@contextmanager
def own_proc_entries() -> Iterator[None]:
    """For a moment, let this process write its own files in /proc, which a non-dumpable one's user does not own."""
    _LIBC.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    try:
        yield
    finally:
        _LIBC.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
