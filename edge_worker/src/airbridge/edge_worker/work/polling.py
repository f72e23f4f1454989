"""Polling of the regional queue, which is known only once the worker has enrolled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from uuid import UUID

from airbridge.core.protocol import LeaseRef, RegionSettings
from airbridge.edge_worker.work.bounded_wait import within
from airbridge.edge_worker.work.poller import Poller
from airbridge.edge_worker.work.queue import AsyncQueue

# Seconds to wait for a cancelled long poll when the worker stops, to return the messages that it may receive.
LAST_POLL_SECONDS = 1.0


class Polling:
    """The poller and its queue, from the moment at which the region is known. Harmless to stop before that."""

    def __init__(
        self,
        make_queue: Callable[[RegionSettings], AsyncQueue],
        make_poller: Callable[[AsyncQueue], Poller],
    ) -> None:
        self._make_queue = make_queue
        self._make_poller = make_poller
        self._queue: AsyncQueue | None = None
        self._poller: Poller | None = None

    async def run(self, region: RegionSettings) -> None:
        """Poll the region's queue until cancelled."""
        self._queue = self._make_queue(region)
        self._poller = self._make_poller(self._queue)
        await self._poller.run()

    @property
    def claiming(self) -> tuple[UUID, ...]:
        """Work items whose grant was requested and is not journalled yet."""
        return () if self._poller is None else self._poller.claiming

    @property
    def queue_error(self) -> str | None:
        """Error of the last poll; None while the worker can receive."""
        return None if self._poller is None else self._poller.queue_error

    def offered(self, offers: Sequence[LeaseRef]) -> None:
        """Claim triggers that the gateway offers."""
        if self._poller is not None:
            self._poller.offered(offers)

    async def claims_settled(self) -> None:
        """Return once no claim is under way."""
        if self._poller is not None:
            await self._poller.settled()

    async def abandon_claims(self) -> None:
        """Cancel the claims under way."""
        if self._poller is not None:
            await self._poller.abandon()

    async def last_poll(self) -> None:
        """Wait, for a moment, for a cancelled long poll to end."""
        if self._queue is not None:
            await within(LAST_POLL_SECONDS, self._queue.settled())

    async def close(self) -> None:
        """Cancel everything that is under way."""
        await self.abandon_claims()
        if self._queue is not None:
            await self._queue.abandon()
