"""Blocking calls in threads that the interpreter does not wait for when it ends."""

from __future__ import annotations

import asyncio
import contextvars
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import Final, TypeVar

T = TypeVar("T")

IDLE_SECONDS: Final = 30.0


class DaemonThreads:
    """Threads that are kept for the next call for `idle_seconds`. Each call has one at once, however many are blocked.

    To start a thread holds up the event loop until the thread runs: 0.15 ms, and more while other threads work.
    """

    def __init__(self, idle_seconds: float = IDLE_SECONDS) -> None:
        self._idle_seconds = idle_seconds
        # Its operations are atomic, and it has no lock that a fork could leave locked.
        self._idle: deque[_Thread] = deque()

    async def run(self, function: Callable[[], T]) -> T:
        """Run a blocking call. It runs to its end even if the caller is cancelled."""
        outcome: Future[T] = Future()
        outcome.set_running_or_notify_cancel()
        context = contextvars.copy_context()  # for the ids in its log lines

        def call() -> None:
            try:
                result = context.run(function)
            except BaseException as error:  # noqa: BLE001 - handed to who waits
                outcome.set_exception(error)
            else:
                outcome.set_result(result)

        self._thread().calls.put(call)
        return await asyncio.wrap_future(outcome)

    def _thread(self) -> _Thread:
        with suppress(IndexError):
            while True:
                thread = self._idle.pop()
                # After a fork the child has the parent's list, without its threads.
                if thread.pid == os.getpid():
                    return thread
        thread = _Thread()
        threading.Thread(target=self._work, args=(thread,), name="blocking-call", daemon=True).start()
        return thread

    def _work(self, thread: _Thread) -> None:
        timeout: float | None = None
        while True:
            try:
                call = thread.calls.get(timeout=timeout)
            except Empty:
                try:
                    self._idle.remove(thread)
                except ValueError:
                    # Taken in this moment: a call is coming.
                    timeout = None
                    continue
                return
            call()
            del call  # its result must not live until the next call
            timeout = self._idle_seconds
            self._idle.append(thread)


class _Thread:
    """A thread's calls, and the process that it lives in."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.pid = os.getpid()


_shared = DaemonThreads()


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Run a blocking call in a thread that the interpreter does not wait for when it ends.

    For calls that may block for long: a long poll, an upload into a region that does not answer.
    """
    return await _shared.run(function)
