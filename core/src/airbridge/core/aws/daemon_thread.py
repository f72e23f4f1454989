"""Blocking calls in threads that the interpreter does not wait for when it ends."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


async def in_daemon_thread(function: Callable[[], T]) -> T:
    """Run a blocking call in a thread of its own that the interpreter does not wait for when it ends.

    For calls that may block for long: a long poll, an upload into a region that does not answer.
    """
    outcome: Future[T] = Future()
    context = contextvars.copy_context()  # for the ids in its log lines

    def run() -> None:
        try:
            result = context.run(function)
        except BaseException as error:  # noqa: BLE001 - handed to who waits
            if not outcome.cancelled():
                outcome.set_exception(error)
        else:
            if not outcome.cancelled():
                outcome.set_result(result)

    threading.Thread(target=run, name="blocking-call", daemon=True).start()
    return await asyncio.wrap_future(outcome)
