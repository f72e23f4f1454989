"""Claims: verified work items become leases and their task instances start, in one transaction."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import select

from airbridge.control_plane import _airflow, audit_events
from airbridge.control_plane._airflow import Answer, ExecutionApp
from airbridge.control_plane.audit_events import Prepared
from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.auth.task_permissions import Call
from airbridge.control_plane.gateway.database import RolledBack, Unit, transient, unit
from airbridge.control_plane.gateway.triggers import _airflow as _triggers
from airbridge.control_plane.gateway.triggers.placing import is_trigger
from airbridge.control_plane.gateway.work.eligibility import standing
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.parity import Parity
from airbridge.control_plane.policy.decisions import DEFINE, OWN, Access, Policy
from airbridge.control_plane.policy.facts import facts
from airbridge.core.exceptions import InvalidEnvelope
from airbridge.core.protocol import (
    TRIGGERS,
    BundleRef,
    ClaimRequest,
    ClaimResponse,
    DisconnectPolicy,
    Disposition,
    Grant,
    ItemKind,
    LeaseRef,
    Refusal,
    RefusalReason,
    Resources,
    StartedAs,
    WorkItem,
)
from airbridge.executor.bundles import versions
from airbridge.executor.ledger import clock, leases, workers
from airbridge.executor.ledger.models import ItemState, Outcome, WorkItemRow
from airbridge.executor.ledger.sharing.limits import Admission, Limits

log = structlog.get_logger()

UNIX_NAME: Final = "airbridge"
# Seconds that a worker which may not claim now leaves a returned message to others.
RETURN_SECONDS: Final = 30.0

_SETTLED: Final = {
    Outcome.CANCELLED: RefusalReason.CANCELLED,
    Outcome.LOST: RefusalReason.LOST,
}


@dataclass(frozen=True, slots=True)
class _Opened:
    """Verified work item and its index in the request."""

    index: int
    item: WorkItem

    def refuse(
        self, reason: RefusalReason, detail: str, disposition: Disposition = Disposition.DROP
    ) -> Refusal:
        """Return its refusal."""
        return Refusal(
            index=self.index,
            item_id=self.item.item_id,
            reason=reason,
            detail=detail,
            disposition=disposition,
            retry_after=RETURN_SECONDS if disposition is Disposition.RETURN else None,
        )


class _NotStartable(Exception):  # noqa: N818 - names the condition
    """A task instance could not be started, for a reason that a retry would meet again."""

    def __init__(self, item_id: str) -> None:
        super().__init__(item_id)
        self.item_id = item_id


@dataclass(frozen=True, slots=True)
class Claims:
    """Grants work items to workers. Thread-safe."""

    app: ExecutionApp
    keyring: Keyring
    parity: Parity
    policy: Policy
    lease_seconds: float
    limits: Limits = field(default_factory=Limits)
    #: Called for new grants, after the commit; one that is given again is none.
    on_granted: Callable[[Caller, Sequence[Grant]], None] = lambda *_: None

    def claim(self, caller: Caller, request: ClaimRequest) -> ClaimResponse:
        """Grant or refuse each envelope. Grants are committed when this returns. Raises `Refused`."""
        caller.require("work:claim", queue=caller.name.queue)
        results = [self._open(index, envelope) for index, envelope in enumerate(request.envelopes)]
        opened = [each for each in results if isinstance(each, _Opened)]
        refused = [each for each in results if isinstance(each, Refusal)]
        # An item that Airflow cannot start undoes the whole transaction: the batch is repeated without it.
        unstartable: set[str] = set()
        while True:
            try:
                with unit() as work:
                    batch = _Batch(self, work, caller, unstartable)
                    answer = batch.grant(opened, refused, request.offered)
            except _NotStartable as error:
                unstartable.add(error.item_id)
                continue
            new = {each.event["item_id"] for each in batch.granted}
            self.on_granted(caller, [each for each in answer.grants if str(each.item_id) in new])
            return answer

    def _open(self, index: int, envelope: str) -> _Opened | Refusal:
        try:
            return _Opened(index, self.keyring.keys.verifier.open(envelope))
        except InvalidEnvelope as error:
            return Refusal(
                index=index, reason=error.reason, detail=error.detail, disposition=Disposition.DEAD_LETTER
            )


@dataclass(frozen=True, slots=True)
class _Batch:
    """Request inside one transaction."""

    claims: Claims
    work: Unit
    caller: Caller
    unstartable: set[str]
    signatures: dict[tuple[str, str], str | None] = field(default_factory=dict)
    granted: list[Prepared] = field(default_factory=list)
    #: Which bundle was the first to define a DAG.
    owners: dict[str, str] = field(default_factory=dict)

    def grant(
        self, opened: Sequence[_Opened], refused: Sequence[Refusal], offered: Sequence[LeaseRef] = ()
    ) -> ClaimResponse:
        session = self.work.session
        if offered:
            opened = [*opened, *self._offered(offered, len(opened) + len(refused))]
        ineligible = standing(session, self.caller, self.claims.parity)
        answers: list[Grant | Refusal] = []
        if ineligible is not None:
            answers = [each.refuse(*ineligible, Disposition.RETURN) for each in opened]
        elif opened:
            rows, now = leases.lock_at(session, [each.item.item_id for each in opened])
            self.owners.update(_airflow.first_bundles(session, {row.dag_id for row in rows.values()}))
            admission = self.claims.limits.admission(session, rows.values(), now)
            answers = [
                self._claim_item(each, rows.get(str(each.item.item_id)), now, admission) for each in opened
            ]
        audit_events.write(session, self.granted)
        ti_ids = {each.item.item_id: str(each.item.ti_id) for each in opened}
        for refusal in (*refused, *(each for each in answers if isinstance(each, Refusal))):
            self._record_refusal(refusal, ti_ids.get(refusal.item_id) if refusal.item_id else None)
        return ClaimResponse(
            grants=tuple(each for each in answers if isinstance(each, Grant)),
            refusals=(*refused, *(each for each in answers if isinstance(each, Refusal))),
        )

    def _offered(self, offered: Sequence[LeaseRef], first: int) -> list[_Opened]:
        """Return the items of offered triggers, as their messages have them. What is no trigger is left out."""
        session = self.work.session
        query = select(WorkItemRow).where(
            WorkItemRow.id.in_(sorted(str(lease.item_id) for lease in offered)),
            WorkItemRow.kind == ItemKind.TRIGGER,
        )
        rows = {row.id: row for row in session.scalars(query)}
        now = clock.now(session)
        return [
            _Opened(index, _as_message(row, lease.epoch, now))
            for index, lease in enumerate(offered, first)
            if (row := rows.get(str(lease.item_id))) is not None
        ]

    def _claim_item(
        self, opened: _Opened, row: WorkItemRow | None, now: datetime, admission: Admission
    ) -> Grant | Refusal:
        refusal = self._refusal(opened, row, now)
        if refusal is not None or row is None:
            return refusal or opened.refuse(RefusalReason.UNKNOWN_ITEM, "there is no such work item")
        if is_trigger(row):
            return self._start_trigger(opened, row, now)
        if row.state == ItemState.CLAIMED:
            # The answer to this worker's first claim was lost: return the same grant again.
            return self._to_grant(row)
        held_back = admission.held_back(row)
        if held_back is not None:
            # Back to the outbox, which sends it again when there is room.
            row.detail, again_at = held_back
            leases.to_placed(row, again_at)
            return opened.refuse(RefusalReason.LIMITED, row.detail)
        answer = self._start(opened, row, now)
        if isinstance(answer, Grant):
            admission.started(row)
        return answer

    def _refusal(self, opened: _Opened, row: WorkItemRow | None, now: datetime) -> Refusal | None:
        item, name = opened.item, self.caller.name
        if item.region != name.region:
            return opened.refuse(RefusalReason.WRONG_REGION, f"it is for region {item.region}")
        if item.pool != name.pool:
            return opened.refuse(RefusalReason.WRONG_POOL, f"it is for pool {item.pool}")
        if row is None or row.ti_id != str(item.ti_id):
            return opened.refuse(RefusalReason.UNKNOWN_ITEM, "there is no such work item")
        if row.state == ItemState.SETTLED or row.outcome is not None:
            reason = _SETTLED.get(row.outcome, RefusalReason.SETTLED)
            return opened.refuse(reason, row.detail or "the work item is settled")
        if row.state == ItemState.CLAIMED:
            if row.worker_id == name.worker and row.epoch == item.epoch + 1:
                return None
            return opened.refuse(RefusalReason.ALREADY_CLAIMED, f"held under epoch {row.epoch}")
        if row.epoch != item.epoch:
            return opened.refuse(RefusalReason.STALE_EPOCH, f"epoch {item.epoch}, now it is {row.epoch}")
        if (row.region, row.pool) != (item.region, item.pool):
            return opened.refuse(RefusalReason.WRONG_REGION, f"it was moved to {row.pool}@{row.region}")
        if item.expires_at <= now:
            return opened.refuse(
                RefusalReason.EXPIRED, f"the message expired at {item.expires_at.isoformat()}"
            )
        denied = self._denied_by_policy(row)
        if denied is not None:
            return opened.refuse(RefusalReason.FORBIDDEN, denied, Disposition.RETURN)
        if row.id in self.unstartable:
            detail = "Airflow could not start the task instance; see the gateway's log"
            leases.settle(self.work.session, row, Outcome.FAILED, detail)
            return opened.refuse(RefusalReason.NOT_STARTABLE, detail)
        return None

    def _runs_triggers(self) -> bool:
        worker = workers.get(self.work.session, self.caller.name.worker)
        return worker is not None and TRIGGERS in worker.versions.get("capabilities", ())

    def _denied_by_policy(self, row: WorkItemRow) -> str | None:
        """Return why the task may not run: its DAG is not its bundle's to define, or no rule lets its queue run."""
        task = facts(row)
        ruling = self.claims.policy.judge(task, Access(DEFINE, task.bundle, task.dag_id))
        if not ruling.allowed:
            return ruling.why
        owner = self.owners.get(task.dag_id, task.bundle) if ruling.rule == OWN else task.bundle
        if owner != task.bundle:
            return (
                f"DAG {task.dag_id!r} was first defined by bundle {owner!r}, and now by {task.bundle!r}. If that is meant, "
                f"say so in the policy: [[bundle]] name = {json.dumps(task.bundle)}, dags = [{json.dumps(task.dag_id)}]"
            )
        ruling = self.claims.policy.judge(task, Access("work:claim", row.queue))
        return None if ruling.allowed else ruling.why

    def _start_trigger(self, opened: _Opened, row: WorkItemRow, now: datetime) -> Grant | Refusal:
        """Grant a trigger, for the first time or again: its kwargs are read anew, and stored nowhere else."""
        session = self.work.session
        if not self._runs_triggers():
            detail = "this worker's version does not run triggers"
            return opened.refuse(RefusalReason.PARITY, detail, Disposition.RETURN)
        spec = _triggers.spec(session, row.ti_id, row.trigger_id)
        if spec is None:
            detail = "Airflow no longer has the task deferred on this trigger"
            leases.settle(session, row, Outcome.CANCELLED, detail)
            return opened.refuse(RefusalReason.CANCELLED, detail)
        if row.state != ItemState.CLAIMED:
            started_as = StartedAs(hostname=self.caller.name.worker, unixname=UNIX_NAME, pid=row.epoch + 1)
            self._hold(row, started_as, {}, now)
        return self._to_grant(row).model_copy(update={"trigger": spec})

    def _renewal(self, policy: DisconnectPolicy) -> float:
        return leases.trigger_renewal(self.claims.lease_seconds, policy.lost_after)

    def _start(self, opened: _Opened, row: WorkItemRow, now: datetime) -> Grant | Refusal:
        # pid is the epoch: with the host name it identifies the claim that started the task instance (release.py).
        started_as = StartedAs(hostname=self.caller.name.worker, unixname=UNIX_NAME, pid=row.epoch + 1)
        answer = self._run(row, started_as, now)
        if answer.status != 200 or answer.body is None:
            detail = f"Airflow does not start it: {_message(answer)}"
            leases.settle(self.work.session, row, Outcome.CANCELLED, detail)
            return opened.refuse(RefusalReason.NOT_STARTABLE, detail)
        self._hold(row, started_as, json.loads(answer.body), now)
        return self._to_grant(row)

    def _hold(
        self, row: WorkItemRow, started_as: StartedAs, ti_context: dict[str, Any], now: datetime
    ) -> None:
        started = {
            "start_date": now.isoformat(),
            "started_as": started_as.model_dump(),
            "ti_context": ti_context,
        }
        policy = DisconnectPolicy.model_validate(row.disconnect)
        leases.claim(
            self.work.session,
            row,
            self.caller.name.worker,
            self.claims.lease_seconds,
            policy.lost_after + (self._renewal(policy) if is_trigger(row) else 0.0),
            started,
            at=now,
        )
        # Not logged: a line for each grant would be most of the gateway's log.
        self.granted.append(
            audit_events.prepare(
                "claim.granted",
                "granted",
                self.caller.name.uri,
                address=self.caller.address,
                rule=f"scope work:claim queue={self.caller.name.queue}",
                row=row,
                at=now,
            )
        )

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
            resources=Resources.model_validate(workload.get("resources", {})),
            ti=workload["ti"],
            ti_context=row.started["ti_context"],
            start_date=row.started["start_date"],
            started_as=StartedAs.model_validate(row.started["started_as"]),
            dag_rel_path=workload["dag_rel_path"],
            bundle=(bundle := BundleRef.model_validate(workload["bundle"])),
            bundle_signature=self._signature(bundle),
            log_path=workload["log_path"],
            disconnect=DisconnectPolicy.model_validate(row.disconnect),
            warm=row.warm,
            trace=row.trace,
        )

    def _signature(self, bundle: BundleRef) -> str | None:
        key = (bundle.name, bundle.version)
        if key not in self.signatures:
            self.signatures[key] = versions.signatures(self.work.session, [key]).get(key)
        return self.signatures[key]

    def _record_refusal(self, refusal: Refusal, ti_id: str | None) -> None:
        name = self.caller.name
        item = str(refusal.item_id) if refusal.item_id else None
        audit_events.record(
            self.work.session,
            "claim.refused",
            "denied",
            name.uri,
            address=self.caller.address,
            rule=f"claim: {refusal.reason}",
            region=name.region,
            worker_id=name.worker,
            item_id=item,
            ti_id=ti_id,
            log_level=logging.INFO,
            item=item,
            reason=str(refusal.reason),
            why=refusal.detail,
        )


def _as_message(row: WorkItemRow, epoch: int, now: datetime) -> WorkItem:
    return WorkItem(
        item_id=row.id,
        ti_id=row.ti_id,
        epoch=epoch,
        region=row.region,
        pool=row.pool,
        kind=row.kind,
        bundle=row.workload["bundle"],
        dag_rel_path=row.workload["dag_rel_path"],
        issued_at=now,
        expires_at=now + timedelta(seconds=RETURN_SECONDS),
        trace=row.trace,
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
