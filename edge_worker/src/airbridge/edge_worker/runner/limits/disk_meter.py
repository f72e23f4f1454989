"""Disk meter: measures the working directories of running tasks, and stops the task that holds more than it may."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import structlog

from airbridge.edge_worker.runner.limits.limits import Hit, Limit, mebibytes

# Seconds between two measurements; more if they take so long that they would keep the disk busy.
INTERVAL: Final = 2.0
_SHARE_OF_TIME: Final = 0.05

_BLOCK: Final = 512

log = structlog.get_logger()


@dataclass(frozen=True)
class Metered:
    """A running task's working directory, how many bytes it may hold, and what stops the task."""

    directory: Path
    limit: int
    stop: Callable[[Hit], None]


class DiskMeter:
    """Measures until cancelled. `tasks` returns those that run, each time anew."""

    def __init__(self, tasks: Callable[[], Collection[Metered]]) -> None:
        self._tasks = tasks

    async def run(self) -> None:
        """Measure until cancelled."""
        log.info("disk_meter.started")
        loop = asyncio.get_running_loop()
        try:
            while True:
                began = loop.time()
                await self.check()
                await asyncio.sleep(max(INTERVAL, (loop.time() - began) / _SHARE_OF_TIME))
        finally:
            log.info("disk_meter.stopped")

    async def check(self) -> None:
        """Stop the tasks whose working directories hold too much."""
        for task in [*self._tasks()]:
            held = await asyncio.to_thread(used_bytes, task.directory)
            if held > task.limit:
                task.stop(Hit(Limit.DISK, _detail(held, task.limit)))


def used_bytes(directory: Path) -> int:
    """Return the space that files beneath a directory take on the disk; what cannot be read counts as nothing."""
    total, folders = 0, [os.fspath(directory)]
    while folders:
        with suppress(OSError), os.scandir(folders.pop()) as entries:
            for entry in entries:
                with suppress(OSError):
                    total += entry.stat(follow_symlinks=False).st_blocks * _BLOCK
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
    return total


def _detail(held: int, limit: int) -> str:
    return f"The task was stopped because its working directory held {mebibytes(held)} and may hold {mebibytes(limit)}"
