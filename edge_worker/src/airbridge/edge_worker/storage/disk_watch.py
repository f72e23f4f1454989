"""Watches the free disk space: without enough of it nothing new is claimed."""

from __future__ import annotations

import asyncio

import structlog

from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import SetMeta
from airbridge.edge_worker.storage.disk import Disk
from airbridge.edge_worker.storage.logs import LogShipper

log = structlog.get_logger(__name__)

CHECK_SECONDS = 5.0


class DiskWatch:
    """Checks until cancelled; `has_space` is the last result, False before the first check."""

    def __init__(
        self, disk: Disk, logs: LogShipper, journal: Journal, clock: Clock, max_log_bytes: int
    ) -> None:
        self._disk = disk
        self._logs = logs
        self._journal = journal
        self._clock = clock
        self._max_log_bytes = max_log_bytes
        self.has_space = False

    async def run(self) -> None:
        """Check every `CHECK_SECONDS`."""
        while True:
            self._check()
            await asyncio.sleep(CHECK_SECONDS)

    def free_space(self) -> None:
        """Free space for a result that does not fit: the reserve first, then the oldest unshipped log."""
        try:
            if not self._disk.release_reserve():
                self._logs.drop_oldest()
        except OSError as error:
            log.warning("disk.not_freed", detail=str(error))

    def _check(self) -> None:
        self._disk.keep_reserve()
        has_space = self._disk.has_space and self._logs.bytes < self._max_log_bytes
        if has_space != self.has_space:
            level = log.info if has_space else log.warning
            level("agent.disk", has_space=has_space, free_bytes=self._disk.free_bytes)
            self.has_space = has_space
        if self._journal.full:
            # Only a write shows whether there is space again, and resets the journal's flag.
            self._journal.submit(SetMeta("last_full_at", self._clock.now().isoformat()))
