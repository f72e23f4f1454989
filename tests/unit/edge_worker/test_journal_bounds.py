"""The journal's bound: when it takes new grants, and what a group of operations may add to it."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.unit.edge_worker.test_journal import open_, run
from tests.unit.edge_worker.test_journal_file import grant, record

from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.exceptions import JournalError, JournalFull
from airbridge.edge_worker.journal.rows import AddGrant, AddRecord, Contents, SetMeta
from airbridge.edge_worker.storage.disk_watch import DiskWatch


def test_grants_end_before_the_bound(tmp_path: Path) -> None:
    """A journal that is nearly full takes no grants, though no write has been refused yet."""

    async def scenario() -> None:
        journal = await open_(tmp_path, max_bytes=50_000)
        await journal.submit(AddGrant(grant()))
        assert journal.accepts_grants
        for seq in range(1, 9):
            await journal.submit(AddRecord(record(1, seq, "x" * 5000), final=False))
        assert not journal.full
        assert not journal.accepts_grants
        await journal.close()

    run(scenario())


def test_refused_write_ends_grants(tmp_path: Path) -> None:
    """After a write that did not fit no grant is taken, though most of the journal is free."""

    async def scenario() -> None:
        journal = await open_(tmp_path, max_bytes=50_000)
        await journal.submit(AddGrant(grant()))
        with pytest.raises(JournalFull):
            await journal.submit(AddRecord(record(1, 1, "x" * 49_400), final=True))
        assert journal.bytes < 10_000
        assert not journal.accepts_grants
        await journal.submit(AddRecord(record(1, 1), final=True))
        assert journal.accepts_grants
        await journal.close()

    run(scenario())


def test_group_counts_together(tmp_path: Path) -> None:
    """Operations that are written in one transaction share the bound: together they may not pass it."""

    async def scenario() -> None:
        journal = await open_(tmp_path, max_bytes=50_000)
        await journal.submit(AddGrant(grant()))
        group = [journal.submit(AddRecord(record(1, seq, "x" * 9_000), final=True)) for seq in range(1, 11)]
        results = await asyncio.gather(*group, return_exceptions=True)
        assert journal.bytes <= 50_000
        assert 4 <= results.count(None) <= 5
        assert all(isinstance(result, JournalError) for result in results if result is not None)
        await journal.close()

    run(scenario())


@dataclass(frozen=True)
class Held:
    """An operation during which the journal's thread waits, so that those submitted meanwhile are one group."""

    until: threading.Event
    size: int = 0

    def changes(self, grants: Any) -> Iterator[Any]:
        """Wait."""
        self.until.wait(10)
        return iter(())


@dataclass(frozen=True)
class OnFullDisk:
    """An operation, and its only change, for which the disk has no space."""

    size: int = 0

    def changes(self, grants: Any) -> Iterator[Any]:
        """Yield itself."""
        yield self

    def write(self, connection: sqlite3.Connection, checksum: Any) -> None:
        """Fail as SQLite does."""
        error = sqlite3.OperationalError("database or disk is full")
        error.sqlite_errorcode = sqlite3.SQLITE_FULL
        raise error

    def update_contents(self, contents: Contents) -> None:
        """Change nothing."""


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_full_disk_fails_single_operations(tmp_path: Path, failing: int) -> None:
    """Of a group that cannot be written as a whole, each operation is tried alone, and none is left without an answer."""

    async def scenario() -> None:
        journal, held = await open_(tmp_path), threading.Event()
        first = journal.submit(Held(held))
        group = [journal.submit(OnFullDisk()) for _ in range(failing)]
        good = [journal.submit(SetMeta("a", "b"))] if failing != 2 else []
        held.set()
        results = await asyncio.wait_for(asyncio.gather(first, *group, *good, return_exceptions=True), 10)
        assert [type(result) for result in results[1 : failing + 1]] == [JournalFull] * failing
        assert [results[0], *results[failing + 1 :]] == [None] * (1 + len(good))
        await journal.close()

    run(scenario())


def test_only_a_full_disk_asks_for_space(tmp_path: Path) -> None:
    """At the journal's own bound nothing is given up for space: the disk may be empty."""

    async def scenario() -> None:
        journal, asked = await open_(tmp_path, max_bytes=50_000), 0

        def on_full() -> None:
            nonlocal asked
            asked += 1

        journal.on_full = on_full
        await journal.submit(AddGrant(grant()))
        with pytest.raises(JournalFull):
            await journal.submit(AddRecord(record(1, 1, "x" * 49_400), final=True))
        assert (asked, journal.full) == (0, True)
        with pytest.raises(JournalFull):
            await journal.submit(OnFullDisk())
        assert asked == 1
        await journal.close()

    run(scenario())


def test_write_is_answered_though_no_space_is_freed(tmp_path: Path) -> None:
    """A write is refused, to be repeated, though freeing space for it fails."""

    async def scenario() -> None:
        journal = await open_(tmp_path)

        def on_full() -> None:
            raise OSError(28, "No space left on device")

        journal.on_full = on_full
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)
        with pytest.raises(JournalFull):
            await asyncio.wait_for(journal.submit(OnFullDisk()), 1)
        assert not journal.accepts_grants
        await journal.close()

    run(scenario())


def test_failed_freeing_is_survived() -> None:
    """An error of the disk while space is freed goes no further."""

    class ReadOnly:
        """Disk and logs of a file system that is read-only."""

        def release_reserve(self) -> bool:
            """Fail."""
            raise OSError(30, "Read-only file system")

    disk: Any = ReadOnly()
    DiskWatch(disk, disk, disk, SystemClock(), 1).free_space()


def test_defect_of_an_operation_is_answered(tmp_path: Path) -> None:
    """An operation that fails unexpectedly is answered, and the journal goes on."""

    @dataclass(frozen=True)
    class Broken(OnFullDisk):
        def write(self, connection: sqlite3.Connection, checksum: Any) -> None:
            raise ValueError("no such value")

    async def scenario() -> None:
        journal = await open_(tmp_path)
        with pytest.raises(JournalError, match="no such value"):
            await asyncio.wait_for(journal.submit(Broken()), 5)
        await asyncio.wait_for(journal.submit(SetMeta("a", "b")), 5)
        await journal.close()

    run(scenario())


@pytest.mark.parametrize("query", ["", "include_xcom=true"])
@pytest.mark.parametrize("body", [None, "x" * 100])
def test_size_is_what_a_record_adds(tmp_path: Path, body: str | None, query: str) -> None:
    """The bound is checked with the bytes that the record then takes."""

    async def scenario() -> None:
        journal = await open_(tmp_path)
        await journal.submit(AddGrant(grant()))
        before = journal.bytes
        op = AddRecord(record(1, 1).model_copy(update={"body": body, "query": query}), final=False)
        await journal.submit(op)
        assert op.size == journal.bytes - before
        await journal.close()

    run(scenario())
