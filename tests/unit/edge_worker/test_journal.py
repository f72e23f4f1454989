"""The journal as the event loop sees it: futures that resolve when a thing is on the disk; bounds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from tests.unit.edge_worker.test_journal_file import grant, record

from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.exceptions import JournalError, JournalFull
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import AddGrant, AddRecord, Forget, MarkReported, SetMeta, key


async def open_(path: Path, max_bytes: int = 1_000_000, **kwargs: Any) -> Journal:
    journal, _ = await Journal.open(
        path / "journal.sqlite", clock=SystemClock(), max_bytes=max_bytes, **kwargs
    )
    return journal


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(scenario)


def test_submitted_operations_are_durable_in_order(tmp_path: Path) -> None:
    """Operations submitted together are all there after a restart, the later over the earlier."""

    async def scenario() -> None:
        journal = await open_(tmp_path)
        await asyncio.gather(*(journal.submit(SetMeta("n", str(n))) for n in range(200)))
        await journal.close()
        _, contents = await Journal.open(tmp_path / "journal.sqlite", clock=SystemClock(), max_bytes=1)
        assert contents.meta["n"] == "199"

    run(scenario())


@pytest.mark.parametrize(("options", "synchronous"), [({}, 2), ({"fsync": True}, 2), ({"fsync": False}, 0)])
def test_commits_are_synced_by_default(tmp_path: Path, options: dict[str, bool], synchronous: int) -> None:
    """Unless it is switched off, each commit is on the disk before its future resolves (SQLite: 2 is FULL, 0 is OFF)."""

    async def scenario() -> None:
        journal = await open_(tmp_path, **options)
        connection = journal._file._connection
        assert connection is not None
        assert connection.execute("PRAGMA synchronous").fetchone() == (synchronous,)
        await journal.close()

    run(scenario())


def test_full_journal_takes_deletions(tmp_path: Path) -> None:
    """Beyond the bound a write is refused, not dropped silently; reporting frees space again."""

    async def scenario() -> None:
        journal = await open_(tmp_path, max_bytes=50_000)
        await journal.submit(AddGrant(grant()))
        accepted = 0

        async def fill() -> None:
            nonlocal accepted
            for seq in range(1, 100):
                await journal.submit(AddRecord(record(1, seq, "x" * 5000), final=False))
                accepted = seq

        with pytest.raises(JournalFull, match="of at most 50000"):
            await fill()
        assert 5 <= accepted <= 10
        assert journal.full
        assert not journal.accepts_grants
        await journal.submit(MarkReported(key(UUID(int=1), 1), accepted))
        await journal.submit(AddRecord(record(1, accepted + 1, "x" * 5000), final=True))
        assert not journal.full
        await journal.close()

    run(scenario())


def test_last_fifth_is_for_results(tmp_path: Path) -> None:
    """A nearly full journal refuses new grants while it still takes records."""

    async def scenario() -> None:
        journal = await open_(tmp_path, max_bytes=50_000)
        await journal.submit(AddGrant(grant()))
        for seq in range(1, 8):
            await journal.submit(AddRecord(record(1, seq, "x" * 5000), final=False))
        assert not journal.full
        with pytest.raises(JournalFull):
            await journal.submit(AddGrant(grant(2)))
        await journal.submit(AddRecord(record(1, 8, "x" * 3000), final=True))
        await journal.close()

    run(scenario())


def test_last_share_is_for_final_states(tmp_path: Path) -> None:
    """A journal that XComs have filled still takes final states."""

    async def scenario() -> None:
        journal = await open_(tmp_path, max_bytes=50_000)
        await journal.submit(AddGrant(grant()))

        async def fill() -> None:
            for seq in range(1, 500):
                await journal.submit(AddRecord(record(1, seq, "x" * 500), final=False))

        with pytest.raises(JournalFull):
            await fill()
        await journal.submit(AddRecord(record(2, 1), final=True))
        await journal.close()

    run(scenario())


def test_deleted_file_is_rebuilt(tmp_path: Path) -> None:
    """The next write after the file of a running worker was removed rebuilds it whole, and reports the damage."""

    async def scenario() -> None:
        journal = await open_(tmp_path)
        await journal.submit(AddGrant(grant()))
        (tmp_path / "journal.sqlite").unlink()
        await journal.submit(AddRecord(record(1, 1), final=True))
        await asyncio.sleep(0)
        assert len(journal.damages) == 1
        await journal.close()
        again, contents = await Journal.open(tmp_path / "journal.sqlite", clock=SystemClock(), max_bytes=1)
        assert not again.damages
        assert [*contents.records[key(UUID(int=1), 1)]] == [1]

    run(scenario())


def test_a_closed_journal_refuses(tmp_path: Path) -> None:
    """After closing nothing is accepted as if it were journalled."""

    async def scenario() -> None:
        journal = await open_(tmp_path)
        await journal.close()
        with pytest.raises(JournalError):
            await journal.submit(Forget(key(UUID(int=1), 1)))

    run(scenario())


def test_twenty_five_thousand_records_open_quickly(tmp_path: Path) -> None:
    """A long cut's worth of records is checked and read in seconds."""

    async def scenario() -> None:
        journal = await open_(tmp_path, max_bytes=100_000_000, fsync=False)
        await journal.submit(AddGrant(grant()))
        await asyncio.gather(
            *(journal.submit(AddRecord(record(1, n), final=False)) for n in range(1, 25_001))
        )
        await journal.close()
        started = time.monotonic()
        _, contents = await Journal.open(tmp_path / "journal.sqlite", clock=SystemClock(), max_bytes=1)
        assert contents.pending == 25_000
        assert time.monotonic() - started < 30

    run(scenario())
