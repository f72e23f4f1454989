"""`stop_after`: work that must never run twice is stopped here when the control plane has been out of reach that long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.holdings import Holding, Holdings, Stop
from airbridge.executor.protocol import RefusalReason

log = structlog.get_logger(__name__)

CHECK_SECONDS = 0.5


class Deadline:
    """Stops each running task whose `stop_after` has passed since the control plane last knew that we hold it."""

    def __init__(self, holdings: Holdings, clock: Clock, stop: Callable[[Holding, Stop], None]) -> None:
        self._holdings = holdings
        self._clock = clock
        self._stop = stop

    async def run(self) -> None:
        """Watch until cancelled."""
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            self.check()

    def check(self) -> None:
        """Stop what is due."""
        now = self._clock.elapsed()
        for holding in self._holdings.running:
            allowed = holding.grant.disconnect.stop_after
            if allowed is None or holding.contact_at is None or holding.stop or holding.finished:
                continue
            silent = now - holding.contact_at
            if silent > allowed:
                detail = (
                    f"no contact with the control plane for {silent:.0f} s; its stop_after is {allowed:g} s"
                )
                log.error("task.stop_after", item_id=holding.key[0], epoch=holding.grant.epoch, detail=detail)
                self._stop(holding, Stop(RefusalReason.LOST, detail, report=True))
