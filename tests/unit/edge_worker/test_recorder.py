"""The recorder: a write is durable whatever becomes of the caller that waits for it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.unit.edge_worker.test_journal import open_, run
from tests.unit.edge_worker.test_journal_file import grant

from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.journal.rows import AddGrant
from airbridge.edge_worker.proxy import recorder
from airbridge.edge_worker.proxy.protocol import Call
from airbridge.edge_worker.proxy.recorder import Recorder
from airbridge.edge_worker.work.attempts import Attempt

FINAL = Call(1, "PATCH", "task-instances/x/state", "", "{}")


def test_cancelled_caller_loses_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write whose caller is cancelled while the journal is full is written once there is space, and is sent."""
    monkeypatch.setattr(recorder, "FULL_RETRY_SECONDS", 0.01)

    async def scenario() -> None:
        journal = await open_(tmp_path, max_bytes=10_000)
        await journal.submit(AddGrant(grant()))
        attempt, woken = Attempt(grant()), asyncio.Event()
        writes = Recorder(journal, SystemClock(), lambda _: woken.set(), 0.0)
        journal._max_bytes = 0
        writing = asyncio.ensure_future(writes.write(attempt, FINAL, final=True))
        await asyncio.sleep(0.05)
        writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        assert not woken.is_set()
        journal._max_bytes = 10_000
        await asyncio.wait_for(woken.wait(), 5)
        assert [entry.durable for entry in attempt.unanswered] == [True]
        assert journal.pending == 1
        await journal.close()

    run(scenario())
