"""Exchanges: a task's calls of the Task Execution API, applied in order, exactly once, under its epoch.

The records of one work item are one transaction: Airflow's own writes, their idempotency keys and the
ledger's row commit together, or not at all.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import structlog
from sqlalchemy import select

from airbridge.control_plane import audit_events
from airbridge.control_plane._airflow import Answer, ExecutionApp
from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.auth import task_permissions
from airbridge.control_plane.gateway.auth.authentication import Caller, check_revocation
from airbridge.control_plane.gateway.auth.residency import Residency, SecretPlaces
from airbridge.control_plane.gateway.auth.task_permissions import Call, Denied
from airbridge.control_plane.gateway.database import RolledBack, Unit, transient, unit
from airbridge.control_plane.gateway.triggers.events import Event, Failed, Fired
from airbridge.control_plane.gateway.triggers.placing import EdgeTriggers, is_trigger
from airbridge.control_plane.gateway.validation.bodies import Bodies
from airbridge.control_plane.gateway.work import edge_times, moves, refused_writes
from airbridge.control_plane.gateway.work.fencing import Fence, fence, is_claimed
from airbridge.control_plane.gateway.work.stored_xcoms import StoredXComs
from airbridge.control_plane.policy.decisions import OWN, AssetRef, Policy
from airbridge.control_plane.policy.facts import facts
from airbridge.core.protocol import Record, RecordResult, RefusalReason
from airbridge.executor.ledger import audit, clock, events, leases, records, workers
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow
from airbridge.executor.ledger.records import Applied

log = structlog.get_logger()

# A task may still call this long after its final state: its callbacks and extra links run after it.
EPILOGUE: Final = timedelta(minutes=10)

# States of a failed attempt. After a refused write that the task believes to be accepted, an attempt ends in no other.
_FAILURES: Final = frozenset({"failed", "up_for_retry"})

# DAG, task, state, and seconds since its claim.
Ended = tuple[str, str, str, float | None]

_JSON: Final = {"content-type": "application/json"}
_FAILED_HERE: Final = Answer(
    500, _JSON, json.dumps({"detail": "the control plane could not apply this call"})
)


class _RecordFailed(Exception):  # noqa: N818 - names what it carries
    """One record cannot be applied; `answer` is stored for it when the others are applied again."""

    def __init__(self, index: int, answer: Answer) -> None:
        super().__init__(f"record {index}")
        self.index = index
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Exchanges:
    """Applies records. Thread-safe."""

    app: ExecutionApp
    policy: Policy
    bodies: Bodies
    residency: Residency = field(default_factory=Residency)
    stored_xcoms: StoredXComs = field(default_factory=StoredXComs)
    triggers: EdgeTriggers = field(default_factory=EdgeTriggers)
    #: Called for every task that reported a state, after the commit: DAG, task, state, seconds since its
    #: claim.
    on_ended: Callable[[str, str, str, float | None], None] = lambda *_: None
    #: Called for XComs that moved, after the commit: region, pool, bytes.
    on_moved: Callable[[str, str, int], None] = lambda *_: None
    #: Called for writes that were applied now, after the commit; one that is answered again is none.
    on_reported: Callable[[Caller, Sequence[Record]], None] = lambda *_: None

    def apply(
        self, caller: Caller, item_records: Sequence[Record], *, judge: bool = False
    ) -> list[RecordResult]:
        """Apply the records of one work item under one epoch, in their order.

        While the database is down or busy none is applied, and each is answered with a 503, to be sent again. With `judge`, the
        caller is checked in the same transaction. Raises `Refused` then, if it is revoked.
        """
        settled_answers: dict[int, Answer] = {}
        while True:
            try:
                ended: list[Ended] = []
                moved: list[int] = []
                reported: list[Record] = []
                with unit() as work:
                    if judge:
                        check_revocation(work.session, caller)
                    transaction = _Transaction(self, work, caller, settled_answers, ended, moved, reported)
                    results = transaction.apply(item_records)
                for each in ended:
                    self.on_ended(*each)
                self.on_reported(caller, reported)
                if total := sum(moved):
                    self.on_moved(caller.name.region, caller.name.pool, total)
                return results
            except _RecordFailed as failed:
                settled_answers[failed.index] = failed.answer
            except Refused:
                raise
            except (
                Exception
            ) as error:  # outer edge: nothing was committed, so that every record can be retried
                item = item_records[0].item_id
                log.warning(
                    "exchange.rolled_back",
                    item_id=str(item),
                    worker=caller.name.worker,
                    transient=transient(error),
                    exc_info=error,
                )
                return [_result(record, Answer(503, _JSON)) for record in item_records]


@dataclass(frozen=True, slots=True)
class _Transaction:
    """Records of one item inside one transaction."""

    exchanges: Exchanges
    work: Unit
    caller: Caller
    known: dict[int, Answer]
    ended: list[Ended]
    moved: list[int]
    reported: list[Record]
    #: Whether the task's trigger runs on a worker, once that was decided: a deferral is judged and applied by one answer.
    at_edge: dict[str, bool] = field(default_factory=dict)
    #: Writes that were applied now, kept in one statement.
    kept: list[Applied] = field(default_factory=list)

    def apply(self, item_records: Sequence[Record]) -> list[RecordResult]:
        first = item_records[0]
        item_id, epoch = str(first.item_id), first.epoch
        writes = any(record.method not in task_permissions.READS for record in item_records)
        row, now = self._row(item_id, lock=writes)
        if row is not None:
            structlog.contextvars.bind_contextvars(ti_id=row.ti_id, trace_id=events.trace_id(row.trace))
        worker = self.caller.name.worker
        verdict = fence(row, worker, epoch)
        applied = records.find(self.work.session, item_id, epoch) if writes and verdict.was_holder else {}
        results: list[RecordResult] = []
        refused = 0
        for index, record in enumerate(item_records):
            verdict = fence(row, worker, epoch)
            kept = applied.get(record.seq) if record.method not in task_permissions.READS else None
            if kept is not None:
                results.append(_result(record, _kept_answer(kept)))
            elif row is None or not self._may_call(row, record, verdict):
                refused += 1
                results.append(_fenced(record, verdict))
            else:
                results.append(_result(record, self._apply_record(row, index, record, now, applied)))
        records.add(self.work.session, item_id, epoch, self.kept, at=now)
        if refused:
            self._record_refused(row, item_id, epoch, verdict, refused)
        return results

    def _row(self, item_id: str, *, lock: bool) -> tuple[WorkItemRow | None, datetime | None]:
        """Return the row, and the time if it is locked: a read needs none."""
        if lock:
            rows, now = leases.lock_at(self.work.session, [item_id])
            return rows.get(item_id), now
        return self.work.session.get(WorkItemRow, item_id), None

    def _may_call(self, row: WorkItemRow, record: Record, verdict: Fence) -> bool:
        """Return whether the caller holds the row, or held it until it reported its end, less than `EPILOGUE` ago.

        Once the task is queued again, it may only read. A cancelled task may read until its process has ended: its
        `on_kill` may need a connection.
        """
        if verdict.reason is None:
            return True
        reads = record.method in task_permissions.READS
        if reads and verdict.reason is RefusalReason.CANCELLED:
            return is_claimed(row, self.caller.name.worker, record.epoch)
        if verdict.reason is not RefusalReason.SETTLED or row.settled_at is None:
            return False
        recent = clock.now(self.work.session) - row.settled_at < EPILOGUE
        return recent and (reads or not self._queued_again(row))

    def _queued_again(self, row: WorkItemRow) -> bool:
        same_task = (
            select(WorkItemRow.id)
            .where(
                WorkItemRow.dag_id == row.dag_id,
                WorkItemRow.run_id == row.run_id,
                WorkItemRow.task_id == row.task_id,
                WorkItemRow.map_index == row.map_index,
                WorkItemRow.placed_at > row.settled_at,
            )
            .limit(1)
        )
        return self.work.session.execute(same_task).first() is not None

    def _apply_record(
        self,
        row: WorkItemRow,
        index: int,
        record: Record,
        now: datetime | None,
        applied: dict[int, Applied],
    ) -> Answer:
        call = self._judge(row, record)
        if isinstance(call, Denied):
            answer = self._deny(row, record, call)
            if call.fails and row.state != ItemState.SETTLED:
                self._fail(row, index, call.detail, now)
        elif call.ends and row.state == ItemState.SETTLED:
            answer = _conflict("the task has reported its state already")
        elif call.ends and (lost := self._lost_writes(row, record, call, applied)):
            message = f"the control plane refused {lost}, after its worker had accepted it"
            self._fail(row, index, message, now)
            answer = _conflict(message, "refused_write")
        else:
            call = self._by_our_clock(row, call, now)
            answer = self.known.get(index) or self._dispatch(row, index, call)
            if call.ends:
                self._settle_ended(row, record, call, answer, now)
            self._record_applied(row, record, call, answer)
        if record.method not in task_permissions.READS:
            kept = Applied(record.seq, answer.status, dict(answer.headers), answer.body)
            applied[record.seq] = kept
            self.kept.append(kept)
            if answer.status < 400:
                self.reported.append(record)
        return answer

    def _by_our_clock(self, row: WorkItemRow, call: Call, now: datetime | None) -> Call:
        if not call.ends or call.body is None or now is None:
            return call

        def skew() -> float:
            return workers.clock_skew(self.work.session, self.caller.name.worker)

        return replace(call, body=edge_times.corrected(call.body, now, row.claimed_at, skew))

    def _record_applied(self, row: WorkItemRow, record: Record, call: Call, answer: Answer) -> None:
        """Record what an applied call moved, what it was granted, and Airflow's refusal of it."""
        self.moved.append(moves.record(self.work.session, row, call, answer, self.caller.name.uri))
        if call.rule != OWN:
            self._record_granted(row, call)
        if call.secret is not None:
            self._record_secret(row, call.secret)
        if call.writes and answer.status >= 300:
            self._record_refused_write(row, record, answer)

    def _judge(self, row: WorkItemRow, record: Record) -> Call | Denied:
        task, residency = facts(row), self.exchanges.residency
        judged = task_permissions.judge_trigger(record, task, residency) if is_trigger(row) else None
        return judged or task_permissions.judge(
            record,
            task,
            self.caller.scopes,
            self.exchanges.policy,
            bodies=self.exchanges.bodies.with_triggers_at(lambda: self._trigger_at_edge(row)),
            own_assets=lambda: self._own_assets(row),
            residency=residency,
        )

    def _trigger_at_edge(self, row: WorkItemRow) -> bool:
        if row.id not in self.at_edge:
            self.at_edge[row.id] = self.exchanges.triggers.wanted(self.work.session, row)
        return self.at_edge[row.id]

    def _own_assets(self, row: WorkItemRow) -> Collection[AssetRef]:
        return self.exchanges.app.declared_assets(self.work.session, row.dag_id, row.run_id, row.task_id)

    def _lost_writes(
        self, row: WorkItemRow, record: Record, call: Call, applied: Mapping[int, Applied]
    ) -> str:
        """Return the refused writes that the task believes to be accepted, with the reasons; empty if it does not succeed."""
        if _state(call.body) in _FAILURES:
            return ""
        seqs = [seq for seq, kept in applied.items() if seq > record.answered and kept.status >= 300]
        if not seqs:
            return ""
        self.work.session.flush()
        return refused_writes.describe(self.work.session, row, seqs)

    def _fail(self, row: WorkItemRow, index: int, detail: str, now: datetime | None) -> None:
        """Fail an attempt whose final state cannot be applied: nothing else would ever end it. Its retries hold."""
        if is_trigger(row):
            self.work.apply(partial(Failed((detail,)).apply, trigger_id=row.trigger_id))
            leases.settle(self.work.session, row, Outcome.FAILED, detail, at=now)
            return
        retry = bool(row.started and row.started["ti_context"].get("should_retry"))
        if index not in self.known:
            end = (now or clock.now(self.work.session)).isoformat()
            body = json.dumps({"state": "up_for_retry" if retry else "failed", "end_date": end})
            self._dispatch(
                row, index, Call("PATCH", f"task-instances/{row.ti_id}/state", "", body, ends=True)
            )
        leases.settle(self.work.session, row, Outcome.FAILED, detail, at=now)
        self._note_ended(row, "up_for_retry" if retry else "failed", now)

    def _record_refused_write(self, row: WorkItemRow, record: Record, answer: Answer) -> None:
        """Record in the timeline that Airflow refused a write; a denial has an event of its own."""
        events.record(
            self.work.session,
            "write.refused",
            self.caller.name.uri,
            row=row,
            seq=record.seq,
            method=record.method,
            path=record.path,
            status=answer.status,
            why=_reason(answer),
        )

    def _record_granted(self, row: WorkItemRow, call: Call) -> None:
        """Record an access beyond the task's own resources that a policy rule allowed."""
        access = call.access
        audit.record(
            self.work.session,
            "call.granted",
            "granted",
            self.caller.name.uri,
            address=self.caller.address,
            rule=f"policy rule {call.rule}",
            row=row,
            action=access.action if access else None,
            name=access.name if access else None,
            dag=access.dag_id if access else None,
            task_of=row.dag_id,
        )

    def _record_secret(self, row: WorkItemRow, secret: SecretPlaces) -> None:
        """Record that a task reads a secret from its region's backend. The value never comes here."""
        audit.record(
            self.work.session,
            "secret.read",
            "granted",
            self.caller.name.uri,
            address=self.caller.address,
            rule=f"policy rule {secret.rule}",
            row=row,
            action=secret.access.action,
            name=secret.access.name,
            backend=secret.backend,
            places=list(secret.places),
            task_of=row.dag_id,
        )

    def _dispatch(self, row: WorkItemRow, index: int, call: Call) -> Answer:
        if call.stored is not None:
            return self.exchanges.stored_xcoms.answer(call.stored)
        if call.secret is not None:
            return Answer(200, _JSON, json.dumps({"places": call.secret.places}))
        try:
            if call.fired is not None:
                self.work.apply(partial(call.fired.apply, trigger_id=row.trigger_id))
                return Answer(204)
            return self.work.call(self.exchanges.app, call)
        except RolledBack as error:
            if not call.writes:
                # Airflow answers 404 where its database failed: the task must not see that as an answer.
                raise
            rejected = 400 <= error.answer.status < 500
            raise _RecordFailed(index, error.answer if rejected else _FAILED_HERE) from error
        except Exception as error:
            if transient(error):
                raise
            log.exception("exchange.call_failed", method=call.method, path=call.path)
            raise _RecordFailed(index, _FAILED_HERE) from error

    def _settle_ended(
        self, row: WorkItemRow, record: Record, call: Call, answer: Answer, now: datetime | None
    ) -> None:
        """Settle the row if this call ended the work item."""
        session = self.work.session
        if call.fired is not None:
            events.record(
                session,
                "trigger.fired",
                self.caller.name.uri,
                row=row,
                at=now,
                fired_at=record.recorded_at.isoformat(),
                outcome=call.fired.outcome,
            )
            self._settle_fired(row, call.fired, answer, now)
        elif answer.status < 300:
            state = _state(call.body)
            outcome = Outcome.FAILED if state in _FAILURES else Outcome.SUCCESS
            leases.settle(session, row, outcome, state, at=now)
            self._note_ended(row, state, now)
            if state == "deferred" and self._trigger_at_edge(row):
                self.exchanges.triggers.place(session, row, now)
        elif answer.status in {404, 409}:
            leases.settle(session, row, Outcome.CANCELLED, _why_not(answer), at=now)
        elif answer.status >= 500:
            leases.settle(
                session, row, Outcome.FAILED, "the control plane could not apply the task's final state"
            )

    def _settle_fired(self, row: WorkItemRow, fired: Event, answer: Answer, now: datetime | None) -> None:
        """Settle the row of a trigger. Its task fails if the event cannot be applied: nothing else would ever resume it."""
        if answer.status >= 300:
            detail = "the control plane could not apply the trigger's event"
            self.work.apply(partial(Failed((detail,)).apply, trigger_id=row.trigger_id))
            leases.settle(self.work.session, row, Outcome.FAILED, detail, at=now)
            return
        outcome = Outcome.SUCCESS if isinstance(fired, Fired) else Outcome.FAILED
        leases.settle(self.work.session, row, outcome, fired.outcome, at=now)

    def _note_ended(self, row: WorkItemRow, state: str, now: datetime | None) -> None:
        ran = (now - row.claimed_at).total_seconds() if now and row.claimed_at else None
        self.ended.append((row.dag_id, row.task_id, state, ran))

    def _deny(self, row: WorkItemRow, record: Record, denied: Denied) -> Answer:
        audit_events.record(
            self.work.session,
            "call.denied",
            "denied",
            self.caller.name.uri,
            address=self.caller.address,
            rule=denied.rule,
            row=row,
            worker_id=self.caller.name.worker,
            log_level=logging.WARNING,
            method=record.method,
            path=record.path,
            seq=record.seq,
            why=denied.detail,
        )
        body = {"detail": {"reason": "forbidden", "message": denied.detail}}
        return Answer(403, _JSON, json.dumps(body))

    def _record_refused(
        self, row: WorkItemRow | None, item_id: str, epoch: int, verdict: Fence, count: int
    ) -> None:
        audit_events.record(
            self.work.session,
            "exchange.refused",
            "denied",
            self.caller.name.uri,
            address=self.caller.address,
            rule=f"lease: {verdict.reason}",
            row=row,
            region=self.caller.name.region,
            worker_id=self.caller.name.worker,
            log_level=logging.WARNING,
            item=item_id,
            under_epoch=epoch,
            reason=str(verdict.reason),
            why=verdict.detail,
            records=count,
        )


def _kept_answer(kept: Applied) -> Answer:
    return Answer(kept.status, kept.headers, kept.body)


def _conflict(message: str, reason: str = "invalid_state") -> Answer:
    return Answer(409, _JSON, json.dumps({"detail": {"reason": reason, "message": message}}))


def _fenced(record: Record, verdict: Fence) -> RecordResult:
    answer = _conflict(verdict.detail)
    return _result(record, answer, verdict.reason)


def _result(record: Record, answer: Answer, refused: RefusalReason | None = None) -> RecordResult:
    return RecordResult(
        item_id=record.item_id,
        epoch=record.epoch,
        seq=record.seq,
        status=answer.status,
        headers=dict(answer.headers),
        body=answer.body,
        refused=refused,
    )


def _why_not(answer: Answer) -> str:
    detail = _json(answer.body).get("detail")
    if not isinstance(detail, dict):
        return f"Airflow answered {answer.status}"
    state = detail.get("previous_state")
    return f"Airflow has it as {state}" if state else str(detail.get("message", detail))


def _state(body: str | None) -> str:
    return str(_json(body).get("state"))


def _reason(answer: Answer) -> str:
    """Return Airflow's reason for a refusal."""
    detail = _json(answer.body).get("detail")
    if isinstance(detail, dict):
        return str(detail.get("message", detail))
    return str(detail or f"status {answer.status}")


def _json(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
