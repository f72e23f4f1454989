"""Memory that is collapsed into huge pages."""

from __future__ import annotations

from airbridge.edge_worker.runner.forking.huge_pages import (
    HUGE,
    aligned,
    collapse,
    private_memory,
    ranges,
    without,
)


def test_huge_pages_of_private_memory_only() -> None:
    """Pages of files, the stack, and ranges that reach beyond their mapping are left out."""
    maps = [
        f"{HUGE + 4096:x}-{4 * HUGE + 4096:x} rw-p 00000000 00:00 0 ",
        f"{10 * HUGE:x}-{11 * HUGE:x} rw-p 00000000 00:00 0          [heap]",
        f"{20 * HUGE:x}-{21 * HUGE - 4096:x} rw-p 00000000 00:00 0 ",
        f"{30 * HUGE:x}-{31 * HUGE:x} r--p 00000000 00:00 0 ",
        f"{40 * HUGE:x}-{41 * HUGE:x} rw-s 00000000 00:00 0 ",
        f"{50 * HUGE:x}-{51 * HUGE:x} rw-p 00000000 fd:01 4711 /usr/lib/libx.so",
        f"{60 * HUGE:x}-{61 * HUGE:x} rw-p 00000000 00:00 0          [stack]",
    ]
    assert [*aligned(ranges(maps))] == [2 * HUGE, 3 * HUGE, 10 * HUGE]


def test_known_memory_is_left_alone() -> None:
    """Ranges that were there before are cut out, whether they grew, were split, or lie between new ones."""
    known = [(10, 20), (30, 40), (60, 70)]
    memory = [(5, 8), (10, 25), (30, 40), (50, 80), (90, 95)]
    assert [*without(memory, known)] == [(5, 8), (20, 25), (50, 60), (70, 80), (90, 95)]
    assert [*without(known, known)] == []
    assert [*without(memory, ())] == memory
    assert [*without([(0, 100)], known)] == [(0, 10), (20, 30), (40, 60), (70, 100)]


def test_new_memory_alone_is_collapsed() -> None:
    """Memory that was made since is collapsed, and nothing else."""
    before = private_memory()
    memory = bytearray(b"airbridge") * HUGE
    assert collapse(private_memory()) == 0
    assert collapse(before) <= len(memory) // HUGE + 2
    assert memory[-9:] == b"airbridge"


def test_memory_is_unchanged_by_collapse() -> None:
    """Memory reads the same after its pages were collapsed; a kernel without huge pages does nothing."""
    memory = bytearray(b"airbridge") * (HUGE // 2)
    before = hash(bytes(memory))
    assert collapse() >= 0
    assert hash(bytes(memory)) == before
