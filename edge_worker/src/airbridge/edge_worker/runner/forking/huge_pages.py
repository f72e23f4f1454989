"""Huge pages for a process that is forked from: a fork copies one page table entry for 2 MiB in place of 512.

The zygote's memory hardly changes once Airflow is loaded, and every template, supervisor and task begins with it. A template's
own memory is what its DAG file imports and makes: tens of MiB if that is pandas. What it shares with the zygote is left alone,
for a page that is collapsed is shared no more. On a write the kernel splits the huge page for the writing process and copies 4 KiB, as
it would without huge pages. Linux 6.1 or later (``MADV_COLLAPSE``); elsewhere nothing happens.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

HUGE: Final = 2 * 1024 * 1024
_MADV_COLLAPSE: Final = 25

# First address, and the one behind the last.
Range = tuple[int, int]

_LIBC: Final = ctypes.CDLL(None, use_errno=True)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def private_memory() -> tuple[Range, ...]:
    """Return the ranges of this process's private memory of no file, lowest first; none if they cannot be read."""
    try:
        maps = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return ()
    return tuple(ranges(maps))


def collapse(known: Iterable[Range] = ()) -> int:
    """Collapse private memory into huge pages, as far as the kernel can, but for `known`. Return the number of huge pages."""
    # Costs no memory but for holes: a huge page replaces the pages that it is made of.
    found = aligned(without(private_memory(), known))
    return sum(_LIBC.madvise(start, HUGE, _MADV_COLLAPSE) == 0 for start in found)


def ranges(maps: Iterable[str]) -> Iterator[Range]:
    """Yield the ranges of private memory of no file, from lines of ``/proc/<pid>/maps``."""
    for line in maps:
        span, permissions, _offset, _device, inode, *name = line.split(maxsplit=5)
        if permissions == "rw-p" and inode == "0" and name != ["[stack]"]:
            low, high = (int(end, 16) for end in span.split("-"))
            yield low, high


def without(memory: Iterable[Range], known: Iterable[Range]) -> Iterator[Range]:
    """Yield what of `memory` lies outside of `known`. Both are in order."""
    holes = tuple(known)
    for low, high in memory:
        start = low
        for first, end in holes:
            if end > start and first < high:
                if first > start:
                    yield start, first
                start = end
        if start < high:
            yield start, high


def aligned(memory: Iterable[Range]) -> Iterator[int]:
    """Yield the addresses at which a huge page fits into a range."""
    for low, high in memory:
        # Rounded up to the next boundary; one that reaches beyond the range is left out.
        yield from range(-(-low // HUGE) * HUGE, high - HUGE + 1, HUGE)
