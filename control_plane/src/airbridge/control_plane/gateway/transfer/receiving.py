"""Long polls of queues on behalf of workers: one poll of a pool's queue at a time, however many of its workers wait.

A thread is held per pool, not per worker. With more pools waiting than there are threads, polls are short and the pools take turns.
A message that no worker waits for any more goes back to its queue at once.

Waits end up to a quarter early, at random: workers that came back together, as after a restart of a gateway, would otherwise ask again
together every twenty seconds, and heartbeats would wait behind them.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import structlog

from airbridge.control_plane.exceptions import Unavailable
from airbridge.core.aws.daemon_thread import in_daemon_thread
from airbridge.core.aws.queue import MAX_BATCH, MAX_WAIT_SECONDS, Received, WorkQueue
from airbridge.core.exceptions import QueueError

log = structlog.get_logger()

# Polls under way at once, each in a thread that does nothing but wait.
POLLS: Final = 64
# Wait of a poll while more pools wait than may poll at once.
SHORT_WAIT_SECONDS: Final = 1.0
# As long as a message is a worker's to claim: what workers with AWS credentials ask for themselves.
VISIBILITY_SECONDS: Final = 60.0
# Share of its wait by which a poll may end early.
SPREAD: Final = 0.25


@dataclass(eq=False)
class _Waiter:
    limit: int
    messages: asyncio.Future[list[Received]]


class _PoolPoll:
    """Workers of one pool that wait, and the loop that polls while there are any."""

    def __init__(self, queue: Callable[[], WorkQueue]) -> None:
        self.queue = queue
        # In order of arrival. Not a deque: one that gives up is taken out wherever it stands.
        self.waiting: dict[_Waiter, None] = {}
        self.loop: asyncio.Task[None] | None = None

    def demand(self) -> int:
        wanted = 0
        for waiter in self.waiting:
            wanted += waiter.limit
            if wanted >= MAX_BATCH:
                return MAX_BATCH
        return wanted

    def take(self) -> _Waiter:
        """Take out the one that has waited longest."""
        waiter = next(iter(self.waiting))
        del self.waiting[waiter]
        return waiter

    def hand_out(self, messages: Sequence[Received]) -> list[Received]:
        """Give messages to those who have waited longest; return what no worker waits for."""
        left = list(messages)
        while left and self.waiting:
            waiter = self.take()
            if not waiter.messages.done():
                waiter.messages.set_result(left[: waiter.limit])
                left = left[waiter.limit :]
        return left

    def hand_out_nothing(self) -> None:
        while self.waiting:
            waiter = self.take()
            if not waiter.messages.done():
                waiter.messages.set_result([])

    def fail(self, error: QueueError) -> None:
        while self.waiting:
            waiter = self.take()
            if not waiter.messages.done():
                waiter.messages.set_exception(Unavailable(str(error), retry_after=2.0))


class Receiving:
    """All polls of a gateway. For one event loop."""

    def __init__(self, polls: int = POLLS, random: Callable[[], float] = random.random) -> None:
        self._random = random
        self._polls = asyncio.Semaphore(polls)
        self._limit = polls
        self._pools: dict[tuple[str, str], _PoolPoll] = {}
        self._returns: set[asyncio.Task[None]] = set()

    async def receive(
        self, pool: tuple[str, str], queue: Callable[[], WorkQueue], limit: int, wait_seconds: float
    ) -> list[Received]:
        """Return up to `limit` messages of a pool's queue, waiting `wait_seconds` or a little less for the first. Raises `Unavailable` if the queue is out of reach.

        `queue` is called in a thread. What a cancelled call is given goes back to the queue.
        """
        if wait_seconds < SHORT_WAIT_SECONDS:
            return await self._receive_now(queue, limit)
        polled = self._pools.setdefault(pool, _PoolPoll(queue))
        waiter = _Waiter(limit, asyncio.get_running_loop().create_future())
        polled.waiting[waiter] = None
        if polled.loop is None:
            polled.loop = asyncio.create_task(self._poll(pool, polled))
        try:
            most = max(SHORT_WAIT_SECONDS, wait_seconds * (1 - SPREAD * self._random()))
            await asyncio.wait({waiter.messages}, timeout=most)
        except asyncio.CancelledError:
            if waiter.messages.done() and waiter.messages.exception() is None:
                self.give_back(queue, [message.receipt for message in waiter.messages.result()])
            raise
        finally:
            polled.waiting.pop(waiter, None)
        return waiter.messages.result() if waiter.messages.done() else []

    async def _receive_now(self, queue: Callable[[], WorkQueue], limit: int) -> list[Received]:
        try:
            async with self._polls:
                return await in_daemon_thread(
                    lambda: queue().receive(limit=limit, visibility_seconds=VISIBILITY_SECONDS)
                )
        except QueueError as error:
            raise Unavailable(str(error), retry_after=2.0) from error

    async def _poll(self, pool: tuple[str, str], polled: _PoolPoll) -> None:
        try:
            while polled.waiting:
                async with self._polls:
                    messages = await self._receive(polled)
                left = polled.hand_out(messages)
                if left:
                    self.give_back(polled.queue, [message.receipt for message in left])
        except QueueError as error:
            log.warning("queue.poll_failed", region=pool[0], pool=pool[1], detail=str(error))
            polled.fail(error)
        finally:
            polled.loop = None
            if not polled.waiting:
                self._pools.pop(pool, None)

    async def _receive(self, polled: _PoolPoll) -> list[Received]:
        demand = polled.demand()
        if not demand:
            return []
        wait = MAX_WAIT_SECONDS if len(self._pools) <= self._limit else SHORT_WAIT_SECONDS
        return await in_daemon_thread(
            lambda: polled.queue().receive(
                limit=demand, wait_seconds=wait, visibility_seconds=VISIBILITY_SECONDS
            )
        )

    def give_back(self, queue: Callable[[], WorkQueue], receipts: Sequence[str]) -> None:
        """Make messages visible again that were received for no worker."""
        task = asyncio.create_task(_return(queue, receipts))
        self._returns.add(task)
        task.add_done_callback(self._returns.discard)

    def close(self) -> None:
        """Answer those who wait, with nothing: what polls still receive comes again when its visibility runs out."""
        for polled in self._pools.values():
            polled.hand_out_nothing()
            if polled.loop is not None:
                polled.loop.cancel()


async def _return(queue: Callable[[], WorkQueue], receipts: Sequence[str]) -> None:
    try:
        await in_daemon_thread(lambda: queue().release(receipts))
    except QueueError as error:
        log.warning("queue.return_failed", detail=str(error))
