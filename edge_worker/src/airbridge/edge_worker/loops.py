"""The worker's background loops, by name."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


class Loops:
    """Runs loops as asyncio tasks. `on_failure` gets the name and the exception of one that raised."""

    def __init__(self, on_failure: Callable[[str, BaseException], None]) -> None:
        self._on_failure = on_failure
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, name: str, loop: Coroutine[Any, Any, None]) -> None:
        """Start a loop."""
        self.adopt(name, asyncio.create_task(loop, name=name))

    def adopt(self, name: str, task: asyncio.Task[None]) -> None:
        """Take over a task that runs already."""
        self._tasks[name] = task
        task.add_done_callback(lambda ended: self._ended(name, ended))

    async def cancel(self, name: str) -> None:
        """Cancel a loop and wait for its end."""
        task = self._tasks.pop(name, None)
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def cancel_all(self) -> None:
        """Cancel all loops, the one that was started first first."""
        for name in [*self._tasks]:
            await self.cancel(name)

    def _ended(self, name: str, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._on_failure(name, error)
