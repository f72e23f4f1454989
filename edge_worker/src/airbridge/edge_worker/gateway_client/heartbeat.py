"""The heartbeat: one for the whole worker. It renews every lease and returns the control plane's commands."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Protocol
from uuid import UUID

import structlog

from airbridge.core.backoff import Backoff
from airbridge.core.protocol import (
    MAX_EVENTS,
    MAX_QUEUE_ERROR,
    CancelCommand,
    Command,
    DrainCommand,
    EdgeEvent,
    Heartbeat,
    HeartbeatResponse,
    LeaseRef,
    RenewCommand,
    ResumeCommand,
    TrustBundle,
    TrustCommand,
    Versions,
    WorkerState,
)
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import GatewayError, GatewayUnreachable
from airbridge.edge_worker.gateway_client.client import Gateway
from airbridge.edge_worker.gateway_client.retry import RetryDecision, judge, retry_after
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import Key, key
from airbridge.edge_worker.ops.events import EventLog
from airbridge.edge_worker.work.attempts import Attempts
from airbridge.edge_worker.work.bounded_wait import within
from airbridge.edge_worker.work.deadline import ANSWERED_BY, contact_due

log = structlog.get_logger(__name__)

# Share of the interval by which heartbeats are spread, so that workers started together do not stay in step.
JITTER = 0.1

# Seconds between heartbeats while more events are pending than one carries: after a cut.
CATCH_UP_SECONDS = 0.5

# Seconds between looks at the policies of attempts that were claimed meanwhile, and between heartbeats that they require.
CHECK_SECONDS = 1.0

SKEW_REPORTED_SECONDS = 5.0


class CommandHandler(Protocol):
    """Handler of the control plane's commands."""

    def cancel(self, at: Key, command: CancelCommand) -> None:
        """Stop this task."""

    def drain_requested(self, detail: str) -> None:
        """Claim nothing more."""

    def resume(self) -> None:
        """Claim again."""

    def renew(self) -> None:
        """Renew the certificate."""

    def trust(self, trust: TrustBundle) -> None:
        """Replace the trust bundle."""

    def identity_refused(self, verdict: RetryDecision, error: GatewayError) -> None:
        """Handle a request that was refused for the worker's identity."""


class HeartbeatLoop:
    """See the module."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        attempts: Attempts,
        journal: Journal,
        clock: Clock,
        rng: random.Random,
        backoff: Backoff,
        versions: Versions,
        state: Callable[[], WorkerState],
        trust_version: Callable[[], str],
        claiming: Callable[[], tuple[UUID, ...]],
        queue_error: Callable[[], str | None],
        handler: CommandHandler,
        events: EventLog,
        interval_seconds: float,
        offered: Callable[[Sequence[LeaseRef]], None] = lambda _offers: None,
    ) -> None:
        self._gateway = gateway
        self._attempts = attempts
        self._journal = journal
        self._clock = clock
        self._rng = rng
        self._backoff = backoff
        self._versions = versions
        self._state = state
        self._trust_version = trust_version
        self._claiming = claiming
        self._queue_error = queue_error
        self._handler = handler
        self._events = events
        self._interval = interval_seconds
        self._offered = offered
        self._now = asyncio.Event()
        self._answered_at: datetime | None = None
        self.last_sent_at: float | None = None
        self.skew_seconds = 0.0

    def trigger(self) -> None:
        """Send a heartbeat now rather than at the end of the interval."""
        self._now.set()

    async def run(self) -> None:
        """Send heartbeats until cancelled."""
        log.info("heartbeat.started")
        try:
            while True:
                due = await self._send_or_back_off() + self._clock.elapsed()
                while (left := self._seconds_until(due)) > 0:
                    if await within(min(left, CHECK_SECONDS), self._now.wait()):
                        break
                self._now.clear()
        finally:
            log.info("heartbeat.stopped")

    async def send(self) -> None:
        """Send one heartbeat and handle its response. Raises `GatewayError`."""
        leases, events = self._attempts.leases, self._events.pending()
        sent = self._clock.elapsed()
        response = await self._gateway.heartbeat(self._build(leases, events))
        self._events.acknowledge(events[: response.events_taken])
        self._record_contact(leases, response, sent)
        self._interval = response.interval_seconds
        self._answered_at = response.server_time
        self._record_skew(response)
        for command in response.commands:
            self._dispatch(command)
        if response.offers:
            self._offered(response.offers)

    async def send_last(self) -> None:
        """Send a last heartbeat, with the last events; a failure is ignored."""
        with suppress(GatewayError):
            await self.send()

    async def _send_or_back_off(self) -> float:
        """Send a heartbeat; return the seconds until the next."""
        if not self._gateway.identified:
            return 0.2
        try:
            await self._send_in_time()
        except GatewayError as error:
            verdict = judge(error)
            if verdict in {RetryDecision.REENROL, RetryDecision.REVOKED}:
                self._handler.identity_refused(verdict, error)
            pause = self._backoff.failed(retry_after(error))
            log.warning("heartbeat.missed", detail=str(error), retry_seconds=round(pause, 2))
            return pause
        self._backoff.succeeded()
        # More events than one heartbeat carries: the rest follows soon, not after an interval.
        if len(self._events) >= MAX_EVENTS:
            return CATCH_UP_SECONDS
        return self._interval * self._rng.uniform(1 - JITTER, 1 + JITTER)

    async def _send_in_time(self) -> None:
        """Send a heartbeat, and give it up while another one can still be in time for every attempt. Raises `GatewayError`."""
        now = self._clock.elapsed()
        times = (contact_due(each, ANSWERED_BY) for each in self._attempts)
        # An attempt for which it is too late bounds nothing: on a slow line only the client's own time-out is long enough.
        left = min((time - now for time in times if time is not None and time > now), default=None)
        seconds = None if left is None else max(left, CHECK_SECONDS)
        try:
            async with asyncio.timeout(seconds):
                await self.send()
        except TimeoutError:
            raise GatewayUnreachable(f"no answer to a heartbeat within {seconds:.1f} s") from None

    def _seconds_until(self, due: float) -> float:
        """Return the seconds until the next heartbeat: sooner than `due` where an attempt's policy allows no such silence."""
        now = self._clock.elapsed()
        if not self._backoff.failures and self.last_sent_at is not None:
            earliest = self.last_sent_at + CHECK_SECONDS
            needed = [time for each in self._attempts if (time := contact_due(each)) is not None]
            due = min(due, max(earliest, min(needed, default=due)))
        return due - now

    def _build(self, leases: tuple[LeaseRef, ...], events: tuple[EdgeEvent, ...]) -> Heartbeat:
        return Heartbeat(
            sent_at=self._clock.now(),
            state=self._state(),
            versions=self._versions,
            slots_total=self._attempts.slots,
            # Prefetched work counts as well: its slots are not free for more.
            slots_used=self._attempts.held,
            leases=leases,
            claiming=self._claiming(),
            answered_at=self._answered_at,
            journal_pending=self._journal.pending,
            journal_bytes=self._journal.bytes,
            trust_version=self._trust_version(),
            queue_error=(self._queue_error() or "")[:MAX_QUEUE_ERROR],
            events=events,
        )

    def _record_contact(self, leases: tuple[LeaseRef, ...], response: HeartbeatResponse, sent: float) -> None:
        """Record the contact of each renewed lease."""
        # From when the request was sent: the lease was renewed after that, so its real end is never earlier.
        self.last_sent_at = sent
        cancelled = {(one.item_id, one.epoch) for one in response.commands if isinstance(one, CancelCommand)}
        for lease in leases:
            attempt = self._attempts.get(key(lease.item_id, lease.epoch))
            if attempt is None:
                continue
            attempt.given_up = (lease.item_id, lease.epoch) in cancelled
            if not attempt.given_up:
                attempt.contact_at = sent
        self._attempts.notify()

    def _record_skew(self, response: HeartbeatResponse) -> None:
        before = self.skew_seconds
        self.skew_seconds = (self._clock.now() - response.server_time).total_seconds()
        if abs(self.skew_seconds) > SKEW_REPORTED_SECONDS >= abs(before):
            log.warning("clock.skewed", seconds=round(self.skew_seconds, 3))
            self._events.emit("clock.skewed", seconds=round(self.skew_seconds, 3))

    def _dispatch(self, command: Command) -> None:
        match command:
            case CancelCommand():
                self._handler.cancel(key(command.item_id, command.epoch), command)
            case DrainCommand():
                self._handler.drain_requested(command.detail)
            case ResumeCommand():
                self._handler.resume()
            case RenewCommand():
                self._handler.renew()
            case TrustCommand():
                self._handler.trust(command.trust)
            case _:
                log.warning("heartbeat.unknown_command", kind=command.kind)
