"""Denials that nothing else was committed with: written to the audit trail in batches, at a bounded rate for strangers.

A caller who is told no waits until the row is committed, together with others that were refused meanwhile. Strangers
cannot fill the table: past the rate they are counted, and the count is written.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from sqlalchemy import exc as sql

from airbridge.control_plane.gateway.database import unit
from airbridge.executor.ledger import audit, clock, events

log = structlog.get_logger()

BATCH: Final = 200
MOST_WAITING: Final = 2_000
ANONYMOUS: Final = "anonymous"


@dataclass(frozen=True, slots=True)
class Rates:
    """How many denials a second are written, on average and at once."""

    strangers: float = 20.0
    strangers_burst: float = 100.0
    known: float = 200.0
    known_burst: float = 2_000.0


@dataclass(frozen=True, slots=True)
class Denial:
    """Something that was refused."""

    event: str
    actor: str
    address: str
    rule: str | None
    trace_id: str | None
    detail: dict[str, Any]

    @property
    def of_stranger(self) -> bool:
        """Whether nobody knows who asked."""
        return self.actor == ANONYMOUS


class Bucket:
    """A token bucket."""

    def __init__(self, rate: float, burst: float, monotonic: Callable[[], float]) -> None:
        self._rate = rate
        self._burst = burst
        self._monotonic = monotonic
        self._room = burst
        self._at = monotonic()

    def take(self) -> bool:
        """Whether there is room for one more; if so it is taken."""
        now = self._monotonic()
        self._room = min(self._burst, self._room + (now - self._at) * self._rate)
        self._at = now
        if self._room < 1.0:
            return False
        self._room -= 1.0
        return True


@dataclass(slots=True)
class _Waiting:
    denial: Denial
    written: asyncio.Future[None]


@dataclass(slots=True)
class _Unwritten:
    """Denials beyond the rate, until their number is written."""

    count: int = 0
    addresses: set[str] = field(default_factory=set)

    def add(self, denial: Denial) -> None:
        self.count += 1
        if len(self.addresses) < 10:
            self.addresses.add(denial.address.rpartition(":")[0])


class DenialLog:
    """Takes denials on the event loop and writes them in a thread of its own. `run` until cancelled, then `close`."""

    def __init__(self, rates: Rates | None = None, monotonic: Callable[[], float] = time.monotonic) -> None:
        rates = rates or Rates()
        self._strangers = Bucket(rates.strangers, rates.strangers_burst, monotonic)
        self._known = Bucket(rates.known, rates.known_burst, monotonic)
        self._waiting: list[_Waiting] = []
        self._unwritten = _Unwritten()
        self._news = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gateway-audit")

    def admit(self, denial: Denial) -> bool:
        """Whether the denial gets a row of its own."""
        bucket = self._strangers if denial.of_stranger else self._known
        return len(self._waiting) < MOST_WAITING and bucket.take()

    def note(self, denial: Denial) -> asyncio.Future[None] | None:
        """Take a denial; the future is done when it is committed. None: it is counted only."""
        if not self.admit(denial):
            self._unwritten.add(denial)
            self._news.set()
            return None
        waiting = _Waiting(denial, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._news.set()
        return waiting.written

    async def write(self, denial: Denial) -> None:
        """Take a denial, and return when it is committed or counted."""
        written = self.note(denial)
        if written is not None:
            await written

    async def run(self) -> None:
        """Write what is noted, until cancelled."""
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting or self._unwritten.count:
                await self._write_some()

    async def close(self) -> None:
        """Write what is left, and end the thread."""
        while self._waiting or self._unwritten.count:
            await self._write_some()
        self._thread.shutdown(wait=True)

    async def _write_some(self) -> None:
        batch, self._waiting = self._waiting[:BATCH], self._waiting[BATCH:]
        beyond, self._unwritten = self._unwritten, _Unwritten()
        loop = asyncio.get_running_loop()
        try:
            await asyncio.shield(
                loop.run_in_executor(self._thread, store, [each.denial for each in batch], beyond)
            )
        finally:
            for each in batch:
                if not each.written.done():
                    each.written.set_result(None)
        if beyond.count:
            await asyncio.sleep(1.0)  # one row a second for all that is beyond the rate


def store(denials: Sequence[Denial], beyond: _Unwritten) -> None:
    """Write denials in one transaction. A database that is away costs the rows, not the answers: the log has them."""
    try:
        with unit() as work:
            now = clock.now(work.session)
            for denial in denials:
                audit.record(
                    work.session,
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
                events.record(
                    work.session,
                    denial.event,
                    denial.actor,
                    at=now,
                    address=denial.address,
                    **denial.detail,
                )
            if beyond.count:
                audit.record(
                    work.session,
                    "denials.counted",
                    "denied",
                    ANONYMOUS,
                    rule="rate of denials that are written one by one",
                    at=now,
                    count=beyond.count,
                    addresses=sorted(beyond.addresses),
                )
    except sql.SQLAlchemyError as error:
        log.warning("audit.unwritten", denials=len(denials), counted=beyond.count, exc_info=error)
