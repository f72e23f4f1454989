"""Pulse: heartbeats that wait at the same time are answered together, in one transaction of few statements.

A heartbeat by itself is some eight round trips to the database. While a burst of claims has the interpreter busy each
of them waits for its turn, and a thousand workers' heartbeats would stand in line behind one another. Together they
take the same eight, however many they are.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import structlog

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.authentication import Caller
from airbridge.control_plane.gateway.database import transient
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.executor.protocol import Heartbeat, HeartbeatResponse

log = structlog.get_logger()

MOST_TOGETHER: Final = 200
"""Some 30 ms of work: those that come meanwhile are the next ones."""

Beat = tuple[Caller, Heartbeat]
Answered = HeartbeatResponse | Refused | None
"""None: this one is to be answered by itself."""


class Answers(Protocol):
    """What the heartbeats are answered by."""

    def beat(self, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
        """Answer one, whatever it takes."""

    def beat_together(self, beats: Sequence[Beat]) -> list[Answered]:
        """Answer those for which nothing has to be waited for."""


@dataclass(eq=False, slots=True)
class _Waiting:
    beat: Beat
    answered: asyncio.Future[HeartbeatResponse | None]

    def tell(self, answer: Answered | Exception) -> None:
        if self.answered.done():  # who asked has gone
            return
        if isinstance(answer, Exception):
            self.answered.set_exception(answer)
        else:
            self.answered.set_result(answer)


class Pulse:
    """Answers heartbeats. What has to wait for a row waits in other threads than those that are answered together."""

    def __init__(self, together: Lane, alone: Lane, answers: Answers, most: int = MOST_TOGETHER) -> None:
        self.lane = alone
        self._together = together
        self._answers = answers
        self._most = most
        self._waiting: deque[_Waiting] = deque()
        self._gathering: asyncio.Task[None] | None = None

    async def beat(self, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
        """Answer a heartbeat. Raises what `Heartbeats.beat` raises."""
        waiting = _Waiting((caller, heartbeat), asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._gathering is None:
            # A context of its own: what a request binds for its log lines is not the others'.
            self._gathering = asyncio.create_task(self._gather(), context=contextvars.Context())
        answer = await waiting.answered
        if answer is None:
            answer = await self.lane.run(self._answers.beat, caller, heartbeat)
        return answer

    async def _gather(self) -> None:
        try:
            while self._waiting:
                count = min(self._most, len(self._waiting))
                await self._answer([self._waiting.popleft() for _ in range(count)])
        finally:
            self._gathering = None

    async def _answer(self, batch: Sequence[_Waiting]) -> None:
        answers: Sequence[Answered | Exception]
        try:
            answers = await self._together.run(self._answers.beat_together, [each.beat for each in batch])
        except (
            Exception
        ) as error:  # one heartbeat that cannot be answered must not cost the others their leases
            if not transient(error):
                log.exception("heartbeats.undone", count=len(batch))
            answers = [error if transient(error) else None] * len(batch)
        for waiting, answer in zip(batch, answers, strict=True):
            waiting.tell(answer)
