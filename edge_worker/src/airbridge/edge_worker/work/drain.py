"""Draining: release what has not started, let running tasks finish, report what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable

import structlog

from airbridge.core.protocol import LeaseRef, ReleaseRequest
from airbridge.edge_worker.exceptions import GatewayError
from airbridge.edge_worker.gateway_client.client import Gateway
from airbridge.edge_worker.gateway_client.reporter import Reporter
from airbridge.edge_worker.storage.logs import LogShipper
from airbridge.edge_worker.work.attempts import Attempt, Attempts, Phase
from airbridge.edge_worker.work.launcher import Launcher

log = structlog.get_logger(__name__)


# Items of one request.
MAX_RELEASED = 1000


class Drain:
    """The steps of a drain."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        attempts: Attempts,
        launcher: Launcher,
        reporter: Reporter,
        logs: LogShipper,
    ) -> None:
        self._gateway = gateway
        self._attempts = attempts
        self._launcher = launcher
        self._reporter = reporter
        self._logs = logs

    async def release_unstarted(self, detail: str) -> bool:
        """Release what was claimed and has not started, and triggers that no host runs.

        False if the gateway is out of reach: it stays in the journal.
        """
        await self._release_all(self._unstarted, detail)
        return not self._unstarted

    @property
    def _unstarted(self) -> list[Attempt]:
        return [*self._attempts.unstarted, *(one for one in self._attempts.triggers if one.waiting)]

    async def _release_all(self, unstarted: list[Attempt], detail: str) -> None:
        for attempt in unstarted:
            attempt.enter(Phase.RELEASING)  # so that the launcher does not start it meanwhile
        try:
            released = await self._release(unstarted, detail)
        except GatewayError as error:
            log.warning("drain.release_failed", items=len(unstarted), detail=str(error))
            released = []
        for attempt in unstarted:
            if attempt in released:
                # Of a trigger that a host had run.
                self._logs.end(attempt.key)
                attempt.enter(Phase.ENDED)
                self._launcher.settle(attempt)
            elif not attempt.ended:  # a hard stop may have ended it during the request
                attempt.enter(Phase.CLAIMED)

    async def until_nothing_runs(self) -> None:
        """Return once no task runs."""
        while self._attempts.running:
            await self._attempts.changed()

    async def flush(self) -> None:
        """Report all records and ship all logs that are left."""
        await asyncio.gather(self._reporter.drained(), self._logs.drained())

    async def _release(self, attempts: Iterable[Attempt], detail: str) -> list[Attempt]:
        chosen = [*attempts]
        if not chosen:
            return []
        refs = [LeaseRef(item_id=one.grant.item_id, epoch=one.grant.epoch) for one in chosen]
        for start in range(0, len(refs), MAX_RELEASED):
            some = tuple(refs[start : start + MAX_RELEASED])
            await self._gateway.release(ReleaseRequest(items=some, detail=detail))
        log.info("drain.released", items=len(chosen))
        return chosen
