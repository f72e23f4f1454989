"""Outbox: sends placed work items to the regions' queues. One loop a region, so that one out of reach delays no other; one backoff
and one thread a pool, so that a queue that refuses its items, or does not answer, delays no other of its region.

The ledger's row is the outbox entry (the transactional outbox pattern). A row is reserved before the queue is called and sent
again if the send was never confirmed, so a crash at any point loses nothing; a message sent twice is granted once.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import structlog

from airbridge.core.aws.queue import MAX_BATCH, Outgoing, WorkQueue
from airbridge.core.backoff import Backoff
from airbridge.core.exceptions import QueueError
from airbridge.core.protocol import ItemKind, WorkItem
from airbridge.core.regions import Pool, Region
from airbridge.core.signing import MAX_ENVELOPE_BYTES
from airbridge.executor.background_loop import BackgroundLoop, Pause, Timer, stop_all
from airbridge.executor.dispatch.queue_calls import QueueCalls
from airbridge.executor.dispatch.signing_key import MessageSigner
from airbridge.executor.ledger import backlogs, clock, events, items, leases
from airbridge.executor.ledger.backlogs import Backlog, PoolRef
from airbridge.executor.ledger.models import Outcome, WorkItemRow
from airbridge.executor.ledger.sharing import held_back
from airbridge.executor.ledger.sharing.fair_shares import FairShares
from airbridge.executor.ledger.sharing.limits import Limits
from airbridge.executor.settings import Settings

log = structlog.get_logger(__name__)

# Rows sent in one turn of the loop.
TURN_LIMIT = 100
# A row whose send was never confirmed (a crash) is sent again after this long.
RESERVE_SECONDS = 60.0
# Age of an unclaimed message beyond which an empty queue means that the message was lost with it.
LOST_AFTER_SECONDS = 30.0
LOST_CHECK_SECONDS = 15.0
# Consecutive counts of zero before a message counts as lost: SQS's counts are approximate.
LOST_CHECKS = 2

# Work whose earlier attempt is being stopped is looked at again this long later.
HELD_SECONDS = 1.0

SessionMaker = Callable[[], AbstractContextManager[Any]]
QueueFinder = Callable[[Region, Pool], WorkQueue]


@dataclass(frozen=True, slots=True)
class SignedMessage:
    """Work item as a signed message."""

    row: WorkItemRow
    message: Outgoing
    issued_at: datetime
    reserved_until: datetime


def capacity(backlog: Mapping[PoolRef, Backlog], region: Region, settings: Settings) -> dict[PoolRef, int]:
    """Return how many more items each pool's queue may hold.

    The limit is what the pool's live slots will soon take, so that priority still counts for the rest, and no less than a
    floor, so that a pool that scales from zero shows a backlog.
    """
    free = {}
    for pool in region.pools:
        ref = (region.name, pool.name)
        now = backlog.get(ref, Backlog())
        wanted = max(settings.outbox_floor, math.ceil(now.slots * settings.outbox_per_slot))
        missing = max(0, wanted - now.sent)
        # While more than half of the limit is queued, a few more are not worth a turn: wait for a whole batch.
        free[ref] = missing if missing >= min(wanted / 2, MAX_BATCH) else 0
    return free


class RegionOutbox:
    """Loop of one region."""

    def __init__(
        self,
        region: Region,
        *,
        settings: Settings,
        signer: MessageSigner,
        new_session: SessionMaker,
        queue_of: QueueFinder,
        wake_region: Callable[[str], None],
        random: Callable[[], float],
        shares: FairShares | None = None,
        limits: Limits | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._region = region
        self._shares = shares
        self._limits = limits or Limits()
        self._settings = settings
        self._signer = signer
        self._new_session = new_session
        self._queue_of = queue_of
        self._wake_region = wake_region
        self._backoff = self._new_backoff(random)
        self._random = random
        self._monotonic = monotonic
        self._backoffs: dict[str, Backoff] = {}
        # Times, of `monotonic`, before which the queues of these pools are not tried again.
        self._tried_again_at: dict[str, float] = {}
        self._requeue_timer = Timer(settings.outbox_interval, monotonic)
        self._lost_check_timer = Timer(LOST_CHECK_SECONDS, monotonic)
        self._empty_checks: defaultdict[str, int] = defaultdict(int)
        # Pools whose queue was at its limit in the last turn, with more items waiting.
        self.full: frozenset[PoolRef] = frozenset()
        self.loop = BackgroundLoop(f"outbox-{region.name}", self.turn)
        self._calls = QueueCalls(region.name, self.loop.wake)

    def turn(self) -> Pause:
        """Send what can be sent now, and return the pause before the next turn."""
        try:
            pause = self._send_due()
        except Exception as error:
            log.exception("outbox.failed", region=self._region.name)
            self.full = frozenset()
            return Pause.unwakeable(self._back_off(self._backoff, type(error).__name__))
        self._backoff.succeeded()
        return pause

    def _new_backoff(self, random: Callable[[], float]) -> Backoff:
        return Backoff(self._settings.outbox_backoff_base, self._settings.outbox_backoff_limit, random)

    def _back_off(self, backoff: Backoff, error: str, **where: str) -> float:
        seconds = backoff.failed()
        log.warning(
            "outbox.backoff",
            region=self._region.name,
            failures=backoff.failures,
            seconds=round(seconds, 3),
            error=error,
            **where,
        )
        return seconds

    def _queue_failed(self, pool: str, error: QueueError) -> None:
        """Leave a pool's queue alone for a while."""
        backoff = self._backoffs.setdefault(pool, self._new_backoff(self._random))
        seconds = self._back_off(backoff, str(error), pool=pool)
        self._tried_again_at[pool] = self._monotonic() + seconds
        # Work for it would wait behind a queue that nobody reaches: it may go elsewhere meanwhile, as to any other.
        self.full = frozenset(ref for ref in self.full if ref[1] != pool)

    def _queue_works(self, pool: str) -> None:
        self._backoffs.pop(pool, None)
        self._tried_again_at.pop(pool, None)

    def _is_left_alone(self, pool: str) -> bool:
        return self._calls.is_busy(pool) or self._monotonic() < self._tried_again_at.get(pool, 0.0)

    def _call(self, calls: Mapping[str, Callable[[], None]]) -> None:
        """Call queues, and wait a moment for them. Of a region with one pool nothing else waits: it needs no thread."""
        if len(self._region.pools) == 1:
            for pool, call in calls.items():
                try:
                    call()
                except QueueError as error:
                    self._queue_failed(pool, error)
            return
        for pool, call in calls.items():
            self._calls.start(pool, call)
        self._calls.wait(calls)
        self._take_ended()

    def _take_ended(self) -> None:
        for pool, error in self._calls.ended():
            if isinstance(error, QueueError):
                self._queue_failed(pool, error)
            elif error is not None:
                raise error

    # --- One turn ---------------------------------------------------------------------------------

    def _send_due(self) -> Pause:
        self._take_ended()
        if self._requeue_timer.is_due():
            self._requeue()
        messages, waiting = self._reserve()
        if messages:
            self._send(messages)
        elif self._lost_check_timer.is_due():
            self._find_lost()
        of_triggers = sum(signed.row.kind == ItemKind.TRIGGER for signed in messages)
        if len(messages) == TURN_LIMIT or of_triggers >= TURN_LIMIT // 2:
            return Pause(0.0)
        if waiting > len(messages):
            return Pause(self._at_most(self._settings.outbox_blocked_interval))
        return Pause(self._at_most(self._settings.outbox_interval))

    def _at_most(self, seconds: float) -> float:
        """Return these seconds, or fewer if a queue that failed may be tried again before."""
        now = self._monotonic()
        # One whose time has come stays here until it is sent to: nothing may be waiting for it.
        return min([seconds, *(at - now for at in self._tried_again_at.values() if at > now)])

    def _requeue(self) -> None:
        """Return expired items to the outbox, and move items to their fallback that no worker here has taken in time."""
        with self._new_session() as session:
            expired = items.return_expired(session, TURN_LIMIT, region=self._region.name)
            held = partial(held_back.conditions, session, self._limits, self._shares)
            moved = items.stranded(session, self._region.name, TURN_LIMIT, held)
            for row in moved:
                items.reroute(session, row, f"no worker in {self._region.name} took it in time")
        for row in moved:
            log.info(
                "item.rerouted", item_id=row.id, ti_id=row.ti_id, left=self._region.name, region=row.region
            )
        for region in {row.region for row in moved}:
            self._wake_region(region)
        if expired:
            log.info("items.expired", region=self._region.name, count=expired)

    def _reserve(self) -> tuple[list[SignedMessage], int]:
        """Reserve and sign the rows that may be sent now; return them, and how many rows were waiting."""
        with self._new_session() as session:
            now = clock.now(session)
            backlog = backlogs.backlog(
                session, region=self._region.name, alive_seconds=self._settings.worker_alive_seconds, at=now
            )
            free = capacity(backlog, self._region, self._settings)
            backlog = {ref: each for ref, each in backlog.items() if not self._is_left_alone(ref[1])}
            self.full = frozenset(
                ref for ref, each in backlog.items() if each.slots and each.placed > free.get(ref, 0)
            )
            waiting = sum(each.placed for each in backlog.values())
            rows = self._triggers(session, backlog, now, most=TURN_LIMIT // 2 if waiting else TURN_LIMIT)
            waiting += sum(each.triggers_placed for each in backlog.values())
            if not waiting:
                return [], 0
            wanted = {ref: free[ref] for ref, each in backlog.items() if each.placed and ref in free}
            rows += items.sendable(
                session, wanted, TURN_LIMIT - len(rows), shares=self._shares, limits=self._limits, at=now
            )
            held = items.running_before(session, rows, now)
            if held:
                later = now + timedelta(seconds=HELD_SECONDS)
                items.postpone(session, held, later, "its earlier attempt is still being stopped")
                rows = [row for row in rows if row.id not in held]
            until = now + timedelta(seconds=RESERVE_SECONDS)
            messages = list(self._messages(session, rows, now, until))
            items.reserve(session, [message.row.id for message in messages], until)
        return messages, waiting

    def _triggers(
        self, session: Any, backlog: Mapping[PoolRef, Backlog], now: datetime, *, most: int
    ) -> list[WorkItemRow]:
        """Return triggers to send; half of a turn is left to tasks that wait."""
        pools = [pool for (_, pool), each in backlog.items() if each.triggers_placed]
        if not pools:
            return []
        return items.sendable_triggers(session, self._region.name, pools, most, at=now)

    def _messages(
        self, session: Any, rows: Sequence[WorkItemRow], now: datetime, reserved_until: datetime
    ) -> Iterator[SignedMessage]:
        expires_at = now + timedelta(seconds=self._settings.message_ttl)
        for row in rows:
            try:
                message = Outgoing(row.id, self._envelope(_work_item(row, now, expires_at)))
                yield SignedMessage(row, message, now, reserved_until)
            except ValueError as error:
                leases.settle(session, row, Outcome.FAILED, f"it cannot be put on a queue: {error}")
                log.warning("item.unsendable", item_id=row.id, ti_id=row.ti_id, error=str(error))

    def _envelope(self, item: WorkItem) -> str:
        envelope = self._signer.sign(item)
        if len(envelope) > MAX_ENVELOPE_BYTES:
            raise ValueError(f"its message is {len(envelope)} bytes; at most {MAX_ENVELOPE_BYTES}")
        return envelope

    def _send(self, messages: Sequence[SignedMessage]) -> None:
        """Send pool by pool; a queue that does not take its items is left alone for a while."""
        by_pool: defaultdict[str, list[SignedMessage]] = defaultdict(list)
        for signed in messages:
            by_pool[signed.row.pool].append(signed)
        self._call({pool: partial(self._send_to, pool, mine) for pool, mine in by_pool.items()})

    def _send_to(self, pool: str, messages: Sequence[SignedMessage]) -> None:
        sent: list[SignedMessage] = []
        problem: QueueError | None = None
        try:
            queue = self._queue(pool)
            for batch in _batches(messages):
                refused = queue.send([signed.message for signed in batch])
                sent.extend(signed for signed in batch if signed.message.id not in refused)
                for item_id, reason in refused.items():
                    problem = QueueError(
                        f"the queue of {pool}@{self._region.name} refused {item_id}: {reason}"
                    )
        except QueueError as error:
            problem = error
        self._confirm(sent, [signed for signed in messages if signed not in sent], problem)
        if problem is not None:
            raise problem
        self._queue_works(pool)

    def _confirm(
        self, sent: Sequence[SignedMessage], unsent: Sequence[SignedMessage], problem: QueueError | None
    ) -> None:
        with self._new_session() as session:
            now = clock.now(session)
            expires_at = now + timedelta(seconds=self._settings.message_ttl)
            # One turn has one reservation.
            until = next(signed.reserved_until for signed in (*sent, *unsent))
            taken, left = ([signed.row.id for signed in each] for each in (sent, unsent))
            items.mark_sent(session, taken, expires_at, at=now, reserved_until=until)
            items.postpone(session, left, now, f"{held_back.UNSENT}{problem}", reserved_until=until)
            noted = [
                events.values("item.sent", "outbox", row=each.row, at=now, began_at=each.issued_at)
                for each in sent
            ]
            events.add(session, noted)
        if sent:
            log.debug("items.sent", region=self._region.name, count=len(sent))

    def _queue(self, pool: str) -> WorkQueue:
        found = self._region.pool(pool)
        if found is None:
            raise QueueError(f"region {self._region.name!r} has no pool {pool!r} in the catalogue any more")
        return self._queue_of(self._region, found)

    # --- Messages that are gone -------------------------------------------------------------------

    def _find_lost(self) -> None:
        """Send items again whose queue was emptied by others (purged, or lost with its server)."""
        checks: dict[str, Callable[[], None]] = {}
        for pool in self._region.pools:
            with self._new_session() as session:
                before = clock.now(session) - timedelta(seconds=LOST_AFTER_SECONDS)
                waiting = items.sent_before(session, self._region.name, pool.name, before)
            if not waiting:
                self._empty_checks[pool.name] = 0
            elif not self._is_left_alone(pool.name):
                checks[pool.name] = partial(self._find_lost_of, pool, waiting)
        self._call(checks)

    def _find_lost_of(self, pool: Pool, waiting: Sequence[str]) -> None:
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
        self.loop.wake()


class Outbox:
    """Outbox of all regions: one loop each. Without `shares`, work is sent by priority and age alone."""

    def __init__(
        self,
        regions: Sequence[Region],
        *,
        settings: Settings,
        signer: MessageSigner,
        new_session: SessionMaker,
        queue_of: QueueFinder,
        random: Callable[[], float],
        shares: FairShares | None = None,
        limits: Limits | None = None,
    ) -> None:
        self._regions = {
            region.name: RegionOutbox(
                region,
                settings=settings,
                signer=signer,
                new_session=new_session,
                queue_of=queue_of,
                wake_region=self.wake,
                random=random,
                shares=shares,
                limits=limits,
            )
            for region in regions
        }

    def start(self) -> None:
        """Start a thread for each region."""
        for region in self._regions.values():
            region.loop.start()

    def wake(self, region: str) -> None:
        """Send a region's items now."""
        if region in self._regions:
            self._regions[region].loop.wake()

    def full(self) -> frozenset[PoolRef]:
        """Return the pools that have more items waiting than their queues should hold."""
        return frozenset().union(*(region.full for region in self._regions.values()))

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Stop all loops; what is not sent yet stays in the ledger."""
        stop_all((region.loop for region in self._regions.values()), timeout_seconds)


def _work_item(row: WorkItemRow, issued_at: Any, expires_at: Any) -> WorkItem:
    return WorkItem(
        item_id=row.id,
        ti_id=row.ti_id,
        epoch=row.epoch,
        region=row.region,
        pool=row.pool,
        slots=max(1, row.slots),
        kind=row.kind,
        bundle=row.workload["bundle"],
        dag_rel_path=row.workload["dag_rel_path"],
        issued_at=issued_at,
        expires_at=expires_at,
        trace=row.trace,
    )


def _batches(messages: Sequence[SignedMessage]) -> Iterator[Sequence[SignedMessage]]:
    for start in range(0, len(messages), MAX_BATCH):
        yield messages[start : start + MAX_BATCH]
