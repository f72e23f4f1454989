"""Heartbeat batcher: answers heartbeats that wait at the same time in one transaction of few statements.

A single heartbeat takes about seven round trips to the database. During a burst of claims each of them waits for the
interpreter, and the heartbeats of a thousand workers would queue behind one another. A batch takes the same seven
round trips, whatever its size.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol
from weakref import WeakValueDictionary

import structlog

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.database import transient
from airbridge.control_plane.gateway.heartbeat.pace import Pace
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.core.protocol import Heartbeat, HeartbeatResponse

log = structlog.get_logger()

# About 30 ms of work; heartbeats that arrive meanwhile form the next batch.
MAX_BATCH: Final = 200
# Seconds from the start of one batch to that of the next. The statements of a batch cost five times what each further
# heartbeat in it does: at 100 heartbeats a second this makes batches of five out of batches of one. A worker waits for it
# once in ten seconds.
SPACING: Final = 0.05

CallerHeartbeat = tuple[Caller, Heartbeat]
# None: the batch cannot answer this heartbeat; it is handled alone.
Answered = HeartbeatResponse | Refused | None


class HeartbeatHandler(Protocol):
    """Handler of heartbeats, alone and in batches."""

    def handle(self, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
        """Answer one heartbeat, and wait for locked rows if need be."""

    def handle_batch(self, heartbeats: Sequence[CallerHeartbeat]) -> list[Answered]:
        """Answer the heartbeats that need no locked row; None for the others."""


@dataclass(eq=False, slots=True)
class _Waiting:
    handle: CallerHeartbeat
    answer: asyncio.Future[HeartbeatResponse | None]

    def resolve(self, answer: Answered | Exception) -> None:
        if self.answer.done():  # the request was cancelled
            return
        if isinstance(answer, Exception):
            self.answer.set_exception(answer)
        else:
            self.answer.set_result(answer)


class HeartbeatBatcher:
    """Answers heartbeats. Those that wait for a locked row use other threads than the batches, one at a time for a worker."""

    def __init__(
        self,
        batch_threads: ThreadPool,
        single_threads: ThreadPool,
        answers: HeartbeatHandler,
        pace: Pace,
        *,
        most: int = MAX_BATCH,
        spacing: float = SPACING,
    ) -> None:
        self.threads = single_threads
        self._batch_threads = batch_threads
        self._handler = answers
        self._pace = pace
        self._most = most
        self._spacing = spacing
        # Loop time before which no batch starts. One that comes after a pause starts at once.
        self._next_at = 0.0
        self._waiting: deque[_Waiting] = deque()
        self._batching: asyncio.Task[None] | None = None
        # By worker, as long as one of its heartbeats is handled alone: a worker that sends many must not take all threads.
        self._turns: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def handle(self, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
        """Answer a heartbeat. Raises the exceptions of `Heartbeats.handle`."""
        # Those that wait to be handled alone are under way as well.
        self._pace.record(self.threads.admitted)
        async with self.threads.admit() as alone:
            waiting = _Waiting((caller, heartbeat), asyncio.get_running_loop().create_future())
            self._waiting.append(waiting)
            if self._batching is None:
                # A new context: log fields that one request binds must not appear in others' lines.
                self._batching = asyncio.create_task(self._run_batches(), context=contextvars.Context())
            answer = await waiting.answer
            if answer is None:
                async with self._turns.setdefault(caller.name.worker, asyncio.Lock()):
                    answer = await alone.run(self._handler.handle, caller, heartbeat)
            return answer

    async def _run_batches(self) -> None:
        try:
            loop = asyncio.get_running_loop()
            while self._waiting:
                if len(self._waiting) < self._most and (pause := self._next_at - loop.time()) > 0:
                    await asyncio.sleep(pause)
                self._next_at = loop.time() + self._spacing
                count = min(self._most, len(self._waiting))
                await self._answer([self._waiting.popleft() for _ in range(count)])
        finally:
            self._batching = None

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        answers: Sequence[Answered | Exception]
        try:
            answers = await self._batch_threads.run(
                self._handler.handle_batch, [each.handle for each in batch]
            )
        except Exception as error:  # one failing heartbeat must not cost the others their leases
            if not transient(error):
                log.exception("heartbeats.batch_failed", count=len(batch))
            answers = [error if transient(error) else None] * len(batch)
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.resolve(answer)
