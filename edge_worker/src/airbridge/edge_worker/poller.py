"""The poller: receives work items when there is room, verifies them, claims them, and holds what it is granted.

A claim whose answer was lost is asked again until it is answered: the gateway may have granted it. A message is
deleted only once its grant is journalled; ownership is the lease, not the message.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog

from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.events import EventLog
from airbridge.edge_worker.exceptions import GatewayError, JournalError
from airbridge.edge_worker.gateway import Gateway
from airbridge.edge_worker.holdings import Holding, Holdings
from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.journal_rows import AddGrant
from airbridge.edge_worker.link import Link
from airbridge.edge_worker.queue import AsyncQueue
from airbridge.edge_worker.retry import Backoff, Verdict, judge
from airbridge.edge_worker.waiting import within
from airbridge.executor.exceptions import InvalidEnvelope, QueueError
from airbridge.executor.protocol import (
    ClaimRequest,
    ClaimResponse,
    Disposition,
    Grant,
    LeaseRef,
    Refusal,
    RefusalReason,
    ReleaseRequest,
    WorkItem,
)
from airbridge.executor.queue import MAX_BATCH, Received
from airbridge.executor.signing import Verifier, claimed_item

log = structlog.get_logger(__name__)

RETURN_SECONDS: Final = 5
"""How long a message that another worker may be granted stays hidden, unless the gateway names a time."""

MAX_CLAIMS: Final = 4
"""Claims under way at once."""

CHECK_SECONDS: Final = 1.0
"""How often the poller looks again whether it may receive, when nothing told it so."""

COMPANY_SECONDS: Final = 0.1
"""How long a free slot may wait under a backlog for others to be filled with it."""

COMPANY_SHARE: Final = 4
"""A quarter of the slots is company enough."""

DELETE_LINGER_SECONDS: Final = 0.5
"""How long a message whose grant is journalled may wait for others to be deleted with it; hidden it is for a minute."""

EXTEND_SECONDS: Final = 20
"""How long a message that waits here for a free slot is kept hidden; renewed at half of it."""


@dataclass(frozen=True)
class Candidate:
    """A verified work item and the message it came in."""

    message: Received
    item: WorkItem
    received_at: datetime
    """By this machine's clock."""


@dataclass(frozen=True)
class Asked:
    """When a claim was made: for leases, and for people."""

    elapsed: float
    at: datetime


class Poller:
    """See the module. `may_claim` says whether the worker wants anything new; `on_grant` takes over what it got."""

    def __init__(
        self,
        *,
        queue: AsyncQueue,
        gateway: Gateway,
        holdings: Holdings,
        journal: Journal,
        link: Link,
        clock: Clock,
        events: EventLog,
        verifier: Callable[[], Verifier],
        may_claim: Callable[[], bool],
        on_grant: Callable[[Holding], None],
        on_identity: Callable[[Verdict, GatewayError], None],
        backoff: Callable[[], Backoff],
        rng: random.Random,
        poll_seconds: int,
    ) -> None:
        self._queue = queue
        self._gateway = gateway
        self._holdings = holdings
        self._journal = journal
        self._link = link
        self._clock = clock
        self._events = events
        self._verifier = verifier
        self._may_claim = may_claim
        self._on_grant = on_grant
        self._on_identity = on_identity
        self._backoff = backoff
        self._rng = rng
        self._poll_seconds = poll_seconds
        self._waiting: deque[Candidate] = deque()
        self._reserved = 0
        self._failing = False
        self._claims: dict[asyncio.Task[None], tuple[UUID, ...]] = {}
        self._tidying: set[asyncio.Task[None]] = set()
        self._deletable: list[str] = []
        self._deleting = False
        self._winding_down = asyncio.Event()

    @property
    def claiming(self) -> tuple[UUID, ...]:
        """The work items of the claims under way: asked for, and not held yet."""
        return tuple(item_id for asked in self._claims.values() for item_id in asked)

    @property
    def _room(self) -> int:
        return self._holdings.room - self._reserved

    async def run(self) -> None:
        """Poll until cancelled; then give back what was received and not claimed."""
        log.info("poller.started")
        backoff = self._backoff()
        extender = asyncio.create_task(self._keep_waiting_hidden())
        more = False
        try:
            while True:
                await self._until_wanted()
                if more:
                    await self._for_company()
                    await self._until_wanted()
                try:
                    most = min(self._room, MAX_BATCH)
                    messages = await self._queue.receive(most, self._poll_seconds)
                    more = len(messages) >= most
                    backoff.reset()
                    if self._failing:
                        self._failing = False
                        self._events.note("queue.restored")
                except QueueError as error:
                    pause = backoff.pause()
                    log.warning("poller.receive_failed", detail=str(error), retry_seconds=round(pause, 2))
                    if not self._failing:
                        self._failing = True
                        self._events.note("queue.failing", why=str(error))
                    await asyncio.sleep(pause)
                    continue
                self._waiting.extend(self._sort(messages))
        finally:
            extender.cancel()
            await self._give_back_waiting()
            log.info("poller.stopped")

    async def settled(self) -> None:
        """Return once no claim is under way and no message waits to be deleted or given back."""
        self._winding_down.set()
        while self._claims or self._tidying:
            await asyncio.wait({*self._claims, *self._tidying})

    async def abandon(self) -> None:
        """Give up the claims under way. Any that was granted comes back to this worker by redelivery, or lapses."""
        for task in {*self._claims, *self._tidying}:
            task.cancel()
        await asyncio.gather(*self._claims, *self._tidying, return_exceptions=True)

    # --- receiving -------------------------------------------------------------------------------

    async def _until_wanted(self) -> None:
        while True:
            if self._may_claim():
                self._claim_what_fits()
            else:
                await self._give_back_waiting()
            wanted = not self._waiting and self._room > 0 and len(self._claims) < MAX_CLAIMS
            if wanted and self._may_claim() and self._link.up:
                return
            await within(CHECK_SECONDS, self._holdings.changed())

    async def _for_company(self) -> None:
        """While more waits on the queue than there is room for, let a few slots get free, to be filled with one claim."""
        enough = max(1, self._holdings.slots // COMPANY_SHARE)
        deadline = self._clock.elapsed() + COMPANY_SECONDS
        while self._room < enough and (left := deadline - self._clock.elapsed()) > 0:
            await within(left, self._holdings.changed())

    def _sort(self, messages: list[Received]) -> list[Candidate]:
        """Return the messages that are work items of ours; deal with the others."""
        candidates = []
        verifier = self._verifier()
        received_at = self._clock.now()
        for message in messages:
            try:
                item = verifier.open(message.body)
            except InvalidEnvelope as error:
                # Left to the queue's redrive policy: after some receives it lands in the dead-letter queue.
                log.warning(
                    "poller.not_ours", reason=error.reason, detail=error.detail, receives=message.receives
                )
                self._events.note(
                    "message.rejected",
                    claimed_item(message.body),
                    reason=error.reason,
                    why=error.detail,
                    receives=message.receives,
                )
                continue
            if self._holdings.epoch_of(str(item.item_id)) > item.epoch:
                log.info("poller.duplicate", item_id=str(item.item_id), epoch=item.epoch)
                self._tidy(self._queue.delete([message.receipt]))
                continue
            candidates.append(Candidate(message, item, received_at))
        return candidates

    def _claim_what_fits(self) -> None:
        """Claim those that fit, in order of arrival: a wide one is not overtaken for ever by narrow ones."""
        fitting: list[Candidate] = []
        taken = 0
        while self._waiting and len(self._claims) < MAX_CLAIMS:
            slots = self._holdings.slots_of(self._waiting[0].item.slots)
            if slots > self._room - taken:
                break
            taken += slots
            fitting.append(self._waiting.popleft())
        if fitting:
            self._reserved += taken
            task = asyncio.create_task(self._claim(fitting, taken))
            self._claims[task] = tuple(candidate.item.item_id for candidate in fitting)
            task.add_done_callback(self._claim_ended)

    def _claim_ended(self, task: asyncio.Task[None]) -> None:
        self._claims.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("poller.claim_crashed", exc_info=error)

    async def _keep_waiting_hidden(self) -> None:
        while True:
            await asyncio.sleep(EXTEND_SECONDS / 2)
            receipts = [candidate.message.receipt for candidate in self._waiting]
            if receipts:
                await self._tidily(self._queue.release(receipts, after_seconds=EXTEND_SECONDS))

    async def _give_back_waiting(self) -> None:
        receipts = [candidate.message.receipt for candidate in self._waiting]
        self._waiting.clear()
        if receipts:
            await self._tidily(self._queue.release(receipts))

    # --- claiming --------------------------------------------------------------------------------

    async def _claim(self, candidates: list[Candidate], reserved: int) -> None:
        try:
            asked = Asked(self._clock.elapsed(), self._clock.now())
            response = await self._ask(candidates)
            if response is not None:
                await self._take(candidates, response, asked)
        finally:
            self._reserved -= reserved
            self._holdings.notify()

    async def _ask(self, candidates: list[Candidate]) -> ClaimResponse | None:
        """Return the gateway's answer; None if it refuses the claim as a whole and the messages went back."""
        request = ClaimRequest(envelopes=tuple(candidate.message.body for candidate in candidates))
        backoff = self._backoff()
        while True:
            try:
                return await self._gateway.claim(request)
            except GatewayError as error:
                verdict = judge(error)
                if verdict in {Verdict.REENROL, Verdict.REVOKED}:
                    self._on_identity(verdict, error)
                if verdict in {Verdict.GIVE_UP, Verdict.REVOKED}:
                    log.warning("poller.claim_refused", detail=str(error), items=len(candidates))
                    await self._tidily(self._return(candidates, RETURN_SECONDS))
                    await asyncio.sleep(RETURN_SECONDS)
                    return None
                pause = backoff.pause(error)
                log.warning("poller.claim_failed", detail=str(error), retry_seconds=round(pause, 2))
                await asyncio.sleep(pause)

    async def _take(self, candidates: list[Candidate], response: ClaimResponse, asked: Asked) -> None:
        asked_for = {candidate.item.item_id: candidate.received_at for candidate in candidates}
        for refusal in response.refusals:
            self._refused(candidates, refusal)
        grants = {grant.item_id: grant for grant in response.grants if grant.item_id in asked_for}
        held = await asyncio.gather(
            *(self._hold(grant, asked, asked_for[grant.item_id]) for grant in grants.values())
        )
        ours = {item_id for item_id, is_held in zip(grants, held, strict=True) if is_held}
        self._delete_soon([one.message.receipt for one in candidates if one.item.item_id in ours])

    async def _hold(self, grant: Grant, asked: Asked, received_at: datetime) -> bool:
        """Journal a grant and take it over. False if the journal has no room: then it goes back."""
        holding = Holding(grant, contact_at=asked.elapsed)
        known = self._holdings.get(holding.key)
        if known is not None:
            # The same delivery twice; the gateway repeats its answer to the holder.
            known.contact_at = asked.elapsed
            return True
        try:
            await self._journal.submit(AddGrant(grant))
        except JournalError as error:
            log.warning("poller.grant_not_journalled", item_id=str(grant.item_id), detail=str(error))
            await self._release(grant)
            return False
        if self._holdings.get(holding.key) is None:
            log.info("task.granted", item_id=holding.key[0], epoch=grant.epoch, ti_id=str(grant.ti_id))
            self._events.note("message.received", holding.key, at=received_at)
            self._events.note("message.claimed", holding.key, began_at=asked.at)
            self._on_grant(holding)
        return True

    async def _release(self, grant: Grant) -> None:
        lease = LeaseRef(item_id=grant.item_id, epoch=grant.epoch)
        try:
            await self._gateway.release(ReleaseRequest(items=(lease,), detail="the worker's journal is full"))
        except GatewayError as error:
            log.warning("poller.release_failed", item_id=str(grant.item_id), detail=str(error))

    def _refused(self, candidates: list[Candidate], refusal: Refusal) -> None:
        if not 0 <= refusal.index < len(candidates):
            log.warning("poller.refusal_out_of_range", index=refusal.index)
            return
        candidate = candidates[refusal.index]
        log.warning(
            "claim.refused",
            item_id=str(candidate.item.item_id),
            epoch=candidate.item.epoch,
            reason=refusal.reason,
            detail=refusal.detail,
            disposition=refusal.disposition,
        )
        if refusal.disposition is Disposition.DROP:
            self._tidy(self._queue.delete([candidate.message.receipt]))
        elif refusal.disposition is Disposition.RETURN:
            seconds = RETURN_SECONDS if refusal.retry_after is None else refusal.retry_after
            self._tidy(self._return([candidate], seconds))
        if refusal.reason is RefusalReason.REVOKED:
            self._on_identity(Verdict.REVOKED, GatewayError(refusal.detail))

    async def _return(self, candidates: list[Candidate], seconds: float) -> None:
        hidden = int(min(max(0.0, seconds), 900.0)) + self._rng.randint(0, 2)
        await self._queue.release([one.message.receipt for one in candidates], after_seconds=hidden)

    # --- the queue's housekeeping ------------------------------------------------------------------

    def _delete_soon(self, receipts: list[str]) -> None:
        """Delete messages together with those of other claims: a call to the queue costs as much as a claim."""
        self._deletable += receipts
        if self._deletable and not self._deleting:
            self._deleting = True
            self._tidy(self._delete_after_linger())

    async def _delete_after_linger(self) -> None:
        await within(DELETE_LINGER_SECONDS, self._winding_down.wait())
        self._deleting = False
        receipts, self._deletable = self._deletable, []
        await self._queue.delete(receipts)

    def _tidy(self, work: Awaitable[None]) -> None:
        task = asyncio.create_task(self._tidily(work))
        self._tidying.add(task)
        task.add_done_callback(self._tidying.discard)

    async def _tidily(self, work: Awaitable[None]) -> None:
        """Do what may fail without harm: a message that stays on the queue is refused when it comes again."""
        try:
            await work
        except QueueError as error:
            log.warning("poller.queue_call_failed", detail=str(error))
