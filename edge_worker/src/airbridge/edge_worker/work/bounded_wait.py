"""Waiting with a bound.

`asyncio.wait_for` of Python 3.11 may swallow a cancellation that comes as its work ends, and a loop that is to be
stopped then never stops; `asyncio.timeout` does not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable


async def within(seconds: float, work: Awaitable[object]) -> bool:
    """Wait for `work` for at most `seconds`; then it is cancelled. Returns whether it ended by itself."""
    try:
        async with asyncio.timeout(seconds):
            await work
    except TimeoutError:
        return False
    return True
