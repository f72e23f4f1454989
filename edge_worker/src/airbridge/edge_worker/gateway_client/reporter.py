"""The reporter: sends journalled records to the gateway, in order, each applied once.

Records of any number of tasks travel in one request; of one task, one request is under way at a time. A record that is not
answered is sent again, for ever, with the same idempotency key.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Final

import structlog

from airbridge.core.backoff import Backoff
from airbridge.core.protocol import ExchangeRequest, RecordResult, RefusalReason
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import GatewayError, MalformedResponse
from airbridge.edge_worker.gateway_client import batching
from airbridge.edge_worker.gateway_client.batching import Batch
from airbridge.edge_worker.gateway_client.client import Gateway
from airbridge.edge_worker.gateway_client.connectivity import Connectivity
from airbridge.edge_worker.gateway_client.pacing import Pacing
from airbridge.edge_worker.gateway_client.retry import RetryDecision, is_fault_of_request, judge
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.journal.rows import MarkReported
from airbridge.edge_worker.ops.events import EventLog
from airbridge.edge_worker.work.attempts import Attempt, Entry, Outcome

log = structlog.get_logger(__name__)

# Requests under way at once; more would only make the batches smaller.
MAX_REQUESTS: Final = 4
# Of these, requests with backlog: it never takes the last one.
MAX_BACKLOG_REQUESTS: Final = MAX_REQUESTS - 1
_UNIDENTIFIED_SECONDS: Final = 0.2

_FENCED: Final = frozenset(
    {
        RefusalReason.CANCELLED,
        RefusalReason.LOST,
        RefusalReason.NOT_HOLDER,
        RefusalReason.SETTLED,
        RefusalReason.STALE_EPOCH,
        RefusalReason.UNKNOWN_ITEM,
        RefusalReason.ALREADY_CLAIMED,
    }
)
_TRANSIENT: Final = frozenset({RefusalReason.INTERNAL, RefusalReason.OVERLOADED})


class Reporter:
    """Reports until cancelled. `on_answer` gets every answered record, `on_fenced` an attempt that is not held any more.

    `on_rejected` gets a record that the gateway refuses to read, and returns whether it is to be sent again.
    """

    def __init__(
        self,
        *,
        gateway: Gateway,
        journal: Journal,
        connectivity: Connectivity,
        clock: Clock,
        events: EventLog,
        backoff: Backoff,
        on_answer: Callable[[Attempt, Entry, RecordResult], None],
        on_rejected: Callable[[Attempt, Entry, GatewayError], bool],
        on_fenced: Callable[[Attempt, RecordResult], None],
        on_identity: Callable[[RetryDecision, GatewayError], None],
    ) -> None:
        self._gateway = gateway
        self._journal = journal
        self._clock = clock
        self._events = events
        self._pacing = Pacing(clock, connectivity, backoff)
        self._on_answer = on_answer
        self._on_rejected = on_rejected
        self._on_fenced = on_fenced
        self._on_identity = on_identity
        self._pending: dict[Attempt, None] = {}
        self._wake = asyncio.Event()
        self._requests: set[asyncio.Task[None]] = set()
        self._backlog_requests = 0

    def wake(self, attempt: Attempt) -> None:
        """Send this attempt's records, when they are due."""
        self._pending[attempt] = None
        self._wake.set()

    @property
    def idle(self) -> bool:
        """Return whether nothing is left to send."""
        return not self._pending and not self._requests

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            while True:
                await self._pacing.wait(self._wake, self._seconds_until_due())
                self._wake.clear()
                self._start_requests()
                await asyncio.sleep(0)
        finally:
            for task in self._requests:
                task.cancel()
            await asyncio.gather(*self._requests, return_exceptions=True)

    async def drained(self) -> None:
        """Send everything now, without lingering; return when nothing is left to send."""
        while not self.idle:
            for attempt in self._pending:
                for entry in attempt.unanswered:
                    entry.due_at = 0.0
            self._wake.set()
            await asyncio.sleep(0.02)

    # --- starting requests -------------------------------------------------------------------------

    def _seconds_until_due(self) -> float | None:
        """Return the seconds until a request may start: 0 if one may now, None if nothing is to be sent."""
        if not self._gateway.identified:
            return _UNIDENTIFIED_SECONDS
        if len(self._requests) >= MAX_REQUESTS:
            return None
        now = self._clock.elapsed()
        entries = (entry for one in self._eligible(now) for entry in batching.sendable(one))
        due = min((entry.due_at for entry in entries), default=None)
        return None if due is None else self._pacing.seconds_until(due)

    def _eligible(self, now: float) -> list[Attempt]:
        """Return the attempts whose records may go into a request that begins now."""
        backlog_allowed = self._backlog_requests < MAX_BACKLOG_REQUESTS
        return [
            one
            for one in self._pending
            if not one.in_flight and (backlog_allowed or not batching.is_backlog(one, now))
        ]

    def _start_requests(self) -> None:
        now = self._clock.elapsed()
        while len(self._requests) < MAX_REQUESTS and self._gateway.identified:
            if self._pacing.seconds_until(now) > 0:
                return
            self._drop_answered()
            batch = batching.collect(self._eligible(now), now)
            if not batch:
                return
            self._start(batch, backlog=batching.is_backlog(batch[0][0], now))

    def _drop_answered(self) -> None:
        for attempt in [*self._pending]:
            if not attempt.unanswered and not attempt.in_flight:
                self._pending.pop(attempt, None)

    def _start(self, batch: Batch, *, backlog: bool) -> None:
        self._backlog_requests += backlog
        for attempt, _ in batch:
            attempt.in_flight = True
        task = asyncio.create_task(self._send(batch))
        self._requests.add(task)
        task.add_done_callback(partial(self._request_ended, backlog))

    def _request_ended(self, backlog: bool, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        self._backlog_requests -= backlog
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("reporter.crashed", exc_info=error)

    # --- sending ---------------------------------------------------------------------------------

    async def _send(self, batch: Batch) -> None:
        records = tuple(entry.record for _, entries in batch for entry in entries)
        try:
            response = await self._gateway.exchange(ExchangeRequest(records=records))
            _check_results(records, response.results)
        except GatewayError as error:
            self._request_failed(batch, error)
            return
        finally:
            # Before the results are settled: settling an attempt checks whether a request with it is under way.
            for attempt, _ in batch:
                attempt.in_flight = False
        self._pacing.succeeded()
        results = iter(response.results)
        for attempt, entries in batch:
            self._settle(attempt, entries, [*islice(results, len(entries))])

    def _request_failed(self, batch: Batch, error: GatewayError) -> None:
        if is_fault_of_request(error):
            self._isolate(batch, error)
            return
        decision = judge(error)
        if decision in {RetryDecision.REENROL, RetryDecision.REVOKED}:
            self._on_identity(decision, error)
        pause = self._pacing.failed(error)
        log.warning(
            "reporter.failed",
            detail=str(error),
            records=sum(len(entries) for _, entries in batch),
            retry_seconds=round(pause, 3),
        )

    def _isolate(self, batch: Batch, error: GatewayError) -> None:
        """Send the records of a refused request one by one; answer a record that is refused by itself."""
        if len(batch) > 1 or len(batch[0][1]) > 1:
            for attempt, _ in batch:
                attempt.isolated = True
            return
        attempt, [entry] = batch[0]
        log.error("reporter.record_refused", item_id=attempt.key[0], seq=entry.record.seq, detail=str(error))
        if self._on_rejected(attempt, entry, error):
            return
        status = getattr(error, "status", 422)
        detail = {"reason": "airbridge", "message": f"the gateway refused the call: {error}"}
        self._settle(attempt, [entry], [_result(entry, status, json.dumps({"detail": detail}))])

    # --- results -----------------------------------------------------------------------------------

    def _settle(self, attempt: Attempt, entries: list[Entry], results: list[RecordResult]) -> None:
        answered: list[Entry] = []
        for entry, result in zip(entries, results, strict=True):
            if result.refused in _FENCED and attempt.fenced is None and not attempt.committed:
                self._fence(attempt, result)
            if attempt.fenced is not None and entry not in attempt.unanswered:
                # Dropped. What may be left are reads of a task that is being stopped.
                continue
            if result.refused in _TRANSIENT or result.status == 503:
                # The rest waits behind this record: a task's records are applied in order.
                self._pacing.defer()
                break
            self._answer(attempt, entry, result)
            if entry.write:
                answered.append(entry)
        if answered and attempt.fenced is None:
            self._mark_reported(attempt, answered)
        attempt.isolated = attempt.isolated and bool(attempt.unanswered)
        if not attempt.unanswered:
            self._pending.pop(attempt, None)

    def _answer(self, attempt: Attempt, entry: Entry, result: RecordResult) -> None:
        attempt.unanswered.remove(entry)
        entry.answer(result)
        if entry.final:
            attempt.advance(Outcome.COMMITTED)
        self._on_answer(attempt, entry, result)

    def _mark_reported(self, attempt: Attempt, writes: Sequence[Entry]) -> None:
        self._journal.submit(MarkReported(attempt.key, writes[-1].record.seq))
        self._events.emit(
            "report.delivered",
            attempt.key,
            began_at=writes[0].record.recorded_at,
            records=len(writes),
            final=attempt.outcome is Outcome.COMMITTED,
        )

    def _fence(self, attempt: Attempt, result: RecordResult) -> None:
        self._events.emit("report.refused", attempt.key, reason=result.refused)
        for entry in attempt.fence(result.refused):
            entry.answer(_result(entry, 409, None, result.refused))
        self._on_fenced(attempt, result)


def _result(
    entry: Entry, status: int, body: str | None, refused: RefusalReason | None = None
) -> RecordResult:
    record = entry.record
    return RecordResult(
        item_id=record.item_id,
        epoch=record.epoch,
        seq=record.seq,
        status=status,
        body=body,
        refused=refused,
    )


def _check_results(records: Sequence[object], results: Sequence[RecordResult]) -> None:
    """Raise `MalformedResponse` unless there is one result for each record, in the same order."""

    def keys(rows: Sequence[object]) -> list[tuple[object, ...]]:
        return [tuple(getattr(row, name) for name in ("item_id", "epoch", "seq")) for row in rows]

    if keys(records) != keys(results):
        raise MalformedResponse(f"{len(results)} results that do not match the {len(records)} records sent")
