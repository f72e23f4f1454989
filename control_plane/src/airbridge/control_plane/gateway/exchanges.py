"""Exchange: what a task says to the Task Execution API is applied in order, once, under its epoch.

The records of one work item are one transaction: Airflow's own writes, their idempotency keys and the
ledger's row commit together, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import select

from airbridge.control_plane._airflow import Answer, ExecutionApp
from airbridge.control_plane.gateway import calls
from airbridge.control_plane.gateway.authentication import Caller
from airbridge.control_plane.gateway.calls import Call, Denied
from airbridge.control_plane.gateway.database import RolledBack, Unit, transient, unit
from airbridge.control_plane.gateway.facts import facts
from airbridge.control_plane.gateway.fencing import Fence, fence
from airbridge.control_plane.policy import OWN, Policy
from airbridge.executor.ledger import audit, clock, events, items, records
from airbridge.executor.ledger.models import ItemState, Outcome, RecordRow, WorkItemRow
from airbridge.executor.protocol import Record, RecordResult, RefusalReason

log = structlog.get_logger()

EPILOGUE: Final = timedelta(minutes=10)
"""How long after its final state a task may still call: its callbacks and extra links run after it."""

Ended = tuple[str, str, str, float | None]
"""DAG, task, state, and seconds since its claim."""

_JSON: Final = {"content-type": "application/json"}
_FAILED_HERE: Final = Answer(
    500, _JSON, json.dumps({"detail": "the control plane could not apply this call"})
)


class _RecordFailed(Exception):  # noqa: N818 - names what it carries
    """One record cannot be applied as it is; `answer` is the one to keep for it when the others are."""

    def __init__(self, index: int, answer: Answer) -> None:
        super().__init__(f"record {index}")
        self.index = index
        self.answer = answer


@dataclass(frozen=True, slots=True)
class Exchanges:
    """Applies records. Safe for use by many threads."""

    app: ExecutionApp
    policy: Policy
    on_ended: Callable[[str, str, str, float | None], None] = lambda *_: None
    """Hears of every task that reported a state, once that is committed: DAG, task, state, seconds since its claim."""

    def apply(self, caller: Caller, of_item: Sequence[Record]) -> list[RecordResult]:
        """Apply the records of one work item under one epoch, in their order.

        A database that is away or busy undoes all of them and answers 503 to each: send them again.
        """
        settled_answers: dict[int, Answer] = {}
        while True:
            try:
                ended: list[Ended] = []
                with unit() as work:
                    results = _Transaction(self, work, caller, settled_answers, ended).apply(of_item)
                for each in ended:
                    self.on_ended(*each)
                return results
            except _RecordFailed as failed:
                settled_answers[failed.index] = failed.answer
            except Exception as error:  # the outer edge: whatever it is, nothing was committed
                item = of_item[0].item_id
                log.warning(
                    "exchange.undone",
                    item_id=str(item),
                    worker=caller.name.worker,
                    transient=transient(error),
                    exc_info=error,
                )
                return [_result(record, Answer(503, _JSON)) for record in of_item]


@dataclass(frozen=True, slots=True)
class _Transaction:
    """The records of one item inside one transaction."""

    exchanges: Exchanges
    work: Unit
    caller: Caller
    known: dict[int, Answer]
    ended: list[Ended]

    def apply(self, of_item: Sequence[Record]) -> list[RecordResult]:
        first = of_item[0]
        item_id, epoch = str(first.item_id), first.epoch
        writes = any(record.method not in calls.READS for record in of_item)
        row = self._row(item_id, lock=writes)
        if row is not None:
            structlog.contextvars.bind_contextvars(ti_id=row.ti_id, trace_id=events.trace_id(row.trace))
        now = clock.now(self.work.session) if writes else None
        worker = self.caller.name.worker
        judged = fence(row, worker, epoch)
        applied = records.find(self.work.session, item_id, epoch) if writes and judged.held_once else {}
        results = []
        refused = 0
        for index, record in enumerate(of_item):
            judged = fence(row, worker, epoch)
            kept = applied.get(record.seq) if record.method not in calls.READS else None
            if kept is not None:
                results.append(_result(record, _kept_answer(kept)))
            elif row is None or not self._may_call(row, judged):
                refused += 1
                results.append(_fenced(record, judged))
            else:
                results.append(_result(record, self._one(row, index, record, now)))
        if refused:
            self._note_refused(row, item_id, epoch, judged, refused)
        return results

    def _row(self, item_id: str, *, lock: bool) -> WorkItemRow | None:
        if lock:
            return items.lock(self.work.session, [item_id]).get(item_id)
        row: WorkItemRow | None = self.work.session.get(WorkItemRow, item_id)
        return row

    def _may_call(self, row: WorkItemRow, judged: Fence) -> bool:
        """Whether the caller holds the row, or held it to its end and has only just reported that."""
        if judged.reason is None:
            return True
        if judged.reason is not RefusalReason.SETTLED or row.settled_at is None:
            return False
        recent = clock.now(self.work.session) - row.settled_at < EPILOGUE
        return recent and not self._queued_again(row)

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

    def _one(self, row: WorkItemRow, index: int, record: Record, now: datetime | None) -> Answer:
        call = calls.judge(
            record, facts(row), self.caller.scopes, self.exchanges.policy, lambda: self._own_assets(row)
        )
        if isinstance(call, Denied):
            answer = self._deny(row, record, call)
            if call.ends and row.state != ItemState.SETTLED:
                self._fail(row, index, call, now)
        elif call.ends and row.state == ItemState.SETTLED:
            answer = _conflict("the task has reported its state already")
        else:
            answer = self.known.get(index) or self._dispatch(index, call)
            if call.ends:
                self._end(row, call, answer, now)
            if call.rule != OWN:
                self._note_granted(row, call)
        if record.method not in calls.READS:
            records.add(
                self.work.session,
                item_id=row.id,
                epoch=record.epoch,
                seq=record.seq,
                status=answer.status,
                headers=dict(answer.headers),
                body=answer.body,
                at=now,
            )
        return answer

    def _own_assets(self, row: WorkItemRow) -> Collection[str]:
        return self.exchanges.app.declared_assets(self.work.session, row.dag_id, row.task_id)

    def _fail(self, row: WorkItemRow, index: int, denied: Denied, now: datetime | None) -> None:
        """End a task whose final state was denied as failed: nothing else would ever end it."""
        if index not in self.known:
            end = (now or clock.now(self.work.session)).isoformat()
            body = json.dumps({"state": "failed", "end_date": end})
            self._dispatch(index, Call("PATCH", f"task-instances/{row.ti_id}/state", "", body, ends=True))
        items.settle(self.work.session, row, Outcome.FAILED, denied.detail, at=now)

    def _note_granted(self, row: WorkItemRow, call: Call) -> None:
        """Write down what a rule of the policy let a task reach beyond its own."""
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

    def _dispatch(self, index: int, call: Call) -> Answer:
        try:
            return self.work.call(self.exchanges.app, call)
        except RolledBack as error:
            if not call.writes:
                # Airflow answers "not found" where its database failed it: not something to tell a task.
                raise
            said_no = 400 <= error.answer.status < 500
            raise _RecordFailed(index, error.answer if said_no else _FAILED_HERE) from error
        except Exception as error:
            if transient(error):
                raise
            log.exception("exchange.call_failed", method=call.method, path=call.path)
            raise _RecordFailed(index, _FAILED_HERE) from error

    def _end(self, row: WorkItemRow, call: Call, answer: Answer, now: datetime | None) -> None:
        """Settle the row if this call ended the work item, one way or another."""
        session = self.work.session
        if answer.status < 300:
            state = str(_json(call.body).get("state"))
            items.settle(
                session, row, Outcome.FAILED if state == "failed" else Outcome.SUCCESS, state, at=now
            )
            ran = (now - row.claimed_at).total_seconds() if now and row.claimed_at else None
            self.ended.append((row.dag_id, row.task_id, state, ran))
        elif answer.status in {404, 409}:
            items.settle(session, row, Outcome.CANCELLED, _why_not(answer), at=now)
        elif answer.status >= 500:
            items.settle(
                session, row, Outcome.FAILED, "the control plane could not apply the task's final state"
            )

    def _deny(self, row: WorkItemRow, record: Record, denied: Denied) -> Answer:
        actor = self.caller.name.uri
        events.record(
            self.work.session,
            "call.denied",
            actor,
            row=row,
            method=record.method,
            path=record.path[:500],
            why=denied.detail,
        )
        audit.record(
            self.work.session,
            "call.denied",
            "denied",
            actor,
            address=self.caller.address,
            rule=denied.rule,
            row=row,
            method=record.method,
            path=record.path,
            why=denied.detail,
        )
        log.warning(
            "call.denied",
            worker=self.caller.name.worker,
            ti_id=row.ti_id,
            path=record.path[:500],
            why=denied.detail,
        )
        body = {"detail": {"reason": "forbidden", "message": denied.detail}}
        return Answer(403, _JSON, json.dumps(body))

    def _note_refused(
        self, row: WorkItemRow | None, item_id: str, epoch: int, judged: Fence, count: int
    ) -> None:
        events.record(
            self.work.session,
            "exchange.refused",
            self.caller.name.uri,
            row=row,
            region=self.caller.name.region,
            worker_id=self.caller.name.worker,
            item=item_id,
            under_epoch=epoch,
            reason=str(judged.reason),
            records=count,
        )
        audit.record(
            self.work.session,
            "exchange.refused",
            "denied",
            self.caller.name.uri,
            address=self.caller.address,
            rule=f"lease: {judged.reason}",
            row=row,
            region=self.caller.name.region,
            worker_id=self.caller.name.worker,
            item=item_id,
            under_epoch=epoch,
            reason=str(judged.reason),
            why=judged.detail,
            records=count,
        )
        log.warning(
            "exchange.refused",
            worker=self.caller.name.worker,
            item_id=item_id,
            epoch=epoch,
            reason=str(judged.reason),
            records=count,
        )


def _kept_answer(kept: RecordRow) -> Answer:
    return Answer(kept.status, kept.headers, kept.body)


def _conflict(message: str) -> Answer:
    return Answer(409, _JSON, json.dumps({"detail": {"reason": "invalid_state", "message": message}}))


def _fenced(record: Record, judged: Fence) -> RecordResult:
    answer = _conflict(judged.detail)
    return _result(record, answer, judged.reason)


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


def _json(text: str | None) -> dict[str, Any]:
    try:
        found = json.loads(text or "{}")
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
