"""Huge pages for a process that is forked from: a fork copies one entry for 2 MiB, in place of 512, and an exit drops one.

The zygote's memory hardly changes once Airflow is loaded, and every template, supervisor and task begins with it. Where a
process writes, the kernel splits the huge page for that process and copies the 4 KiB that are written to, as before.
Linux 6.1 or later (``MADV_COLLAPSE``); elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

HUGE: Final = 2 * 1024 * 1024
_MADV_COLLAPSE: Final = 25

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def gather() -> int:
    """Have the kernel gather this process's own memory into huge pages, as far as it can. Returns how many it made.

    It does not add memory but for holes: a huge page takes the place of the pages that it is made of.
    """
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return 0
    return sum(_LIBC.madvise(start, HUGE, _MADV_COLLAPSE) == 0 for start in aligned(maps))


def aligned(maps: Iterable[str]) -> Iterator[int]:
    """Yield where a huge page can begin, from the lines of ``/proc/<pid>/maps``: in memory that is private and of no file."""
    for line in maps:
        span, permissions, _offset, _device, inode, *name = line.split(maxsplit=5)
        if permissions != "rw-p" or inode != "0" or name == ["[stack]"]:
            continue
        low, high = (int(end, 16) for end in span.split("-"))
        yield from range(-(-low // HUGE) * HUGE, high - HUGE + 1, HUGE)
