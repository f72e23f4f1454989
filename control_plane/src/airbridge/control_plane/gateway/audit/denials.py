"""Denials outside of any transaction, written to the audit trail in batches and at a bounded rate.

A denied request waits until its row is committed, in a batch with others. Unauthenticated callers cannot fill the
table: beyond the rate, denials are only counted, and the count is written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import structlog

from airbridge.control_plane.gateway.database import transient, unit
from airbridge.executor.ledger import audit, clock, events

log = structlog.get_logger()

BATCH: Final = 200
MAX_WAITING: Final = 2_000
ANONYMOUS: Final = "anonymous"


@dataclass(frozen=True, slots=True)
class Rates:
    """Denials written per second: the sustained rate and the burst, for anonymous and authenticated callers."""

    anonymous: float = 20.0
    anonymous_burst: float = 100.0
    authenticated: float = 200.0
    authenticated_burst: float = 2_000.0


@dataclass(frozen=True, slots=True)
class Denial:
    """Denied request or handshake."""

    event: str
    actor: str
    address: str
    rule: str | None
    trace_id: str | None
    detail: dict[str, Any]

    @property
    def is_anonymous(self) -> bool:
        """True if the caller presented no verified identity."""
        return self.actor == ANONYMOUS


class Bucket:
    """Token bucket."""

    def __init__(self, rate: float, burst: float, monotonic: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._monotonic = monotonic
        self._tokens = burst
        self._at = monotonic()

    def take(self) -> bool:
        """Take a token; return False if there is none."""
        now = self._monotonic()
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True


@dataclass(slots=True)
class _Waiting:
    denial: Denial
    written: asyncio.Future[None]


@dataclass(slots=True)
class Excess:
    """Denials beyond the rate, until their count is written."""

    count: int = 0
    addresses: set[str] = field(default_factory=set)

    def add(self, denial: Denial) -> None:
        """Count a denial, and keep its address if there is room."""
        self.count += 1
        # Ten addresses are enough to find the source; the set must not grow with the attack.
        if len(self.addresses) < 10:
            self.addresses.add(denial.address.rpartition(":")[0])


class DenialLog:
    """Takes denials on the event loop and writes them in its own thread. `run` until cancelled, then `close`."""

    def __init__(self, rates: Rates | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        rates = rates or Rates()
        self._anonymous = Bucket(rates.anonymous, rates.anonymous_burst, monotonic)
        self._authenticated = Bucket(rates.authenticated, rates.authenticated_burst, monotonic)
        self._waiting: list[_Waiting] = []
        self._excess = Excess()
        self._wake = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gateway-audit")

    def admit(self, denial: Denial) -> bool:
        """Return whether the denial gets its own row."""
        bucket = self._anonymous if denial.is_anonymous else self._authenticated
        return len(self._waiting) < MAX_WAITING and bucket.take()

    def submit(self, denial: Denial) -> asyncio.Future[None] | None:
        """Queue a denial; the future is done when it is committed. None: it is only counted."""
        if not self.admit(denial):
            self._excess.add(denial)
            self._wake.set()
            return None
        waiting = _Waiting(denial, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._wake.set()
        return waiting.written

    async def write(self, denial: Denial) -> None:
        """Queue a denial, and return when it is committed or counted."""
        written = self.submit(denial)
        if written is not None:
            await written

    async def run(self) -> None:
        """Write queued denials until cancelled."""
        while True:
            # Before the wait: a run after one that failed finds denials that it left.
            while self._waiting or self._excess.count:
                await self._write_batch()
            await self._wake.wait()
            self._wake.clear()

    async def close(self) -> None:
        """Write the remaining denials, and end the thread."""
        while self._waiting or self._excess.count:
            await self._write_batch()
        self._thread.shutdown(wait=True)

    async def _write_batch(self) -> None:
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        excess, self._excess = self._excess, Excess()
        loop = asyncio.get_running_loop()
        try:
            # A cancelled run must not lose the batch: close() is called next and does not have it any more.
            await asyncio.shield(
                loop.run_in_executor(self._thread, write_rows, [each.denial for each in batch], excess)
            )
        finally:
            for each in batch:
                if not each.written.done():
                    each.written.set_result(None)
        if excess.count:
            await asyncio.sleep(1.0)  # one row per second counts all denials beyond the rate


def write_rows(denials: Sequence[Denial], excess: Excess) -> None:
    """Write denials in one transaction. While the database is down the rows are lost, but not the log events.

    If the transaction fails for another reason each row is written in its own, so that one which cannot be stored loses no other.
    """
    if _write_rows(denials, excess) or (len(denials) + bool(excess.count)) < 2:
        return
    for denial in denials:
        _write_rows([denial], Excess())
    _write_rows([], excess)


def _write_rows(denials: Sequence[Denial], excess: Excess) -> bool:
    """Write rows in one transaction; return whether nothing is left to try: they were written, or the database is down."""
    try:
        with unit() as work:
            now = clock.now(work.session)
            for denial in denials:
                _record(work.session, denial, now)
            if excess.count:
                audit.record(
                    work.session,
                    "denials.counted",
                    "denied",
                    ANONYMOUS,
                    rule="rate of denials that are written one by one",
                    at=now,
                    count=excess.count,
                    addresses=sorted(excess.addresses),
                )
    except Exception as error:  # the driver refuses values with errors of its own; none may end the writer
        log.warning("audit.write_failed", denials=len(denials), counted=excess.count, exc_info=error)
        return transient(error)
    return True


def _record(session: Any, denial: Denial, now: datetime) -> None:
    audit.record(
        session,
        denial.event,
        "denied",
        denial.actor,
        address=denial.address,
        rule=denial.rule,
        trace_id=denial.trace_id,
        at=now,
        **denial.detail,
    )
    # The timeline shows denials too; it is purged, the audit trail is not.
    events.record(session, denial.event, denial.actor, at=now, address=denial.address, **denial.detail)
