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
from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.journal_rows import AddGrant, AddRecord, Forget, MarkReported, SetMeta, key


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


def test_a_full_journal_takes_deletions_and_says_so(tmp_path: Path) -> None:
    """Beyond the bound a write is refused, not dropped silently; reporting makes room again."""

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
        assert not journal.has_room
        await journal.submit(MarkReported(key(UUID(int=1), 1), accepted))
        await journal.submit(AddRecord(record(1, accepted + 1, "x" * 5000), final=True))
        assert not journal.full
        await journal.close()

    run(scenario())


def test_the_last_fifth_is_kept_for_results(tmp_path: Path) -> None:
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


def test_the_very_last_is_kept_for_final_states(tmp_path: Path) -> None:
    """When XComs have filled the journal and must wait, a task without any can still say how it ended."""

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


def test_a_deleted_file_is_rebuilt_while_writing(tmp_path: Path) -> None:
    """Somebody removes the journal of a running worker: the next write rebuilds it, with everything, and reports it."""

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
