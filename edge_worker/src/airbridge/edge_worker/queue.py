"""The regional work queue as the event loop sees it: `airbridge.executor.queue` in threads that hold nothing up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

from airbridge.executor.protocol import RegionSettings
from airbridge.executor.queue import Received, SqsQueue, WorkQueue, sqs_client

T = TypeVar("T")

VISIBILITY_SECONDS = 60.0
"""How long a message received is ours to claim; then another worker may have it."""


class AsyncQueue:
    """A work queue for the event loop. `connect` makes the queue, in a thread, when it is first needed.

    Every failure is a `QueueError`.
    """

    def __init__(self, connect: Callable[[], WorkQueue]) -> None:
        self._connect = connect
        self._made: WorkQueue | None = None
        self._lock = threading.Lock()

    async def receive(self, most: int, wait_seconds: float) -> list[Received]:
        """Return up to `most` messages, waiting up to `wait_seconds` for the first."""
        return await in_daemon_thread(
            lambda: self._queue().receive(
                limit=most, wait_seconds=wait_seconds, visibility_seconds=VISIBILITY_SECONDS
            )
        )

    async def delete(self, receipts: Sequence[str]) -> None:
        """Delete messages; those that are gone already are no error."""
        await in_daemon_thread(lambda: self._queue().delete(receipts))

    async def release(self, receipts: Sequence[str], *, after_seconds: float = 0.0) -> None:
        """Make messages visible again after a delay."""
        await in_daemon_thread(lambda: self._queue().release(receipts, after_seconds=after_seconds))

    def _queue(self) -> WorkQueue:
        with self._lock:
            if self._made is None:
                self._made = self._connect()
            return self._made


def regional_queue(settings: RegionSettings) -> AsyncQueue:
    """Return the queue of a worker's region and pool."""

    def connect() -> WorkQueue:
        return SqsQueue(sqs_client(settings.region, settings.endpoint_url), settings.queue_url)

    return AsyncQueue(connect)


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Run a blocking call in a thread of its own that the interpreter does not wait for when it ends.

    For calls that may block for long: a long poll, an upload into a region that does not answer.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - handed to who waits
            if not outcome.cancelled():
                outcome.set_exception(error)
        else:
            if not outcome.cancelled():
                outcome.set_result(result)

    threading.Thread(target=run, name="blocking-call", daemon=True).start()
    return await asyncio.wrap_future(outcome)
