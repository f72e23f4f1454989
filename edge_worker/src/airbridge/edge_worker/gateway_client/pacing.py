"""Pacing of requests to the gateway: none before a failed one's backoff is over, and few while the gateway is unreachable."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from airbridge.core.backoff import Backoff
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import GatewayBusy, GatewayError
from airbridge.edge_worker.gateway_client.connectivity import Connectivity
from airbridge.edge_worker.gateway_client.retry import retry_after

# Seconds added to the backoff while the gateway is unreachable; cut short when it is reachable again.
OUTAGE_PAUSE_SECONDS: Final = 30.0


class Pacing:
    """Earliest time of the next request."""

    def __init__(self, clock: Clock, connectivity: Connectivity, backoff: Backoff) -> None:
        self._clock = clock
        self._connectivity = connectivity
        self._backoff = backoff
        self._not_before = 0.0
        self._retry_on_reconnect = False

    def seconds_until(self, due_at: float) -> float:
        """Return the seconds until a request that is due at `due_at` (`Clock.elapsed`) may start; 0 if it may now."""
        return max(0.0, max(due_at, self._not_before) - self._clock.elapsed())

    def succeeded(self) -> None:
        """Reset the backoff: a request was answered."""
        self._backoff.succeeded()

    def failed(self, error: GatewayError) -> float:
        """Hold requests back after a failure; return the backoff in seconds."""
        pause = self._backoff.failed(retry_after(error))
        self._not_before = self._clock.elapsed() + pause
        # A busy gateway's Retry-After holds even if another request of this worker succeeds meanwhile.
        self._retry_on_reconnect = not isinstance(error, GatewayBusy)
        if not self._connectivity.up:
            # The heartbeat finds out when the gateway is reachable: one request at a time is enough to probe with.
            self._not_before += OUTAGE_PAUSE_SECONDS
        return pause

    def defer(self) -> None:
        """Hold requests back because the gateway answered that a record is to be sent again later."""
        self._not_before = self._clock.elapsed() + self._backoff.failed()

    async def wait(self, wake: asyncio.Event, timeout_seconds: float | None) -> None:
        """Return when `wake` is set, the gateway is reachable again, or the time is over (None: never)."""
        if timeout_seconds is None or timeout_seconds > 0:
            waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(wake.wait())]
            if self._retry_on_reconnect and not self._connectivity.up:
                waits.append(asyncio.ensure_future(self._connectivity.wait_up()))
            await asyncio.wait(waits, timeout=timeout_seconds, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if self._retry_on_reconnect and self._connectivity.up:
            self._retry_on_reconnect, self._not_before = False, 0.0
