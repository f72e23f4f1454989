"""Draining: claim nothing more, give back what has not started, let what runs finish, report what is left."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from enum import StrEnum

import structlog

from airbridge.edge_worker.exceptions import GatewayError
from airbridge.edge_worker.gateway import Gateway
from airbridge.edge_worker.holdings import Holding, Holdings
from airbridge.edge_worker.launcher import Launcher
from airbridge.edge_worker.logs import LogShipper
from airbridge.edge_worker.reporter import Reporter
from airbridge.executor.protocol import LeaseRef, ReleaseRequest, WorkerState

log = structlog.get_logger(__name__)


class Mode(StrEnum):
    """What the worker is doing."""

    ACTIVE = "active"
    DRAINING = "draining"
    """The control plane wants nothing new claimed; it may change its mind."""
    STOPPING = "stopping"
    """The process ends once what runs has ended."""
    HARD_STOP = "hard_stop"
    """The process ends now; what runs is failed."""

    @property
    def reported(self) -> WorkerState:
        """The mode in the protocol's words."""
        return _REPORTED[self]


_REPORTED = {
    Mode.ACTIVE: WorkerState.ACTIVE,
    Mode.DRAINING: WorkerState.DRAINING,
    Mode.STOPPING: WorkerState.STOPPING,
    Mode.HARD_STOP: WorkerState.STOPPING,
}


class Drain:
    """The steps of a drain."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        holdings: Holdings,
        launcher: Launcher,
        reporter: Reporter,
        logs: LogShipper,
    ) -> None:
        self._gateway = gateway
        self._holdings = holdings
        self._launcher = launcher
        self._reporter = reporter
        self._logs = logs

    async def release_unstarted(self, detail: str) -> None:
        """Give back what was claimed and has not started. What the gateway cannot be told of stays in the journal."""
        unstarted = self._holdings.unstarted
        for holding in unstarted:
            holding.starting = True  # the launcher is to leave it alone
        try:
            released = await self._release(unstarted, detail)
        except GatewayError as error:
            log.warning("drain.release_failed", items=len(unstarted), detail=str(error))
            released = []
        for holding in unstarted:
            holding.starting = False
            if holding in released:
                holding.ended = True
                self._launcher.settle(holding)

    async def until_nothing_runs(self) -> None:
        """Return once no task runs."""
        while self._holdings.running:
            await self._holdings.changed()

    async def flush(self) -> None:
        """Report and ship what is left; return when all of it went out."""
        await asyncio.gather(self._reporter.drained(), self._logs.drained())

    async def _release(self, holdings: Iterable[Holding], detail: str) -> list[Holding]:
        chosen = [*holdings]
        if not chosen:
            return []
        refs = tuple(LeaseRef(item_id=one.grant.item_id, epoch=one.grant.epoch) for one in chosen)
        await self._gateway.release(ReleaseRequest(items=refs, detail=detail))
        log.info("drain.released", items=len(chosen))
        return chosen
