"""Checks of workers that send a request for queue, code or logs: those that wait at the same time share a transaction.

A thousand workers that hold a poll each send fifty requests a second. A check is several statements, and all of them can be about
many workers.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.auth.authentication import Caller, check_revocation, judge_all
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool

MOST: Final = 200


@dataclass(eq=False, slots=True)
class _Waiting:
    caller: Caller
    #: Its denial, or None; True if it must be checked alone, because something about it is new.
    verdict: asyncio.Future[Refused | bool | None]


class CallerChecks:
    """Checks that callers are not revoked, and that their certificates are in use. For one event loop."""

    def __init__(self, threads: ThreadPool, most: int = MOST) -> None:
        self._threads = threads
        self._most = most
        self._waiting: deque[_Waiting] = deque()
        self._batching: asyncio.Task[None] | None = None

    async def check(self, caller: Caller) -> None:
        """Return if a caller's request may go on. Raises `Refused`."""
        waiting = _Waiting(caller, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._batching is None:
            # A new context: log fields that one request binds must not appear in others' lines.
            self._batching = asyncio.create_task(self._run(), context=contextvars.Context())
        verdict = await waiting.verdict
        if isinstance(verdict, Refused):
            raise verdict
        if verdict:
            await self._threads.run(check_alone, caller)

    async def _run(self) -> None:
        try:
            while self._waiting:
                count = min(self._most, len(self._waiting))
                await self._judge([self._waiting.popleft() for _ in range(count)])
        finally:
            self._batching = None

    async def _judge(self, batch: Sequence[_Waiting]) -> None:
        try:
            verdicts = await self._threads.run(judge, [each.caller for each in batch])
        except asyncio.CancelledError:
            for each in batch:
                each.verdict.cancel()
            raise
        except Exception as error:  # noqa: BLE001 - each request of the batch ends with it
            for each in batch:
                if not each.verdict.done():
                    each.verdict.set_exception(error)
            return
        for each, verdict in zip(batch, verdicts, strict=True):
            if not each.verdict.done():
                each.verdict.set_result(verdict)


def judge(callers: Sequence[Caller]) -> list[Refused | bool | None]:
    """Return each caller's denial, None if it has none, or True if it must be checked alone."""
    numbered = dict(enumerate(callers))
    with unit() as work:
        refused, passed = judge_all(work.session, numbered)
    return [refused.get(number) or (None if number in passed else True) for number in numbered]


def check_alone(caller: Caller) -> None:
    """Check one caller, and record what is new about it. Raises `Refused`."""
    with unit() as work:
        check_revocation(work.session, caller)
