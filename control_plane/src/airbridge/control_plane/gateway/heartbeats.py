"""Heartbeat: one request renews all of a worker's leases, keeps its task instances alive, and brings back commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import select

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway import edge_events, holdings, lease_denials, releases, together
from airbridge.control_plane.gateway.authentication import Caller, check_revocation
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.fencing import fence
from airbridge.control_plane.gateway.holdings import Held
from airbridge.control_plane.identity.ca import BACKDATE
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.parity import Parity
from airbridge.executor.ledger import items, workers
from airbridge.executor.ledger.models import Outcome, WorkItemRow
from airbridge.executor.ledger.workers import Order
from airbridge.executor.protocol import (
    CancelCommand,
    Command,
    DrainCommand,
    Heartbeat,
    HeartbeatResponse,
    LeaseRef,
    RefusalReason,
    RenewCommand,
    ResumeCommand,
    TrustCommand,
    WorkerState,
)

log = structlog.get_logger()

RENEW_AT: Final = 0.75
"""Share of its certificate's life after which a worker that has not renewed is told to."""


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """Answers heartbeats. Safe for use by many threads."""

    parity: Parity
    keyring: Keyring
    lease_seconds: float
    interval_seconds: float
    clock: Callable[[], datetime]

    def beat(self, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
        """Renew the worker's leases and return what the control plane wants of it."""
        caller.require("worker:heartbeat", worker=caller.name.worker)
        with unit() as work:
            session = work.session
            check_revocation(session, caller)
            row = workers.heartbeat(session, caller.name.worker, heartbeat)
            if row is None:
                raise Refused(403, RefusalReason.FORBIDDEN, "this worker is not enrolled")
            now = row.last_heartbeat_at
            cancels = self._renew(session, caller, heartbeat, now)
            commands = (*cancels, *self._orders(row, caller, heartbeat))
            skew = row.clock_skew_seconds
        # In a transaction of its own: leases are renewed whatever becomes of the events.
        taken = (
            edge_events.take(caller, heartbeat.events, at=now, skew_seconds=skew) if heartbeat.events else 0
        )
        return self._answer(now, commands, taken)

    def beat_together(
        self, beats: Sequence[tuple[Caller, Heartbeat]]
    ) -> list[HeartbeatResponse | Refused | None]:
        """Answer in one transaction those for which nothing has to be waited for: no row that another holds.

        None: the heartbeat is to be answered by itself. So is all that is out of the ordinary, such as a lease to
        cancel or to take back, a task that Airflow gave up, an event to write down.
        """
        with unit() as work:
            return together.answer(work.session, beats, self)

    def answer(self, now: datetime, order: Order, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
        """Return the answer to a heartbeat that told of nothing to write down, and whose leases all hold."""
        return self._answer(now, self._orders(order, caller, heartbeat))

    def takes_for_granted(self, heartbeat: Heartbeat, held: Sequence[Held]) -> bool:
        """Whether what the worker says of its leases is what the ledger and Airflow say of them."""
        known = {each.lease for each in held if each.ti_state == "running"}
        if not known.issuperset(heartbeat.leases):
            return False
        unlisted = (each for each in held if each.lease not in heartbeat.leases)
        return all(each.ti_state == "running" and not self._unknown_to(heartbeat, each) for each in unlisted)

    def _answer(self, now: datetime, commands: Sequence[Command], events_taken: int = 0) -> HeartbeatResponse:
        return HeartbeatResponse(
            server_time=now,
            lease_seconds=self.lease_seconds,
            interval_seconds=self.interval_seconds,
            commands=tuple(commands),
            events_taken=events_taken,
        )

    def _renew(
        self, session: Any, caller: Caller, heartbeat: Heartbeat, now: datetime
    ) -> list[CancelCommand]:
        worker, leases = caller.name.worker, heartbeat.leases
        held = holdings.held(session, [worker]).get(worker, [])
        if not held and not leases:
            return []
        listed = set(leases)
        for each in held:
            if each.lease in listed:
                continue
            if each.ti_state != "running":
                _let_go(session, worker, each)
            elif self._unknown_to(heartbeat, each):
                releases.take_back(session, caller, each.lease, now)
        renewed = items.renew(session, worker, leases, self.lease_seconds, at=now) if leases else set()
        alive = [each for each in held if each.lease in renewed and each.ti_state == "running"]
        holdings.keep_alive(session, [each.ti_id for each in alive], now)
        still = {each.lease for each in alive}
        states = {each.lease: each.ti_state for each in held}
        lost = [lease for lease in leases if lease not in still]
        return _cancels(session, caller, lost, states)

    def _unknown_to(self, heartbeat: Heartbeat, held: Held) -> bool:
        """Whether the worker proves that it does not hold what the ledger says it does.

        It has had an answer since the grant, and neither lists the lease nor is still asking for it: the process that
        was granted it died before it had written that down, or lost its journal. The proof is about the process
        that has this name now. Work that must never run twice waits for `lost_after` all the same: a host that had
        the name before may be cut off, and running it.
        """
        if heartbeat.answered_at is None or held.stop_after is not None:
            return False
        if held.lease.item_id in heartbeat.claiming:
            return False
        return held.claimed_at + timedelta(seconds=self.interval_seconds) < heartbeat.answered_at

    def _orders(self, row: Order, caller: Caller, heartbeat: Heartbeat) -> list[Command]:
        orders: list[Command] = []
        judgement = self.parity.judge(heartbeat.versions)
        if row.wanted != "active" or not judgement.may_claim:
            if heartbeat.state is WorkerState.ACTIVE:
                orders.append(
                    DrainCommand(detail=judgement.detail if row.wanted == "active" else row.comment or "")
                )
        elif heartbeat.state is WorkerState.DRAINING:
            orders.append(ResumeCommand())
        keys = self.keyring.keys
        if heartbeat.trust_version != keys.trust.version:
            orders.append(TrustCommand(trust=keys.trust))
        certificate = caller.certificate
        issued = certificate.not_before + BACKDATE
        late = self.clock() >= issued + (certificate.not_after - issued) * RENEW_AT
        if late or caller.stale or certificate.issuer != keys.ca.key_id:
            orders.append(RenewCommand())
        return orders


def _let_go(session: Any, worker: str, held: Held) -> None:
    """Settle a row that the worker speaks of no longer and Airflow does not want: it was told to stop it."""
    row = items.lock(session, [held.lease.item_id]).get(str(held.lease.item_id))
    if row is not None and fence(row, worker, held.lease.epoch).reason is None:
        items.settle(session, row, Outcome.CANCELLED, f"Airflow has it as {held.ti_state}")


def _cancels(
    session: Any, caller: Caller, lost: Sequence[LeaseRef], states: dict[LeaseRef, str | None]
) -> list[CancelCommand]:
    if not lost:
        return []
    worker = caller.name.worker
    query = select(WorkItemRow).where(WorkItemRow.id.in_([str(lease.item_id) for lease in lost]))
    rows = {row.id: row for row in session.scalars(query.execution_options(populate_existing=True))}
    cancels = []
    for lease in lost:
        row = rows.get(str(lease.item_id))
        judged = fence(row, worker, lease.epoch)
        lease_denials.note(session, caller, "heartbeat", lease, row=row, judged=judged)
        reason = judged.reason or RefusalReason.CANCELLED
        detail = judged.detail or f"Airflow has the task instance as {states.get(lease)}"
        cancels.append(CancelCommand(item_id=lease.item_id, epoch=lease.epoch, reason=reason, detail=detail))
        log.info(
            "lease.cancelled",
            worker=worker,
            item_id=str(lease.item_id),
            epoch=lease.epoch,
            reason=str(reason),
        )
    return cancels
