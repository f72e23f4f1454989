"""Connectivity of the worker to the control plane: up or down, and for how long the gateway has been silent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import structlog

from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import GatewayBusy, GatewayUnreachable, MalformedResponse

log = structlog.get_logger(__name__)


class Connectivity:
    """Result of every request to the gateway. A response in its protocol, also a refusal, counts as contact.

    A malformed response comes from something else at the gateway's address: the link is down. A busy gateway (429, 503)
    is up, but silent for a task that waits for an answer.
    """

    def __init__(
        self, clock: Clock, on_change: Callable[[bool, float], None] = lambda _up, _silent: None
    ) -> None:
        self._clock = clock
        self._on_change = on_change
        self._up = asyncio.Event()
        self._up.set()
        self._silent_since: float | None = None
        self._waiting: dict[int, float] = {}
        self._next = 0

    @property
    def up(self) -> bool:
        """Return whether the last request that ended got an answer."""
        return self._up.is_set()

    async def wait_up(self) -> None:
        """Return once the link is up."""
        await self._up.wait()

    def silent_for(self) -> float:
        """Return for how many seconds the gateway has owed an answer or not been there; 0 if it is fine.

        A request that hangs counts from its start, so that a black hole is detected before the time-out.
        """
        since = self._silent_since
        if since is None:
            since = min(self._waiting.values(), default=None)
        return 0.0 if since is None else max(0.0, self._clock.elapsed() - since)

    @contextmanager
    def request(self) -> Iterator[Callable[[], None]]:
        """Watch one request; its exception, or the lack of one, is the evidence of contact.

        Yields a function to call when a part of the request was sent: an upload that goes on is not silence.
        """
        number, self._next = self._next, self._next + 1
        started = self._waiting[number] = self._clock.elapsed()

        def progressed() -> None:
            self._waiting[number] = self._clock.elapsed()

        try:
            yield progressed
        except (GatewayUnreachable, MalformedResponse) as error:
            self._lost(max(started, self._waiting[number]), error)
            raise
        except GatewayBusy:
            self._silent(started)
            raise
        except asyncio.CancelledError:
            raise
        except Exception:
            self._alive()
            raise
        else:
            self._alive()
        finally:
            del self._waiting[number]

    def _silent(self, since: float) -> None:
        if self._silent_since is None:
            self._silent_since = since

    def _lost(self, started: float, error: GatewayUnreachable | MalformedResponse) -> None:
        self._silent(started)
        if self._up.is_set():
            self._up.clear()
            log.warning("link.down", detail=str(error))
            self._on_change(False, self.silent_for())

    def _alive(self) -> None:
        now = self._clock.elapsed()
        if self._silent_since is not None:
            log.info("link.up", silent_seconds=round(now - self._silent_since, 3))
            if not self._up.is_set():
                self._on_change(True, now - self._silent_since)
        self._silent_since = None
        # A response to any request is contact: the others count as silent only from now.
        self._waiting = {number: max(started, now) for number, started in self._waiting.items()}
        self._up.set()
