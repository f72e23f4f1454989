"""The regional work queue as the event loop sees it: `airbridge.core.aws.queue` in threads that hold nothing up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from airbridge.core.aws.daemon_thread import in_daemon_thread
from airbridge.core.aws.queue import Received, SqsQueue, sqs_client
from airbridge.core.exceptions import QueueError
from airbridge.core.protocol import RegionSettings
from airbridge.edge_worker.transfer.interfaces import SourceQueue

log = structlog.get_logger(__name__)

# How long a message received is ours to claim; then another worker may have it.
VISIBILITY_SECONDS = 60.0


class AsyncQueue:
    """A work queue for the event loop. `connect` makes the queue, in a thread, when it is first needed.

    Every failure is a `QueueError`.
    """

    def __init__(self, connect: Callable[[], SourceQueue]) -> None:
        self._connect = connect
        self._made: SourceQueue | None = None
        self._lock = threading.Lock()
        self._orphans: set[asyncio.Task[None]] = set()

    async def receive(self, most: int, wait_seconds: float) -> list[Received]:
        """Return up to `most` messages, waiting up to `wait_seconds` for the first.

        A poll cannot be called off: what one that was cancelled still receives goes back to the queue.
        """
        poll = asyncio.ensure_future(
            in_daemon_thread(
                lambda: self._queue().receive(
                    limit=most, wait_seconds=wait_seconds, visibility_seconds=VISIBILITY_SECONDS
                )
            )
        )
        try:
            return await asyncio.shield(poll)
        except asyncio.CancelledError:
            orphan = asyncio.create_task(self._return_messages(poll))
            self._orphans.add(orphan)
            orphan.add_done_callback(self._orphans.discard)
            raise

    async def settled(self) -> None:
        """Return once no cancelled poll is under way."""
        while self._orphans:
            await asyncio.wait(self._orphans)

    async def abandon(self) -> None:
        """Leave cancelled polls to themselves: what they receive comes back when its visibility runs out."""
        for orphan in self._orphans:
            orphan.cancel()
        await asyncio.gather(*self._orphans, return_exceptions=True)

    async def delete(self, receipts: Sequence[str]) -> None:
        """Delete messages; those that are gone already are no error."""
        await in_daemon_thread(lambda: self._queue().delete(receipts))

    async def release(self, receipts: Sequence[str], *, after_seconds: float = 0.0) -> None:
        """Make messages visible again after a delay."""
        await in_daemon_thread(lambda: self._queue().release(receipts, after_seconds=after_seconds))

    async def _return_messages(self, poll: asyncio.Future[list[Received]]) -> None:
        try:
            messages = await poll
            if messages:
                await self.release([message.receipt for message in messages])
        except QueueError as error:
            log.warning("queue.return_failed", detail=str(error))

    def _queue(self) -> SourceQueue:
        # boto3 clients are slow to make and safe to share: one for all threads.
        with self._lock:
            if self._made is None:
                self._made = self._connect()
            return self._made


def regional_queue(settings: RegionSettings, session: Callable[[], Any] = lambda: None) -> AsyncQueue:
    """Return the queue of a worker's region and pool. `session` makes the boto3 session; None stands for this host's own."""

    def connect() -> SourceQueue:
        client = sqs_client(settings.aws, settings.endpoint_url, session=session())
        return SqsQueue(client, settings.queue_url)

    return AsyncQueue(connect)
