"""The heartbeat: one for the whole worker. Renews every lease and brings back what the control plane wants."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Protocol
from uuid import UUID

import structlog

from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.events import EventLog
from airbridge.edge_worker.exceptions import GatewayError
from airbridge.edge_worker.gateway import Gateway
from airbridge.edge_worker.holdings import Holdings
from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.journal_rows import Key, key
from airbridge.edge_worker.retry import Backoff, Verdict, judge
from airbridge.edge_worker.waiting import within
from airbridge.executor.protocol import (
    MAX_EVENTS,
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

log = structlog.get_logger(__name__)

JITTER = 0.1
"""Beats are spread by this share of the interval, so that workers started together do not stay together."""

CATCH_UP_SECONDS = 0.5
"""Between beats while more events wait than one beat carries: after a cut."""

SKEW_REPORTED_SECONDS = 5.0


class Listener(Protocol):
    """Does what the control plane asks for."""

    def cancel(self, at: Key, command: CancelCommand) -> None:
        """Stop this task."""

    def drain_requested(self, detail: str) -> None:
        """Claim nothing more."""

    def resume(self) -> None:
        """Claim again."""

    def renew(self) -> None:
        """Renew the certificate."""

    def trust(self, trust: TrustBundle) -> None:
        """Trust these."""

    def identity_refused(self, verdict: Verdict, error: GatewayError) -> None:
        """The gateway does not accept who we are."""


class Heart:
    """See the module."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        holdings: Holdings,
        journal: Journal,
        clock: Clock,
        rng: random.Random,
        backoff: Backoff,
        versions: Versions,
        state: Callable[[], WorkerState],
        trust_version: Callable[[], str],
        claiming: Callable[[], tuple[UUID, ...]],
        listener: Listener,
        events: EventLog,
        interval_seconds: float,
    ) -> None:
        self._gateway = gateway
        self._holdings = holdings
        self._journal = journal
        self._clock = clock
        self._rng = rng
        self._backoff = backoff
        self._versions = versions
        self._state = state
        self._trust_version = trust_version
        self._claiming = claiming
        self._listener = listener
        self._events = events
        self._interval = interval_seconds
        self._now = asyncio.Event()
        self._answered_at: datetime | None = None
        self.last_beat_at: float | None = None
        self.skew_seconds = 0.0

    def beat_soon(self) -> None:
        """Beat now rather than at the end of the interval."""
        self._now.set()

    async def run(self) -> None:
        """Beat until cancelled."""
        log.info("heart.started")
        try:
            while True:
                pause = await self._beat_or_pause()
                await within(pause, self._now.wait())
                self._now.clear()
        finally:
            log.info("heart.stopped")

    async def beat(self) -> None:
        """Beat once. Raises `GatewayError`."""
        leases, events = self._holdings.leases, self._events.waiting()
        sent = self._clock.elapsed()
        response = await self._gateway.heartbeat(self._heartbeat(leases, events))
        self._events.taken(events[: response.events_taken])
        self._note_contact(leases, response, sent)
        self._interval = response.interval_seconds
        self._answered_at = response.server_time
        self._note_skew(response)
        for command in response.commands:
            self._obey(command)

    async def say_goodbye(self) -> None:
        """Beat once more, if the gateway is there: the last events are told."""
        with suppress(GatewayError):
            await self.beat()

    async def _beat_or_pause(self) -> float:
        """Beat; return how long to wait for the next."""
        if not self._gateway.identified:
            return 0.2
        try:
            await self.beat()
        except GatewayError as error:
            verdict = judge(error)
            if verdict in {Verdict.REENROL, Verdict.REVOKED}:
                self._listener.identity_refused(verdict, error)
            pause = self._backoff.pause(error)
            log.warning("heart.missed", detail=str(error), retry_seconds=round(pause, 2))
            return pause
        self._backoff.reset()
        if len(self._events) >= MAX_EVENTS:
            return CATCH_UP_SECONDS
        return self._interval * self._rng.uniform(1 - JITTER, 1 + JITTER)

    def _heartbeat(self, leases: tuple[LeaseRef, ...], events: tuple[EdgeEvent, ...]) -> Heartbeat:
        return Heartbeat(
            sent_at=self._clock.now(),
            state=self._state(),
            versions=self._versions,
            slots_total=self._holdings.slots,
            slots_used=self._holdings.held,
            leases=leases,
            claiming=self._claiming(),
            answered_at=self._answered_at,
            journal_pending=self._journal.pending,
            journal_bytes=self._journal.bytes,
            trust_version=self._trust_version(),
            events=events,
        )

    def _note_contact(self, leases: tuple[LeaseRef, ...], response: HeartbeatResponse, sent: float) -> None:
        """Count the time since contact from when the request was sent: the lease cannot have begun earlier."""
        self.last_beat_at = sent
        cancelled = {(one.item_id, one.epoch) for one in response.commands if isinstance(one, CancelCommand)}
        for lease in leases:
            holding = self._holdings.get(key(lease.item_id, lease.epoch))
            if holding is not None and (lease.item_id, lease.epoch) not in cancelled:
                holding.contact_at = sent
        self._holdings.notify()

    def _note_skew(self, response: HeartbeatResponse) -> None:
        before = self.skew_seconds
        self.skew_seconds = (self._clock.now() - response.server_time).total_seconds()
        if abs(self.skew_seconds) > SKEW_REPORTED_SECONDS >= abs(before):
            log.warning("clock.skewed", seconds=round(self.skew_seconds, 3))
            self._events.note("clock.skewed", seconds=round(self.skew_seconds, 3))

    def _obey(self, command: Command) -> None:
        match command:
            case CancelCommand():
                self._listener.cancel(key(command.item_id, command.epoch), command)
            case DrainCommand():
                self._listener.drain_requested(command.detail)
            case ResumeCommand():
                self._listener.resume()
            case RenewCommand():
                self._listener.renew()
            case TrustCommand():
                self._listener.trust(command.trust)
            case _:
                log.warning("heart.unknown_command", kind=command.kind)
