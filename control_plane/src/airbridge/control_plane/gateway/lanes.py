"""Lanes: bounded thread pools for work on the database. A full lane sheds load at once instead of queueing without end."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

from airbridge.control_plane.exceptions import Unavailable

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """Up to `threads` calls at once, for up to `requests` requests; the next one is told to come back."""

    def __init__(self, name: str, *, threads: int, requests: int) -> None:
        self.name = name
        self._requests = requests
        self._admitted = 0
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"gateway-{name}")

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[None]:
        """Count a request in. Raises `Unavailable` if the lane is full."""
        if self._admitted >= self._requests:
            raise Unavailable(f"{self._admitted} requests wait in lane {self.name}", retry_after=1.0)
        self._admitted += 1
        try:
            yield
        finally:
            self._admitted -= 1

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in one of the lane's threads."""
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: context.run(work, *args, **kwargs))

    def close(self) -> None:
        """End the threads when what they do is done."""
        self._executor.shutdown(wait=True, cancel_futures=True)
