"""Where a task's words go first: into the journal, and in order onto the queue to the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import JournalError
from airbridge.edge_worker.frames import Call
from airbridge.edge_worker.holdings import Entry, Holding
from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.journal_rows import AddRecord
from airbridge.executor.protocol import RecordResult

log = structlog.get_logger(__name__)

FULL_RETRY_SECONDS = 1.0
"""How often a write that the journal had no room for is tried again; the task waits meanwhile."""


class Outbox:
    """Puts records into a holding's queue. `wake` tells the reporter that there is something to send."""

    def __init__(
        self, journal: Journal, clock: Clock, wake: Callable[[Holding], None], linger_seconds: float
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._wake = wake
        self._linger = linger_seconds

    async def write(
        self,
        holding: Holding,
        call: Call,
        *,
        final: bool = False,
        waiter: asyncio.Future[RecordResult] | None = None,
    ) -> Entry:
        """Journal a write and queue it. Returns once it is durable, however long the disk is full.

        The seq is taken before the first await: calls keep the order in which they were made.
        """
        record = holding.record(call, self._clock.now(), write=True)
        urgent = final or waiter is not None or holding.finished
        due_at = self._clock.elapsed() + (0.0 if urgent else self._linger)
        entry = Entry(record, write=True, final=final, due_at=due_at, waiter=waiter)
        holding.outbox.append(entry)
        holding.finished = holding.finished or final
        await self._journalled(entry)
        self._wake(holding)
        return entry

    def read(self, holding: Holding, call: Call, waiter: asyncio.Future[RecordResult]) -> Entry:
        """Queue a read behind the task's writes."""
        record = holding.record(call, self._clock.now(), write=False)
        entry = Entry(record, write=False, durable=True, waiter=waiter, due_at=self._clock.elapsed())
        holding.outbox.append(entry)
        self._wake(holding)
        return entry

    async def _journalled(self, entry: Entry) -> None:
        while True:
            try:
                await asyncio.shield(self._journal.submit(AddRecord(entry.record, entry.final)))
                break
            except JournalError as error:
                log.warning("journal.write_failed", item_id=str(entry.record.item_id), detail=str(error))
            await asyncio.sleep(FULL_RETRY_SECONDS)
        entry.durable = True
