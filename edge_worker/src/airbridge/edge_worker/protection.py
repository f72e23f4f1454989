"""Keeps other processes on the host from reading the agent's memory: its key and token are nowhere else."""

from __future__ import annotations

import ctypes
import resource

_PR_GET_DUMPABLE = 3
_PR_SET_DUMPABLE = 4


def harden() -> bool:
    """Make this process non-dumpable: no ptrace, no /proc/<pid>/mem or environ for others of the same user, no core file.

    Returns whether it is. Not inherited by what it executes.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    return not is_dumpable()


def is_dumpable() -> bool:
    """Return whether others of the same user may read this process's memory."""
    return bool(ctypes.CDLL(None).prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0))
