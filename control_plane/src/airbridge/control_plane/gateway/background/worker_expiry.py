"""Removal of lost workers: rows of workers that will not return, which would be reported as silent for ever."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Final

import structlog
from sqlalchemy import exc as sql

from airbridge.control_plane.gateway.database import unit
from airbridge.executor.ledger import clock, events, workers

log = structlog.get_logger()

EVERY_SECONDS: Final = 60.0
ACTOR: Final = "gateway"


class WorkerExpiry:
    """Removes workers that have been silent for `retention`. Several gateways may do so at the same time."""

    def __init__(self, retention: timedelta, every_seconds: float = EVERY_SECONDS) -> None:
        self._retention, self._every = retention, every_seconds

    async def run(self) -> None:
        """Remove them every `every_seconds`, until cancelled."""
        while True:
            try:
                await asyncio.to_thread(self.turn)
            except sql.SQLAlchemyError as error:
                log.warning("worker_expiry.failed", exc_info=error)
            await asyncio.sleep(self._every)

    def turn(self) -> list[str]:
        """Remove the workers that are due, and return their names."""
        with unit() as work:
            found = workers.expire(work.session, clock.now(work.session) - self._retention)
            for worker in found:
                events.record(
                    work.session,
                    "worker.forgotten",
                    ACTOR,
                    region=worker.region,
                    worker_id=worker.id,
                    pool=worker.pool,
                    wanted=worker.wanted,
                )
        for worker in found:
            log.info("worker.forgotten", worker=worker.id, region=worker.region, pool=worker.pool)
        return [worker.id for worker in found]
