"""The outbox: sends placed work items to the regions' queues. One loop a region, so that one out of reach delays no other.

The ledger's row is the outbox's entry. A row counts as sent before the queue is called and is sent again
if it was never confirmed, so a crash at any point loses nothing; a message sent twice is granted once.
"""

from __future__ import annotations

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import structlog

from airbridge.executor.backoff import Backoff
from airbridge.executor.exceptions import QueueError
from airbridge.executor.ledger import clock, events, items
from airbridge.executor.ledger.items import Backlog, Place
from airbridge.executor.ledger.models import Outcome, WorkItemRow
from airbridge.executor.protocol import WorkItem
from airbridge.executor.queue import MAX_BATCH, Outgoing, WorkQueue
from airbridge.executor.regions import Pool, Region
from airbridge.executor.settings import Settings
from airbridge.executor.signing import MAX_ENVELOPE_BYTES
from airbridge.executor.signing_key import Signs

log = structlog.get_logger(__name__)

TURN_LIMIT = 100
"""Rows sent in one turn of the loop."""
RESERVE_SECONDS = 60.0
"""A row whose send was never confirmed (a crash) is sent again after this long."""
LOST_AFTER_SECONDS = 30.0
"""A message waiting for longer than this while its queue says it is empty may have been lost with the queue."""
LOST_CHECK_SECONDS = 15.0
LOST_CHECKS = 2
"""How often in a row the queue must say so: its counts are approximate."""

UNSENT = "did not take it: "
"""How a row's `detail` begins while its queue is out of reach."""

SessionMaker = Callable[[], AbstractContextManager[Any]]
QueueFinder = Callable[[Region, Pool], WorkQueue]


@dataclass(frozen=True, slots=True)
class Letter:
    """A work item, signed and ready to go."""

    row: WorkItemRow
    message: Outgoing
    issued_at: datetime


@dataclass(frozen=True, slots=True)
class Pause:
    """How long a loop rests. One that failed does not let itself be woken."""

    seconds: float
    wakeable: bool = True


def room(backlog: Mapping[Place, Backlog], region: Region, settings: Settings) -> dict[Place, int]:
    """Return how many more items each pool's queue may hold.

    As many unclaimed ones as the pool's live slots will soon take, so that priority still counts for
    those that wait here, and no fewer than a floor, so that a pool that scales from zero shows a backlog.
    While more than half of them are there, a few more are not worth a turn: there is room again for a whole batch.
    """
    free = {}
    for pool in region.pools:
        place = (region.name, pool.name)
        now = backlog.get(place, Backlog())
        wanted = max(settings.outbox_floor, math.ceil(now.slots * settings.outbox_per_slot))
        missing = max(0, wanted - now.sent)
        free[place] = missing if missing >= min(wanted / 2, MAX_BATCH) else 0
    return free


class RegionOutbox:
    """The loop of one region."""

    def __init__(
        self,
        region: Region,
        *,
        settings: Settings,
        signer: Signs,
        new_session: SessionMaker,
        queue_of: QueueFinder,
        wake_region: Callable[[str], None],
        random: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._region = region
        self._settings = settings
        self._signer = signer
        self._new_session = new_session
        self._queue_of = queue_of
        self._wake_region = wake_region
        self._monotonic = monotonic
        self._backoff = Backoff(settings.outbox_backoff_base, settings.outbox_backoff_limit, random)
        self._tidy_at = -math.inf
        self._check_at = -math.inf
        self._empty_checks: defaultdict[str, int] = defaultdict(int)
        self._woken = threading.Event()
        self._stopping = threading.Event()
        self.full: frozenset[Place] = frozenset()
        """The places whose workers had, at the last look, as much on their queue as they should, and more was waiting."""

    def run(self) -> None:
        """Send until stopped. Nothing that happens here ends the loop."""
        log.info("outbox.started", region=self._region.name)
        while not self._stopping.is_set():
            pause = self.turn()
            waiter = self._woken if pause.wakeable else self._stopping
            waiter.wait(pause.seconds)
        log.info("outbox.stopped", region=self._region.name)

    def wake(self) -> None:
        """Look for work now."""
        self._woken.set()

    def stop(self) -> None:
        """End the loop after its turn."""
        self._stopping.set()
        self._woken.set()

    def turn(self) -> Pause:
        """Send what there is to send, and say how long to rest."""
        self._woken.clear()
        try:
            pause = self._pump()
        except QueueError as error:
            return self._rest(error=str(error))
        except Exception as error:
            log.exception("outbox.failed", region=self._region.name)
            return self._rest(error=type(error).__name__)
        self._backoff.succeeded()
        return pause

    def _rest(self, error: str) -> Pause:
        self.full = frozenset()
        seconds = self._backoff.failed()
        log.warning(
            "outbox.backoff",
            region=self._region.name,
            failures=self._backoff.failures,
            seconds=round(seconds, 3),
            error=error,
        )
        return Pause(seconds, wakeable=False)

    # --- One turn ---------------------------------------------------------------------------------

    def _pump(self) -> Pause:
        if self._due("_tidy_at", self._settings.outbox_interval):
            self._tidy()
        letters, waiting = self._take()
        if letters:
            self._send(letters)
        elif self._due("_check_at", LOST_CHECK_SECONDS):
            self._find_lost()
        if len(letters) == TURN_LIMIT:
            return Pause(0.0)
        if waiting > len(letters):
            return Pause(self._settings.outbox_blocked_interval)
        return Pause(self._settings.outbox_interval)

    def _due(self, timer: str, interval: float) -> bool:
        now = self._monotonic()
        if now < getattr(self, timer):
            return False
        setattr(self, timer, now + interval)
        return True

    def _tidy(self) -> None:
        """Send expired items again, and move those on that nobody takes here."""
        with self._new_session() as session:
            expired = items.return_expired(session, TURN_LIMIT, region=self._region.name)
            moved = items.stranded(session, self._region.name, TURN_LIMIT)
            for row in moved:
                items.reroute(session, row, f"nobody took it in {self._region.name} in time")
        for row in moved:
            log.info(
                "item.rerouted", item_id=row.id, ti_id=row.ti_id, left=self._region.name, region=row.region
            )
        for region in {row.region for row in moved}:
            self._wake_region(region)
        if expired:
            log.info("items.expired", region=self._region.name, count=expired)

    def _take(self) -> tuple[list[Letter], int]:
        """Reserve what may be sent now; return it, and how many rows waited."""
        with self._new_session() as session:
            now = clock.now(session)
            backlog = items.backlog(
                session, region=self._region.name, alive_seconds=self._settings.worker_alive_seconds, at=now
            )
            free = room(backlog, self._region, self._settings)
            self.full = frozenset(
                place for place, each in backlog.items() if each.slots and each.placed > free.get(place, 0)
            )
            waiting = sum(each.placed for each in backlog.values())
            if not waiting:
                return [], 0
            asked_for = {
                place: free[place] for place, each in backlog.items() if each.placed and place in free
            }
            rows = items.sendable(session, asked_for, TURN_LIMIT, at=now)
            letters = list(self._letters(session, rows, now))
            until = now + timedelta(seconds=RESERVE_SECONDS)
            items.reserve(session, [letter.row.id for letter in letters], until)
        return letters, waiting

    def _letters(self, session: Any, rows: Sequence[WorkItemRow], now: datetime) -> Iterator[Letter]:
        expires_at = now + timedelta(seconds=self._settings.message_ttl)
        for row in rows:
            try:
                yield Letter(row, Outgoing(row.id, self._envelope(_work_item(row, now, expires_at))), now)
            except ValueError as error:
                items.settle(session, row, Outcome.FAILED, f"it cannot be put on a queue: {error}")
                log.warning("item.unsendable", item_id=row.id, ti_id=row.ti_id, error=str(error))

    def _envelope(self, item: WorkItem) -> str:
        envelope = self._signer.sign(item)
        if len(envelope) > MAX_ENVELOPE_BYTES:
            raise ValueError(f"its message is {len(envelope)} bytes; at most {MAX_ENVELOPE_BYTES}")
        return envelope

    def _send(self, letters: Sequence[Letter]) -> None:
        """Send pool by pool. Raises the first `QueueError` after all pools have been tried."""
        by_pool: defaultdict[str, list[Letter]] = defaultdict(list)
        for letter in letters:
            by_pool[letter.row.pool].append(letter)
        failure: QueueError | None = None
        for pool, mine in by_pool.items():
            try:
                self._send_to(pool, mine)
            except QueueError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _send_to(self, pool: str, letters: Sequence[Letter]) -> None:
        sent: list[Letter] = []
        problem: QueueError | None = None
        try:
            queue = self._queue(pool)
            for batch in _batches(letters):
                refused = queue.send([letter.message for letter in batch])
                sent.extend(letter for letter in batch if letter.message.id not in refused)
                for item_id, reason in refused.items():
                    problem = QueueError(
                        f"the queue of {pool}@{self._region.name} refused {item_id}: {reason}"
                    )
        except QueueError as error:
            problem = error
        self._confirm(sent, [letter for letter in letters if letter not in sent], problem)
        if problem is not None:
            raise problem

    def _confirm(self, sent: Sequence[Letter], unsent: Sequence[Letter], problem: QueueError | None) -> None:
        with self._new_session() as session:
            now = clock.now(session)
            expires_at = now + timedelta(seconds=self._settings.message_ttl)
            items.mark_sent(session, [letter.row.id for letter in sent], expires_at, at=now)
            items.postpone(session, [letter.row.id for letter in unsent], now, f"{UNSENT}{problem}")
            for letter in sent:
                events.record(
                    session, "item.sent", "outbox", row=letter.row, at=now, began_at=letter.issued_at
                )
        if sent:
            log.debug("items.sent", region=self._region.name, count=len(sent))

    def _queue(self, pool: str) -> WorkQueue:
        found = self._region.pool(pool)
        if found is None:
            raise QueueError(f"region {self._region.name!r} has no pool {pool!r} in the catalogue any more")
        return self._queue_of(self._region, found)

    # --- Messages that are gone -------------------------------------------------------------------

    def _find_lost(self) -> None:
        """Send items again whose queue has been emptied behind our back (purged, or lost with its server)."""
        for pool in self._region.pools:
            with self._new_session() as session:
                before = clock.now(session) - timedelta(seconds=LOST_AFTER_SECONDS)
                waiting = items.sent_before(session, self._region.name, pool.name, before)
            if not waiting:
                self._empty_checks[pool.name] = 0
                continue
            depth = self._queue_of(self._region, pool).depth()
            is_empty = depth.visible + depth.in_flight == 0
            self._empty_checks[pool.name] = self._empty_checks[pool.name] + 1 if is_empty else 0
            if self._empty_checks[pool.name] >= LOST_CHECKS:
                self._empty_checks[pool.name] = 0
                self._resend(pool, waiting)

    def _resend(self, pool: Pool, ids: Sequence[str]) -> None:
        with self._new_session() as session:
            now = clock.now(session)
            items.postpone(session, ids, now, "its message was lost: the queue is empty")
        log.warning("items.lost_by_queue", region=self._region.name, pool=pool.name, count=len(ids))
        self.wake()


class Outbox:
    """The loops of all regions."""

    def __init__(
        self,
        regions: Sequence[Region],
        *,
        settings: Settings,
        signer: Signs,
        new_session: SessionMaker,
        queue_of: QueueFinder,
        random: Callable[[], float],
    ) -> None:
        self._loops = {
            region.name: RegionOutbox(
                region,
                settings=settings,
                signer=signer,
                new_session=new_session,
                queue_of=queue_of,
                wake_region=self.wake,
                random=random,
            )
            for region in regions
        }
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start a thread for each region."""
        for name, loop in self._loops.items():
            thread = threading.Thread(target=loop.run, name=f"airbridge-outbox-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def wake(self, region: str) -> None:
        """Look for work for this region now."""
        loop = self._loops.get(region)
        if loop is not None:
            loop.wake()

    def full(self) -> frozenset[Place]:
        """Return the places whose workers have more waiting for them than their queues should hold."""
        return frozenset().union(*(loop.full for loop in self._loops.values()))

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """End all loops; what is not sent yet is in the ledger."""
        for loop in self._loops.values():
            loop.stop()
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads.clear()


def _work_item(row: WorkItemRow, issued_at: Any, expires_at: Any) -> WorkItem:
    return WorkItem(
        item_id=row.id,
        ti_id=row.ti_id,
        epoch=row.epoch,
        region=row.region,
        pool=row.pool,
        slots=row.slots,
        bundle=row.workload["bundle"],
        dag_rel_path=row.workload["dag_rel_path"],
        issued_at=issued_at,
        expires_at=expires_at,
        trace=row.trace,
    )


def _batches(letters: Sequence[Letter]) -> Iterator[Sequence[Letter]]:
    for start in range(0, len(letters), MAX_BATCH):
        yield letters[start : start + MAX_BATCH]
