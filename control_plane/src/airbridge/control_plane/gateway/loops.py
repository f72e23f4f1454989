"""Supervision of the gateway's loops: one that fails is logged and started again, so that none ends before the gateway does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final

import structlog

log = structlog.get_logger()

RESTART_SECONDS: Final = 5.0

Loop = Callable[[], Awaitable[None]]


async def supervise(name: str, run: Loop, restart_seconds: float = RESTART_SECONDS) -> None:
    """Await `run()` until it returns. A failure is logged, and `run()` is called again after `restart_seconds`.

    Cancelling the supervising task ends both; a cancellation that comes from within `run()` is a failure.
    """
    while True:
        try:
            await run()
        except (Exception, asyncio.CancelledError) as error:
            if isinstance(error, asyncio.CancelledError) and _is_cancelled():
                raise
            log.exception("loop.failed", loop=name, restart_seconds=restart_seconds)
        else:
            return
        await asyncio.sleep(restart_seconds)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0
