"""Claim: verified work items become leases, and their task instances start, in one transaction."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from airbridge.control_plane._airflow import Answer, ExecutionApp
from airbridge.control_plane.gateway.authentication import Caller
from airbridge.control_plane.gateway.calls import Call
from airbridge.control_plane.gateway.database import RolledBack, Unit, transient, unit
from airbridge.control_plane.gateway.facts import facts
from airbridge.control_plane.gateway.workers import standing
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.parity import Parity
from airbridge.control_plane.policy import Access, Policy
from airbridge.executor.exceptions import InvalidEnvelope
from airbridge.executor.ledger import audit, clock, events, items
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow
from airbridge.executor.protocol import (
    BundleRef,
    ClaimRequest,
    ClaimResponse,
    DisconnectPolicy,
    Disposition,
    Grant,
    Refusal,
    RefusalReason,
    StartedAs,
    WorkItem,
)

log = structlog.get_logger()

UNIX_NAME: Final = "airbridge"
RETURN_SECONDS: Final = 30.0
"""How long a worker that may not claim now leaves a message to others."""

_SETTLED: Final = {
    Outcome.CANCELLED: RefusalReason.CANCELLED,
    Outcome.LOST: RefusalReason.LOST,
}


@dataclass(frozen=True, slots=True)
class _Opened:
    """A verified work item and its place in the request."""

    index: int
    item: WorkItem

    def refuse(
        self, reason: RefusalReason, detail: str, disposition: Disposition = Disposition.DROP
    ) -> Refusal:
        """Refuse it."""
        return Refusal(
            index=self.index,
            item_id=self.item.item_id,
            reason=reason,
            detail=detail,
            disposition=disposition,
            retry_after=RETURN_SECONDS if disposition is Disposition.RETURN else None,
        )


class _NotStartable(Exception):  # noqa: N818 - names the condition
    """A task instance could not be started for a reason that another attempt meets again."""

    def __init__(self, item_id: str) -> None:
        super().__init__(item_id)
        self.item_id = item_id


@dataclass(frozen=True, slots=True)
class Claims:
    """Grants work items to workers. Safe for use by many threads."""

    app: ExecutionApp
    keyring: Keyring
    parity: Parity
    policy: Policy
    lease_seconds: float

    def claim(self, caller: Caller, request: ClaimRequest) -> ClaimResponse:
        """Grant or refuse each envelope. What is granted is committed when this returns."""
        caller.require("work:claim", queue=caller.name.queue)
        looked_at = [self._open(index, envelope) for index, envelope in enumerate(request.envelopes)]
        opened = [each for each in looked_at if isinstance(each, _Opened)]
        refused = [each for each in looked_at if isinstance(each, Refusal)]
        unstartable: set[str] = set()
        while True:
            try:
                with unit() as work:
                    return _Batch(self, work, caller, unstartable).grant(opened, refused)
            except _NotStartable as error:
                unstartable.add(error.item_id)

    def _open(self, index: int, envelope: str) -> _Opened | Refusal:
        try:
            return _Opened(index, self.keyring.keys.verifier.open(envelope))
        except InvalidEnvelope as error:
            return Refusal(
                index=index, reason=error.reason, detail=error.detail, disposition=Disposition.DEAD_LETTER
            )


@dataclass(frozen=True, slots=True)
class _Batch:
    """One request inside one transaction."""

    claims: Claims
    work: Unit
    caller: Caller
    unstartable: set[str]

    def grant(self, opened: Sequence[_Opened], refused: Sequence[Refusal]) -> ClaimResponse:
        session = self.work.session
        stopped = standing(session, self.caller, self.claims.parity)
        answers: list[Grant | Refusal] = []
        if stopped is not None:
            answers = [each.refuse(*stopped, Disposition.RETURN) for each in opened]
        elif opened:
            rows = items.lock(session, [each.item.item_id for each in opened])
            now = clock.now(session)
            answers = [self._one(each, rows.get(str(each.item.item_id)), now) for each in opened]
        ti_ids = {each.item.item_id: str(each.item.ti_id) for each in opened}
        for refusal in (*refused, *(each for each in answers if isinstance(each, Refusal))):
            self._note_refusal(refusal, ti_ids.get(refusal.item_id) if refusal.item_id else None)
        return ClaimResponse(
            grants=tuple(each for each in answers if isinstance(each, Grant)),
            refusals=(*refused, *(each for each in answers if isinstance(each, Refusal))),
        )

    def _one(self, opened: _Opened, row: WorkItemRow | None, now: datetime) -> Grant | Refusal:
        refusal = self._refusal(opened, row, now)
        if refusal is not None or row is None:
            return refusal or opened.refuse(RefusalReason.UNKNOWN_ITEM, "there is no such work item")
        if row.state == ItemState.CLAIMED:
            # The answer to this worker's first claim was lost on its way: the same grant again.
            return self._to_grant(row)
        return self._start(opened, row, now)

    def _refusal(self, opened: _Opened, row: WorkItemRow | None, now: datetime) -> Refusal | None:
        item, name = opened.item, self.caller.name
        if item.region != name.region:
            return opened.refuse(RefusalReason.WRONG_REGION, f"it is for region {item.region}")
        if item.pool != name.pool:
            return opened.refuse(RefusalReason.WRONG_POOL, f"it is for pool {item.pool}")
        if row is None or row.ti_id != str(item.ti_id):
            return opened.refuse(RefusalReason.UNKNOWN_ITEM, "there is no such work item")
        if row.state == ItemState.SETTLED:
            reason = _SETTLED.get(row.outcome, RefusalReason.SETTLED)
            return opened.refuse(reason, row.detail or "the work item is settled")
        if row.state == ItemState.CLAIMED:
            if row.worker_id == name.worker and row.epoch == item.epoch + 1:
                return None
            return opened.refuse(RefusalReason.ALREADY_CLAIMED, f"held under epoch {row.epoch}")
        if row.epoch != item.epoch:
            return opened.refuse(RefusalReason.STALE_EPOCH, f"epoch {item.epoch}, now it is {row.epoch}")
        if (row.region, row.pool) != (item.region, item.pool):
            return opened.refuse(RefusalReason.WRONG_REGION, f"it has moved to {row.pool}@{row.region}")
        if item.expires_at <= now:
            return opened.refuse(
                RefusalReason.EXPIRED, f"the message expired at {item.expires_at.isoformat()}"
            )
        ruling = self.claims.policy.judge(facts(row), Access("work:claim", row.queue))
        if not ruling.allowed:
            return opened.refuse(RefusalReason.FORBIDDEN, ruling.why, Disposition.RETURN)
        if row.id in self.unstartable:
            detail = "Airflow could not start the task instance; see the gateway's log"
            items.settle(self.work.session, row, Outcome.FAILED, detail)
            return opened.refuse(RefusalReason.NOT_STARTABLE, detail)
        return None

    def _start(self, opened: _Opened, row: WorkItemRow, now: datetime) -> Grant | Refusal:
        started_as = StartedAs(hostname=self.caller.name.worker, unixname=UNIX_NAME, pid=row.epoch + 1)
        answer = self._run(row, started_as, now)
        if answer.status != 200 or answer.body is None:
            detail = f"Airflow does not start it: {_message(answer)}"
            items.settle(self.work.session, row, Outcome.CANCELLED, detail)
            return opened.refuse(RefusalReason.NOT_STARTABLE, detail)
        started = {
            "start_date": now.isoformat(),
            "started_as": started_as.model_dump(),
            "ti_context": json.loads(answer.body),
        }
        policy = DisconnectPolicy.model_validate(row.disconnect)
        items.claim(
            self.work.session,
            row,
            self.caller.name.worker,
            self.claims.lease_seconds,
            policy.lost_after,
            started,
            at=now,
        )
        events.record(self.work.session, "claim.granted", self.caller.name.uri, row=row, at=now)
        audit.record(
            self.work.session,
            "claim.granted",
            "granted",
            self.caller.name.uri,
            address=self.caller.address,
            rule=f"scope work:claim queue={self.caller.name.queue}",
            row=row,
            at=now,
        )
        return self._to_grant(row)

    def _run(self, row: WorkItemRow, started_as: StartedAs, now: datetime) -> Answer:
        body = {"state": "running", "start_date": now.isoformat(), **started_as.model_dump()}
        path = f"task-instances/{row.ti_id}/run"
        try:
            return self.work.call(
                self.claims.app, Call("PATCH", path, query="", body=json.dumps(body), ends=False)
            )
        except Exception as error:
            if transient(error) and not isinstance(error, RolledBack):
                raise
            log.exception("claim.start_failed", item_id=row.id, ti_id=row.ti_id)
            raise _NotStartable(row.id) from error

    def _to_grant(self, row: WorkItemRow) -> Grant:
        workload: dict[str, Any] = row.workload
        return Grant(
            item_id=row.id,
            ti_id=row.ti_id,
            epoch=row.epoch,
            lease_seconds=self.claims.lease_seconds,
            slots=row.slots,
            ti=workload["ti"],
            ti_context=row.started["ti_context"],
            start_date=row.started["start_date"],
            started_as=StartedAs.model_validate(row.started["started_as"]),
            dag_rel_path=workload["dag_rel_path"],
            bundle=BundleRef.model_validate(workload["bundle"]),
            log_path=workload["log_path"],
            disconnect=DisconnectPolicy.model_validate(row.disconnect),
            warm=row.warm,
            trace=row.trace,
        )

    def _note_refusal(self, refusal: Refusal, ti_id: str | None) -> None:
        name = self.caller.name
        item = str(refusal.item_id) if refusal.item_id else None
        events.record(
            self.work.session,
            "claim.refused",
            name.uri,
            region=name.region,
            worker_id=name.worker,
            item_id=item,
            ti_id=ti_id,
            reason=str(refusal.reason),
            why=refusal.detail[:500],
        )
        audit.record(
            self.work.session,
            "claim.refused",
            "denied",
            name.uri,
            address=self.caller.address,
            rule=f"claim: {refusal.reason}",
            region=name.region,
            worker_id=name.worker,
            item=item,
            reason=str(refusal.reason),
            why=refusal.detail,
        )
        log.info(
            "claim.refused",
            worker=name.worker,
            item_id=item,
            reason=str(refusal.reason),
            detail=refusal.detail[:500],
        )


def _message(answer: Answer) -> str:
    try:
        detail = json.loads(answer.body or "{}").get("detail")
    except (ValueError, AttributeError):
        detail = None
    if isinstance(detail, dict):
        state = detail.get("previous_state")
        return f"{detail.get('message')} (it is {state})" if state else str(detail.get("message"))
    return f"it answered {answer.status}"
