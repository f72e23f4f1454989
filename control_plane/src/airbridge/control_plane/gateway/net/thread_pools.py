"""Bounded thread pools for database work. A full pool sheds load at once instead of queueing without limit."""

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


class ThreadPool:
    """Thread pool with `threads` threads that admits up to `requests` requests; further ones get a 503 and come again after `retry_after` seconds.

    A request is admitted when it has work for a thread, which is after its body was read: a client that is slow to
    send holds no place.
    """

    def __init__(self, name: str, *, threads: int, requests: int, retry_after: float = 1.0) -> None:
        self.name = name
        self.threads = threads
        self._requests = requests
        self._retry_after = retry_after
        self._admitted = 0
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix=f"gateway-{name}")

    @asynccontextmanager
    async def admit(self) -> AsyncIterator[Admission]:
        """Admit a request with several pieces of work for the length of the block. Raises `Unavailable` if the pool is full."""
        self._enter()
        try:
            yield Admission(self._executor)
        finally:
            self._admitted -= 1

    @property
    def admitted(self) -> int:
        """Number of requests that are admitted now."""
        return self._admitted

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in one of the pool's threads. Raises `Unavailable` if the pool is full."""
        self._enter()
        try:
            return await Admission(self._executor).run(work, *args, **kwargs)
        finally:
            self._admitted -= 1

    def close(self) -> None:
        """Shut down after the running calls; cancel the waiting ones."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    def _enter(self) -> None:
        if self._admitted >= self._requests:
            detail = f"{self._admitted} requests wait in thread pool {self.name}"
            raise Unavailable(detail, retry_after=self._retry_after)
        self._admitted += 1


class Admission:
    """Place of one request in a thread pool."""

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        self._executor = executor

    async def run(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `work` in one of the pool's threads."""
        # run_in_executor does not carry context variables over: log lines would lose the request's fields.
        context = contextvars.copy_context()
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._executor, lambda: context.run(work, *args, **kwargs))
