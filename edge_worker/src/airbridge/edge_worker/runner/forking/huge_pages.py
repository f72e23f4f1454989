"""Huge pages for a process that is forked from: a fork copies one page table entry for 2 MiB in place of 512.

The zygote's memory hardly changes once Airflow is loaded, and every template, supervisor and task begins with it. On a write
the kernel splits the huge page for the writing process and copies 4 KiB, as it would without huge pages.
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


def collapse() -> int:
    """Collapse this process's private memory into huge pages, as far as the kernel can. Return the number of huge pages."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return 0
    # Costs no memory but for holes: a huge page replaces the pages that it is made of.
    return sum(_LIBC.madvise(start, HUGE, _MADV_COLLAPSE) == 0 for start in aligned(maps))


def aligned(maps: Iterable[str]) -> Iterator[int]:
    """Yield the addresses at which a huge page fits into private memory of no file, from lines of ``/proc/<pid>/maps``."""
    for line in maps:
        span, permissions, _offset, _device, inode, *name = line.split(maxsplit=5)
        if permissions != "rw-p" or inode != "0" or name == ["[stack]"]:
            continue
        low, high = (int(end, 16) for end in span.split("-"))
        # Rounded up to the next boundary; a range that reaches beyond the mapping is left out.
        yield from range(-(-low // HUGE) * HUGE, high - HUGE + 1, HUGE)
