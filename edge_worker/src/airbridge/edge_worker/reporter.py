"""The reporter: sends journalled records to the gateway, in order, once each as far as the gateway is concerned.

Records of any number of tasks travel in one request; of one task, one request is under way at a time. What is not
answered is sent again, for ever, with the same idempotency key.

What ended tasks left over a while ago (during a cut, or before a restart) is the backlog. It never shares a request with
what is new, and never takes the last request: however slowly the gateway works it off, new work does not wait for it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import islice
from typing import Any, Final

import structlog

from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.events import EventLog
from airbridge.edge_worker.exceptions import GatewayBusy, GatewayError, GatewayGarbage
from airbridge.edge_worker.gateway import Gateway
from airbridge.edge_worker.holdings import Entry, Holding
from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.journal_rows import MarkReported
from airbridge.edge_worker.link import Link
from airbridge.edge_worker.retry import Backoff, Verdict, is_fault_of_request, judge
from airbridge.executor.protocol import ExchangeRequest, RecordResult, RefusalReason

log = structlog.get_logger(__name__)

MAX_RECORDS: Final = 500
MAX_BYTES: Final = 1024 * 1024
MAX_REQUESTS: Final = 4
"""Requests under way at once; more would only make the batches smaller."""
MAX_BACKLOG_REQUESTS: Final = MAX_REQUESTS - 1
KNOCK_SECONDS: Final = 30.0
"""How much longer than its backoff the reporter waits while the link is down, unless it hears that it is up again."""
BACKLOG_SECONDS: Final = 5.0
"""An ended task whose first record has been due for so long is backlog."""

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
_PASSING: Final = frozenset({RefusalReason.INTERNAL, RefusalReason.OVERLOADED})

Batch = list[tuple[Holding, list[Entry]]]


class Reporter:
    """See the module. `on_answer` hears of every answered write, `on_fenced` of a holding that is ours no longer."""

    def __init__(
        self,
        *,
        gateway: Gateway,
        journal: Journal,
        link: Link,
        clock: Clock,
        events: EventLog,
        backoff: Backoff,
        on_answer: Callable[[Holding, Entry, RecordResult], None],
        on_fenced: Callable[[Holding, RecordResult], None],
        on_identity: Callable[[Verdict, GatewayError], None],
    ) -> None:
        self._gateway = gateway
        self._journal = journal
        self._link = link
        self._clock = clock
        self._events = events
        self._backoff = backoff
        self._on_answer = on_answer
        self._on_fenced = on_fenced
        self._on_identity = on_identity
        self._pending: dict[Holding, None] = {}
        self._wake = asyncio.Event()
        self._requests: set[asyncio.Task[None]] = set()
        self._backlog_requests = 0
        self._not_before = 0.0
        self._retry_on_link = False

    def wake(self, holding: Holding) -> None:
        """Look at this holding: something was put into its outbox."""
        self._pending[holding] = None
        self._wake.set()

    @property
    def idle(self) -> bool:
        """Whether nothing is left to send."""
        return not self._pending and not self._requests

    async def run(self) -> None:
        """Send until cancelled."""
        try:
            while True:
                await self._until_something_is_due()
                self._wake.clear()
                self._start_requests()
                await asyncio.sleep(0)
        finally:
            for task in self._requests:
                task.cancel()
            await asyncio.gather(*self._requests, return_exceptions=True)

    async def drained(self) -> None:
        """Send everything now, company or not, and return when nothing is left to send."""
        while not self.idle:
            for holding in self._pending:
                for entry in holding.outbox:
                    entry.due_at = 0.0
            self._wake.set()
            await asyncio.sleep(0.02)

    # --- what to send ----------------------------------------------------------------------------

    async def _until_something_is_due(self) -> None:
        pause = self._pause()
        if pause is None or pause > 0:
            waits: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._wake.wait())]
            if self._retry_on_link and not self._link.up:
                waits.append(asyncio.ensure_future(self._link.wait_up()))
            await asyncio.wait(waits, timeout=pause, return_when=asyncio.FIRST_COMPLETED)
            for wait in waits:
                wait.cancel()
        if self._retry_on_link and self._link.up:
            self._retry_on_link, self._not_before = False, 0.0

    def _pause(self) -> float | None:
        """Return seconds until the next entry is due: 0 if one is, None if there is none."""
        if len(self._requests) >= MAX_REQUESTS or not self._gateway.identified:
            return None if self._gateway.identified else 0.2
        now = self._clock.elapsed()
        due = min(
            (entry.due_at for one in self._pending if self._has_turn(one, now) for entry in _sendable(one)),
            default=None,
        )
        return None if due is None else max(0.0, max(due, self._not_before) - now)

    def _has_turn(self, holding: Holding, now: float) -> bool:
        """Whether records of this holding may go into a request that begins now."""
        if holding.in_flight:
            return False
        return self._backlog_requests < MAX_BACKLOG_REQUESTS or not _is_backlog(holding, now)

    def _start_requests(self) -> None:
        now = self._clock.elapsed()
        while len(self._requests) < MAX_REQUESTS and now >= self._not_before and self._gateway.identified:
            batch = self._collect(now)
            if not batch:
                return
            backlog = _is_backlog(batch[0][0], now)
            self._backlog_requests += backlog
            for holding, _ in batch:
                holding.in_flight = True
            task = asyncio.create_task(self._send(batch))
            self._requests.add(task)
            task.add_done_callback(partial(self._ended, backlog))

    def _ended(self, backlog: bool, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        self._backlog_requests -= backlog
        self._wake.set()
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("reporter.crashed", exc_info=error)

    def _collect(self, now: float) -> Batch:
        """Return what goes into the next request: what is new, or else some of the backlog, in order."""
        for holding in [*self._pending]:
            if not holding.outbox and not holding.in_flight:
                self._pending.pop(holding, None)
        mine = [one for one in self._pending if self._has_turn(one, now)]
        new = [one for one in mine if not _is_backlog(one, now)]
        return self._fill(new, now) or self._fill([one for one in mine if _is_backlog(one, now)], now)

    def _fill(self, holdings: Sequence[Holding], now: float) -> Batch:
        batch: Batch = []
        records = size = 0
        for holding in sorted(holdings, key=lambda one: one.ended):
            if holding.alone and batch:
                continue
            entries = _ready(holding, now, MAX_RECORDS - records)
            if not entries:
                continue
            batch.append((holding, entries))
            records += len(entries)
            size += sum(len(entry.record.body or "") for entry in entries)
            if holding.alone or records >= MAX_RECORDS or size >= MAX_BYTES:
                break
        return batch

    # --- sending ---------------------------------------------------------------------------------

    async def _send(self, batch: Batch) -> None:
        records = tuple(entry.record for _, entries in batch for entry in entries)
        try:
            response = await self._gateway.exchange(ExchangeRequest(records=records))
            _check_shape(records, response.results)
        except GatewayError as error:
            self._failed(batch, error)
            return
        finally:
            for holding, _ in batch:
                holding.in_flight = False
        self._backoff.reset()
        results = iter(response.results)
        for holding, entries in batch:
            self._settle(holding, entries, [*islice(results, len(entries))])

    def _failed(self, batch: Batch, error: GatewayError) -> None:
        if is_fault_of_request(error):
            self._isolate(batch, error)
            return
        verdict = judge(error)
        if verdict in {Verdict.REENROL, Verdict.REVOKED}:
            self._on_identity(verdict, error)
        pause = self._backoff.pause(error)
        self._not_before = self._clock.elapsed() + pause
        # While the gateway asks for patience, another request's success is no reason to lose it.
        self._retry_on_link = not isinstance(error, GatewayBusy)
        if not self._link.up:
            # The heartbeat finds out when the link is back: one request at a time is enough to knock with.
            self._not_before += KNOCK_SECONDS
        log.warning(
            "reporter.failed",
            detail=str(error),
            records=sum(len(entries) for _, entries in batch),
            retry_seconds=round(pause, 3),
        )

    def _isolate(self, batch: Batch, error: GatewayError) -> None:
        """Find the record that makes the gateway refuse a whole request; a record that does so alone is answered."""
        if len(batch) > 1 or len(batch[0][1]) > 1:
            for holding, _ in batch:
                holding.alone = True
            return
        holding, [entry] = batch[0]
        log.error("reporter.record_refused", item_id=holding.key[0], seq=entry.record.seq, detail=str(error))
        status = getattr(error, "status", 422)
        body = f'{{"detail": {{"reason": "airbridge", "message": "the gateway refused the call: {status}"}}}}'
        self._settle(holding, [entry], [_result(entry, status, body)])

    # --- answers ---------------------------------------------------------------------------------

    def _settle(self, holding: Holding, entries: list[Entry], results: list[RecordResult]) -> None:
        reported = writes = 0
        for entry, result in zip(entries, results, strict=True):
            if result.refused in _FENCED:
                self._fence(holding, result)
                return
            if result.refused in _PASSING or result.status == 503:
                self._not_before = self._clock.elapsed() + self._backoff.pause()
                break
            holding.outbox.remove(entry)
            entry.answer(result)
            if entry.write:
                reported, writes = entry.record.seq, writes + 1
                holding.committed = holding.committed or entry.final
                self._on_answer(holding, entry, result)
        if reported:
            self._journal.submit(MarkReported(holding.key, reported))
            first = next(entry for entry in entries if entry.write)
            self._events.note(
                "report.delivered",
                holding.key,
                began_at=first.record.recorded_at,
                records=writes,
                final=holding.committed,
            )
        holding.alone = holding.alone and bool(holding.outbox)
        if not holding.outbox:
            self._pending.pop(holding, None)

    def _fence(self, holding: Holding, result: RecordResult) -> None:
        """The control plane has moved on: nothing this attempt still has to say will be heard."""
        holding.fenced = result.refused
        self._events.note("report.refused", holding.key, reason=result.refused)
        dropped = [*holding.outbox]
        holding.outbox.clear()
        self._pending.pop(holding, None)
        for entry in dropped:
            entry.answer(_result(entry, 409, None, result.refused))
        self._on_fenced(holding, result)


def _is_backlog(holding: Holding, now: float) -> bool:
    return holding.ended and bool(holding.outbox) and now - holding.outbox[0].due_at > BACKLOG_SECONDS


def _ready(holding: Holding, now: float, room: int) -> list[Entry]:
    """Return the entries to send, from the first: all that are on the disk, if one of them is due."""
    while holding.outbox and holding.outbox[0].abandoned:
        holding.outbox.popleft()
    sendable = [*_sendable(holding)]
    if not any(entry.due_at <= now for entry in sendable):
        return []
    entries: list[Entry] = []
    size = 0
    for entry in sendable:
        if len(entries) >= room or size >= MAX_BYTES:
            break
        entries.append(entry)
        size += len(entry.record.body or "")
    return entries[:1] if holding.alone else entries


def _sendable(holding: Holding) -> Iterator[Entry]:
    """Yield the entries that may be sent, from the first: up to one that is not on the disk yet."""
    for entry in holding.outbox:
        if not entry.durable:
            return
        if not entry.abandoned:
            yield entry


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


def _check_shape(records: Sequence[object], results: Sequence[RecordResult]) -> None:
    def names(rows: Sequence[object]) -> list[tuple[object, ...]]:
        return [tuple(getattr(row, name) for name in ("item_id", "epoch", "seq")) for row in rows]

    if names(records) != names(results):
        raise GatewayGarbage(
            f"{len(results)} results that do not stand for the {len(records)} records asked about"
        )
