"""Queue messages for the event loop: received with retries, and deleted, hidden or returned without a caller waiting.

Deleting and returning may fail without harm: a message that stays on the queue is refused when it comes again.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import structlog

from airbridge.core.aws.queue import MAX_BATCH, Received
from airbridge.core.backoff import Backoff
from airbridge.core.exceptions import QueueError
from airbridge.edge_worker.ops.events import EventLog
from airbridge.edge_worker.work.bounded_wait import within
from airbridge.edge_worker.work.queue import AsyncQueue

log = structlog.get_logger(__name__)

# Seconds for which a message that another worker may be granted stays hidden, unless the gateway names a
# time.
RETURN_SECONDS: Final = 5

_MAX_HIDDEN_SECONDS: Final = 900.0
# Seconds for which a deletion waits for others to share its call; the message itself is hidden for a minute.
_DELETE_LINGER_SECONDS: Final = 0.5


class Messages:
    """The worker's messages on its regional queue."""

    def __init__(
        self,
        queue: AsyncQueue,
        *,
        events: EventLog,
        backoff: Callable[[], Backoff],
        rng: random.Random,
        poll_seconds: int,
    ) -> None:
        self._queue = queue
        self._events = events
        self._receive_backoff = backoff()
        self._rng = rng
        self._poll_seconds = poll_seconds
        #: Error of the last poll; None while the worker can receive.
        self.error: str | None = None
        self._calls: set[asyncio.Task[None]] = set()
        self._deletable: list[str] = []
        self._deleting = False
        self._winding_down = asyncio.Event()

    async def receive(self, capacity: int) -> list[Received]:
        """Return up to `capacity` messages from one long poll; none if it failed, after a pause."""
        try:
            messages = await self._queue.receive(min(capacity, MAX_BATCH), self._poll_seconds)
        except QueueError as error:
            await self._receive_failed(error)
            return []
        self._receive_backoff.succeeded()
        if self.error is not None:
            self.error = None
            self._events.emit("queue.restored")
        return messages

    def delete(self, receipts: Sequence[str]) -> None:
        """Delete messages now, in the background."""
        self._start(self._queue.delete(receipts))

    def delete_soon(self, receipts: Sequence[str]) -> None:
        """Delete messages together with those of other claims: a call to the queue costs as much as a claim."""
        self._deletable += receipts
        if self._deletable and not self._deleting:
            self._deleting = True
            self._start(self._delete_after_linger())

    def return_soon(self, receipts: Sequence[str], seconds: float = RETURN_SECONDS) -> None:
        """Make messages visible again after a delay, in the background."""
        self._start(self._release(receipts, seconds))

    async def return_now(self, receipts: Sequence[str], seconds: float | None = None) -> None:
        """Make messages visible again, at once or after `seconds`; return when the queue has answered."""
        if receipts:
            work = self._queue.release(receipts) if seconds is None else self._release(receipts, seconds)
            await self._best_effort(work)

    async def keep_hidden(self, receipts: Sequence[str], seconds: int) -> None:
        """Hide received messages from other workers for `seconds` from now."""
        if receipts:
            await self._best_effort(self._queue.release(receipts, after_seconds=seconds))

    async def settled(self) -> None:
        """Stop lingering; return once no call to the queue is under way."""
        self._winding_down.set()
        while self._calls:
            await asyncio.wait(self._calls)

    async def abandon(self) -> None:
        """Cancel the calls under way; their messages become visible again by themselves."""
        for task in self._calls:
            task.cancel()
        await asyncio.gather(*self._calls, return_exceptions=True)

    @property
    def busy(self) -> bool:
        """Return whether a call to the queue is under way."""
        return bool(self._calls)

    async def _receive_failed(self, error: QueueError) -> None:
        pause = self._receive_backoff.failed()
        log.warning("poller.receive_failed", detail=str(error), retry_seconds=round(pause, 2))
        first, self.error = self.error is None, str(error)
        if first:
            self._events.emit("queue.failing", why=self.error)
        await asyncio.sleep(pause)

    async def _release(self, receipts: Sequence[str], seconds: float) -> None:
        # A little jitter: messages that were returned together must not all go to one worker again.
        hidden = int(min(max(0.0, seconds), _MAX_HIDDEN_SECONDS)) + self._rng.randint(0, 2)
        await self._queue.release(receipts, after_seconds=hidden)

    async def _delete_after_linger(self) -> None:
        await within(_DELETE_LINGER_SECONDS, self._winding_down.wait())
        self._deleting = False
        receipts, self._deletable = self._deletable, []
        await self._queue.delete(receipts)

    def _start(self, work: Awaitable[None]) -> None:
        task = asyncio.create_task(self._best_effort(work))
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    async def _best_effort(self, work: Awaitable[None]) -> None:
        try:
            await work
        except QueueError as error:
            log.warning("poller.queue_call_failed", detail=str(error))
