"""Recorder of a task's calls: into the journal, and in order onto the attempt's records for the gateway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from airbridge.core.protocol import RecordResult
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import JournalError, RecordTooLarge
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import AddRecord
from airbridge.edge_worker.proxy.protocol import Call
from airbridge.edge_worker.work import outcome
from airbridge.edge_worker.work.attempts import Attempt, Entry, Outcome

log = structlog.get_logger(__name__)

# Seconds between two tries of a write while the journal is full; the task waits meanwhile.
FULL_RETRY_SECONDS = 1.0


class Recorder:
    """Records the calls of tasks. `wake` is called when an attempt has something to send."""

    def __init__(
        self, journal: Journal, clock: Clock, wake: Callable[[Attempt], None], linger_seconds: float
    ) -> None:
        self._journal = journal
        self._clock = clock
        self._wake = wake
        self._linger = linger_seconds
        self._writing: set[asyncio.Task[None]] = set()

    async def write(
        self,
        attempt: Attempt,
        call: Call,
        *,
        final: bool = False,
        waiter: asyncio.Future[RecordResult] | None = None,
    ) -> Entry:
        """Journal a write and queue it. Returns once it is durable, however long the disk is full.

        Raises `RecordTooLarge` if the journal could never hold it.
        """
        if final and attempt.rejected_writes:
            call = outcome.failure_instead(call, attempt.grant, self._clock.now())
        # The seq is taken before the first await: calls keep the order in which they were made.
        record = attempt.record(call, self._clock.now(), write=True)
        try:
            self._journal.check_size(AddRecord(record, final))
        except RecordTooLarge:
            attempt.seq = record.seq - 1
            raise
        # What follows a final state is the last that the task sends: lingering could only delay it.
        urgent = final or waiter is not None or attempt.finished
        due_at = self._clock.elapsed() + (0.0 if urgent else self._linger)
        entry = Entry(record, write=True, final=final, due_at=due_at, waiter=waiter)
        attempt.unanswered.append(entry)
        if final:
            attempt.advance(Outcome.PENDING)
        # By a task of its own: a caller that is cancelled must not take back a write, nor leave it undurable for ever.
        writing = asyncio.create_task(self._record(attempt, entry))
        self._writing.add(writing)
        writing.add_done_callback(self._writing.discard)
        await asyncio.shield(writing)
        return entry

    def read(self, attempt: Attempt, call: Call, waiter: asyncio.Future[RecordResult]) -> Entry:
        """Queue a read behind the task's writes."""
        record = attempt.record(call, self._clock.now(), write=False)
        entry = Entry(record, write=False, durable=True, waiter=waiter, due_at=self._clock.elapsed())
        attempt.unanswered.append(entry)
        self._wake(attempt)
        return entry

    def fail_instead(self, attempt: Attempt) -> bool:
        """Make a recorded final state a failure, unless it is one or there is none; return whether it was changed."""
        for entry in attempt.unanswered:
            if entry.final:
                old = entry.record
                call = Call(0, old.method, old.path, old.query, old.body)
                new = outcome.failure_instead(call, attempt.grant, self._clock.now())
                entry.record = old.model_copy(update={"body": new.body})
                self._journal.submit(AddRecord(entry.record, final=True))
                return new is not call
        return False

    async def _record(self, attempt: Attempt, entry: Entry) -> None:
        await self._make_durable(entry)
        self._wake(attempt)

    async def _make_durable(self, entry: Entry) -> None:
        while True:
            try:
                await self._journal.submit(AddRecord(entry.record, entry.final))
                break
            except JournalError as error:
                log.warning("journal.write_failed", item_id=str(entry.record.item_id), detail=str(error))
            await asyncio.sleep(FULL_RETRY_SECONDS)
        entry.durable = True
