"""The recorder: a write is durable whatever becomes of the caller that waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from uuid import UUID

import pytest
from tests.unit.edge_worker.test_journal import open_, run
from tests.unit.edge_worker.test_journal_file import grant, record

from airbridge.core.protocol import RefusalReason
from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.exceptions import RecordTooLarge
from airbridge.edge_worker.journal.rows import AddGrant, AddRecord, Forget, MarkReported, key
from airbridge.edge_worker.proxy import recorder
from airbridge.edge_worker.proxy.protocol import Call
from airbridge.edge_worker.proxy.recorder import Recorder
from airbridge.edge_worker.work.attempts import Attempt

FINAL = Call(1, "PATCH", "task-instances/x/state", "", "{}")


def test_cancelled_caller_loses_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write whose caller is cancelled while the journal is full is written once there is space, and is sent."""
    monkeypatch.setattr(recorder, "FULL_RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        journal = await open_(tmp_path, max_bytes=20_000)
        await asyncio.gather(*(journal.submit(AddGrant(grant(number))) for number in (1, 2)))
        await journal.submit(AddRecord(record(2, 1, "x" * 15_000), final=True))
        attempt, woken = Attempt(grant()), asyncio.Event()
        writes = Recorder(journal, SystemClock(), lambda _: woken.set(), 0.0)
        call = Call(1, "PATCH", "task-instances/x/state", "", "x" * 4_000)
        writing = asyncio.ensure_future(writes.write(attempt, call))
        await asyncio.sleep(0.05)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert not woken.is_set()
        await journal.submit(MarkReported(key(UUID(int=2), 1), 1))
        await asyncio.wait_for(woken.wait(), 5)
        assert [entry.durable for entry in attempt.unanswered] == [True]
        assert journal.pending == 1
        await journal.close()

    run(scenario())


def test_write_of_a_forgotten_attempt_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that waits for space when its attempt is given up and forgotten takes none: nobody would ever drop its record."""
    monkeypatch.setattr(recorder, "FULL_RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        journal = await open_(tmp_path, max_bytes=20_000)
        await asyncio.gather(*(journal.submit(AddGrant(grant(number))) for number in (1, 2)))
        await journal.submit(AddRecord(record(2, 1, "x" * 15_000), final=True))
        attempt = Attempt(grant())
        writes = Recorder(journal, SystemClock(), lambda _: None, 0.0)
        call = Call(1, "PATCH", "task-instances/x/state", "", "x" * 4_000)
        writing = asyncio.ensure_future(writes.write(attempt, call))
        await asyncio.sleep(0.05)
        attempt.fence(RefusalReason.LOST)
        await journal.submit(Forget(attempt.key))
        await journal.submit(MarkReported(key(UUID(int=2), 1), 1))
        await asyncio.wait_for(writing, 5)
        assert journal.pending == 0
        await journal.close()

    run(scenario())


def test_record_that_never_fits_is_refused(tmp_path: Path) -> None:
    """A write that is larger than the journal's bound is refused at once, and leaves no gap in the sequence."""

    async def scenario() -> None:
        journal = await open_(tmp_path, max_bytes=10_000)
        await journal.submit(AddGrant(grant()))
        attempt = Attempt(grant())
        writes = Recorder(journal, SystemClock(), lambda _: None, 0.0)
        large = Call(1, "POST", "xcoms/d/r/t/k", "", "x" * 10_000)
        with pytest.raises(RecordTooLarge, match="journal_max_mib allows at most 9500"):
            await asyncio.wait_for(writes.write(attempt, large), 2)
        assert not attempt.unanswered
        await writes.write(attempt, FINAL, final=True)
        assert [entry.record.seq for entry in attempt.unanswered] == [1]
        await journal.close()

    run(scenario())
