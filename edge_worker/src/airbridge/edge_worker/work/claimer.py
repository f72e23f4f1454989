"""The claimer: claims work items from the gateway, and journals what it is granted.

A claim whose response was lost is sent again until there is one: the gateway may have granted it. A message is deleted only
once its grant is journalled; ownership is the lease, not the message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from uuid import UUID

import structlog

from airbridge.core.aws.queue import Received
from airbridge.core.backoff import Backoff
from airbridge.core.protocol import (
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
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import GatewayError, JournalError
from airbridge.edge_worker.gateway_client.client import Gateway
from airbridge.edge_worker.gateway_client.retry import RetryDecision, judge, retry_after
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import AddGrant
from airbridge.edge_worker.ops.events import EventLog
from airbridge.edge_worker.work.attempts import Attempt, Attempts
from airbridge.edge_worker.work.messages import RETURN_SECONDS, Messages

log = structlog.get_logger(__name__)

# Claims under way at once.
MAX_CLAIMS: Final = 4


@dataclass(frozen=True)
class Candidate:
    """A verified work item and the message it came in."""

    message: Received
    item: WorkItem
    #: By this machine's clock.
    received_at: datetime


@dataclass(frozen=True)
class ClaimBatch:
    """Candidates of one claim, with the time at which it was sent: for leases (`elapsed`) and for events (`at`)."""

    candidates: Sequence[Candidate]
    elapsed: float
    at: datetime

    def received_at(self, item_id: UUID) -> datetime | None:
        """Return the time at which an item's message was received; None if the item is not in the claim."""
        times = (one.received_at for one in self.candidates if one.item.item_id == item_id)
        return next(times, None)


class Claimer:
    """Claims for one worker. `on_identity` is called when the gateway does not accept the worker's identity."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        attempts: Attempts,
        journal: Journal,
        messages: Messages,
        clock: Clock,
        events: EventLog,
        backoff: Callable[[], Backoff],
        on_identity: Callable[[RetryDecision, GatewayError], None],
    ) -> None:
        self._gateway = gateway
        self._attempts = attempts
        self._journal = journal
        self._messages = messages
        self._clock = clock
        self._events = events
        self._backoff = backoff
        self._on_identity = on_identity
        self._reserved = 0
        self._claims: dict[asyncio.Task[None], tuple[UUID, ...]] = {}

    @property
    def claiming(self) -> tuple[UUID, ...]:
        """Work items of the claims under way: requested, and not held yet."""
        return tuple(item_id for items in self._claims.values() for item_id in items)

    @property
    def capacity(self) -> int:
        """Slots' worth of work that may still be claimed, the claims under way taken off."""
        return self._attempts.capacity - self._reserved

    @property
    def available(self) -> bool:
        """Return whether another claim may start."""
        return len(self._claims) < MAX_CLAIMS

    def start(self, candidates: Sequence[Candidate], slots: int) -> None:
        """Claim in the background; `slots` are reserved meanwhile."""
        self._reserved += slots
        task = asyncio.create_task(self._claim(candidates, slots))
        self._claims[task] = tuple(candidate.item.item_id for candidate in candidates)
        task.add_done_callback(self._claim_ended)

    def start_offered(self, offered: Sequence[LeaseRef]) -> None:
        """Claim triggers that the gateway offers, in the background: they take no slots, and have no message here."""
        held = {item_id for item_id, _ in (one.key for one in self._attempts.triggers)}
        new = tuple(
            one for one in offered if str(one.item_id) not in held and one.item_id not in self.claiming
        )
        if new and self.available:
            task = asyncio.create_task(self._claim_offered(new))
            self._claims[task] = tuple(one.item_id for one in new)
            task.add_done_callback(self._claim_ended)

    async def _claim_offered(self, offered: tuple[LeaseRef, ...]) -> None:
        batch = ClaimBatch((), self._clock.elapsed(), self._clock.now())
        try:
            response = await self._gateway.claim(ClaimRequest(offered=offered))
        except GatewayError as error:
            # What was granted comes back as a held lease that nobody lists, and is offered again.
            log.warning("poller.claim_failed", detail=str(error))
            return
        wanted = {one.item_id for one in offered}
        await asyncio.gather(
            *(self._hold(grant, batch) for grant in response.grants if grant.item_id in wanted)
        )
        self._attempts.notify()

    async def settled(self) -> None:
        """Return once no claim is under way and no message waits to be deleted or returned."""
        while self._claims or self._messages.busy:
            if self._claims:
                await asyncio.wait(self._claims)
            await self._messages.settled()

    async def abandon(self) -> None:
        """Cancel the claims under way. One that was granted comes back to this worker by redelivery, or lapses."""
        for task in self._claims:
            task.cancel()
        await asyncio.gather(*self._claims, return_exceptions=True)
        await self._messages.abandon()

    def _claim_ended(self, task: asyncio.Task[None]) -> None:
        self._claims.pop(task, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("poller.claim_crashed", exc_info=error)

    async def _claim(self, candidates: Sequence[Candidate], reserved: int) -> None:
        try:
            # The time before the request is the lease's earliest beginning: the gateway granted it later.
            batch = ClaimBatch(candidates, self._clock.elapsed(), self._clock.now())
            response = await self._request(candidates)
            if response is not None:
                await self._accept(batch, response)
        finally:
            self._reserved -= reserved
            self._attempts.notify()

    async def _request(self, candidates: Sequence[Candidate]) -> ClaimResponse | None:
        """Return the gateway's response; None if it refuses the claim as a whole and the messages went back."""
        request = ClaimRequest(envelopes=tuple(candidate.message.body for candidate in candidates))
        backoff = self._backoff()
        while True:
            try:
                return await self._gateway.claim(request)
            except GatewayError as error:
                decision = judge(error)
                if decision in {RetryDecision.REENROL, RetryDecision.REVOKED}:
                    self._on_identity(decision, error)
                if decision in {RetryDecision.GIVE_UP, RetryDecision.REVOKED}:
                    await self._claim_refused(candidates, error)
                    return None
                pause = backoff.failed(retry_after(error))
                log.warning("poller.claim_failed", detail=str(error), retry_seconds=round(pause, 2))
                await asyncio.sleep(pause)

    async def _claim_refused(self, candidates: Sequence[Candidate], error: GatewayError) -> None:
        log.warning("poller.claim_refused", detail=str(error), items=len(candidates))
        await self._messages.return_now([one.message.receipt for one in candidates], RETURN_SECONDS)
        # The claim stays under way during the pause, so that the poller does not receive the same messages at once.
        await asyncio.sleep(RETURN_SECONDS)

    async def _accept(self, batch: ClaimBatch, response: ClaimResponse) -> None:
        for refusal in response.refusals:
            self._item_refused(batch.candidates, refusal)
        grants = {one.item_id: one for one in response.grants if batch.received_at(one.item_id) is not None}
        held = await asyncio.gather(*(self._hold(grant, batch) for grant in grants.values()))
        ours = {item_id for item_id, is_held in zip(grants, held, strict=True) if is_held}
        receipts = [one.message.receipt for one in batch.candidates if one.item.item_id in ours]
        self._messages.delete_soon(receipts)

    async def _hold(self, grant: Grant, batch: ClaimBatch) -> bool:
        """Journal a grant and hold its attempt. False if the journal is full: then the item is released."""
        attempt = Attempt(grant, contact_at=batch.elapsed)
        known = self._attempts.get(attempt.key)
        if known is not None:
            # The same delivery twice; the gateway repeats its response to the holder.
            known.contact_at = max(batch.elapsed, known.contact_at or 0.0)
            return True
        try:
            await self._journal.submit(AddGrant(grant))
        except JournalError as error:
            log.warning("poller.grant_not_journalled", item_id=str(grant.item_id), detail=str(error))
            await self._release(grant)
            return False
        if self._attempts.get(attempt.key) is None:
            self._granted(attempt, batch)
        return True

    def _granted(self, attempt: Attempt, batch: ClaimBatch) -> None:
        grant = attempt.grant
        log.info("task.granted", item_id=attempt.key[0], epoch=grant.epoch, ti_id=str(grant.ti_id))
        self._events.emit("message.received", attempt.key, at=batch.received_at(grant.item_id))
        self._events.emit("message.claimed", attempt.key, began_at=batch.at)
        self._attempts.add(attempt)

    async def _release(self, grant: Grant) -> None:
        lease = LeaseRef(item_id=grant.item_id, epoch=grant.epoch)
        try:
            await self._gateway.release(ReleaseRequest(items=(lease,), detail="the worker's journal is full"))
        except GatewayError as error:
            log.warning("poller.release_failed", item_id=str(grant.item_id), detail=str(error))

    def _item_refused(self, candidates: Sequence[Candidate], refusal: Refusal) -> None:
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
        # DEAD_LETTER needs no call: the queue's redrive policy takes the message after some receives.
        if refusal.disposition is Disposition.DROP:
            self._messages.delete([candidate.message.receipt])
        elif refusal.disposition is Disposition.RETURN:
            seconds = RETURN_SECONDS if refusal.retry_after is None else refusal.retry_after
            self._messages.return_soon([candidate.message.receipt], seconds)
        if refusal.reason is RefusalReason.REVOKED:
            self._on_identity(RetryDecision.REVOKED, GatewayError(refusal.detail))
