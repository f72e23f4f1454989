"""The poller: receives work items while there is capacity, verifies them, and hands them to the claimer."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Final
from uuid import UUID

import structlog

from airbridge.core.aws.queue import MAX_BATCH, Received
from airbridge.core.exceptions import InvalidEnvelope
from airbridge.core.protocol import MAX_LEASES, ItemKind, LeaseRef, WorkItem
from airbridge.core.signing import Verifier, claimed_item
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.gateway_client.connectivity import Connectivity
from airbridge.edge_worker.ops.events import EventLog
from airbridge.edge_worker.work.attempts import Attempts
from airbridge.edge_worker.work.bounded_wait import within
from airbridge.edge_worker.work.claimer import Candidate, Claimer
from airbridge.edge_worker.work.messages import RETURN_SECONDS, Messages

log = structlog.get_logger(__name__)

# Seconds between two checks whether to receive, when no change has woken the poller.
CHECK_SECONDS: Final = 1.0

# Seconds for which a free slot may wait under a backlog, so that one claim fills several.
BATCH_WAIT_SECONDS: Final = 0.1

# Claim as soon as a quarter of the slots are free.
BATCH_SHARE: Final = 4

# Triggers that one worker holds: a heartbeat lists at most `MAX_LEASES` leases, and claims may be under way.
MAX_TRIGGERS: Final = MAX_LEASES - 2000

# Seconds for which a message that waits here for a free slot is kept hidden; renewed at half of it.
EXTEND_SECONDS: Final = 20


class Poller:
    """Receives until cancelled. `may_claim` returns whether the worker takes new work at all."""

    def __init__(
        self,
        *,
        messages: Messages,
        claimer: Claimer,
        attempts: Attempts,
        connectivity: Connectivity,
        clock: Clock,
        events: EventLog,
        verifier: Callable[[], Verifier],
        may_claim: Callable[[], bool],
    ) -> None:
        self._messages = messages
        self._claimer = claimer
        self._attempts = attempts
        self._connectivity = connectivity
        self._clock = clock
        self._events = events
        self._verifier = verifier
        self._may_claim = may_claim
        self._waiting: deque[Candidate] = deque()

    @property
    def claiming(self) -> tuple[UUID, ...]:
        """Work items of the claims under way: requested, and not held yet."""
        return self._claimer.claiming

    @property
    def queue_error(self) -> str | None:
        """Error of the last poll; None while the worker can receive."""
        return self._messages.error

    async def run(self) -> None:
        """Receive and claim until cancelled; then return what was received and not claimed."""
        log.info("poller.started")
        extender = asyncio.create_task(self._keep_waiting_hidden())
        backlog = False
        try:
            while True:
                await self._wait_until_wanted()
                if backlog:
                    await self._wait_for_batch()
                    await self._wait_until_wanted()
                most = min(self._claimer.capacity, MAX_BATCH)
                messages = await self._messages.receive(most)
                # A full batch: more messages are probably waiting on the queue.
                backlog = len(messages) >= most
                self._waiting.extend(self._verify(messages))
        finally:
            extender.cancel()
            await self._return_waiting()
            log.info("poller.stopped")

    def offered(self, offers: Sequence[LeaseRef]) -> None:
        """Claim triggers that the gateway offers, as far as this worker holds so many."""
        room = max(0, MAX_TRIGGERS - self._attempts.trigger_count)
        if self._may_claim() and offers[:room]:
            self._claimer.start_offered(offers[:room])

    async def settled(self) -> None:
        """Return once no claim is under way and no message waits to be deleted or returned."""
        await self._claimer.settled()

    async def abandon(self) -> None:
        """Cancel the claims under way. One that was granted comes back to this worker by redelivery, or lapses."""
        await self._claimer.abandon()

    async def _wait_until_wanted(self) -> None:
        while True:
            if self._may_claim():
                self._claim_what_fits()
            else:
                await self._return_waiting()
            wanted = not self._waiting and self._claimer.capacity > 0 and self._claimer.available
            if wanted and self._may_claim() and self._connectivity.up:
                return
            await within(CHECK_SECONDS, self._attempts.changed())

    async def _wait_for_batch(self) -> None:
        """Wait for a few slots to become free, so that one claim fills them all, while the queue has a backlog."""
        enough = max(1, self._attempts.slots // BATCH_SHARE)
        deadline = self._clock.elapsed() + BATCH_WAIT_SECONDS
        while self._claimer.capacity < enough and (left := deadline - self._clock.elapsed()) > 0:
            await within(left, self._attempts.changed())

    def _verify(self, messages: Sequence[Received]) -> list[Candidate]:
        """Return the messages that are valid work items; reject or delete the others."""
        candidates = []
        verifier = self._verifier()
        received_at = self._clock.now()
        for message in messages:
            try:
                item = verifier.open(message.body)
            except InvalidEnvelope as error:
                self._reject(message, error)
                continue
            if self._attempts.epoch_of(str(item.item_id)) > item.epoch:
                log.info("poller.duplicate", item_id=str(item.item_id), epoch=item.epoch)
                self._messages.delete([message.receipt])
                continue
            if item.kind is ItemKind.TRIGGER and self._attempts.trigger_count >= MAX_TRIGGERS:
                self._messages.return_soon([message.receipt], RETURN_SECONDS)
                continue
            candidates.append(Candidate(message, item, received_at))
        return candidates

    def _slots_of(self, item: WorkItem) -> int:
        return 0 if item.kind is ItemKind.TRIGGER else self._attempts.slots_of(item.slots)

    def _reject(self, message: Received, error: InvalidEnvelope) -> None:
        # Left on the queue for its redrive policy: after some receives it lands in the dead-letter queue.
        log.warning(
            "poller.invalid_message", reason=error.reason, detail=error.detail, receives=message.receives
        )
        self._events.emit(
            "message.rejected",
            claimed_item(message.body),
            reason=error.reason,
            why=error.detail,
            receives=message.receives,
        )

    def _claim_what_fits(self) -> None:
        # In order of arrival: a task of many slots must not be overtaken for ever by those of few.
        fitting: list[Candidate] = []
        taken = 0
        while self._waiting and self._claimer.available:
            slots = self._slots_of(self._waiting[0].item)
            if slots > self._claimer.capacity - taken:
                break
            taken += slots
            fitting.append(self._waiting.popleft())
        if fitting:
            self._claimer.start(fitting, taken)

    async def _keep_waiting_hidden(self) -> None:
        while True:
            await asyncio.sleep(EXTEND_SECONDS / 2)
            await self._messages.keep_hidden(self._waiting_receipts(), EXTEND_SECONDS)

    async def _return_waiting(self) -> None:
        receipts = self._waiting_receipts()
        self._waiting.clear()
        await self._messages.return_now(receipts)

    def _waiting_receipts(self) -> list[str]:
        return [candidate.message.receipt for candidate in self._waiting]
