"""Heartbeats: one request renews all leases of a worker, keeps its task instances alive, and returns commands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import structlog
from sqlalchemy import select

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.auth.authentication import Caller, check_revocation
from airbridge.control_plane.gateway.database import transient, unit
from airbridge.control_plane.gateway.heartbeat import batch
from airbridge.control_plane.gateway.triggers.offers import Offers
from airbridge.control_plane.gateway.work import edge_events, held_leases, lease_denials, release
from airbridge.control_plane.gateway.work.edge_events import Recorded
from airbridge.control_plane.gateway.work.fencing import fence, is_claimed
from airbridge.control_plane.gateway.work.held_leases import Held
from airbridge.control_plane.gateway.work.lease_denials import Named
from airbridge.control_plane.identity.ca import BACKDATE
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.parity import Parity
from airbridge.core.protocol import (
    CancelCommand,
    Command,
    DrainCommand,
    EdgeEvent,
    Heartbeat,
    HeartbeatResponse,
    LeaseRef,
    RefusalReason,
    RenewCommand,
    ResumeCommand,
    TrustCommand,
    WorkerState,
)
from airbridge.executor.ledger import leases, workers
from airbridge.executor.ledger.models import Outcome, WorkItemRow
from airbridge.executor.ledger.workers import Order

log = structlog.get_logger()

# Share of a certificate's life after which a RenewCommand is sent. Workers renew by themselves at 0.5
# (identity.enrolment.RENEW_AT).
RENEW_AT: Final = 0.75
# Of one heartbeat: leases of unknown work items that are answered, and denials that are audited. A worker has hardly any,
# a hostile one may list ten thousand, each of which would cost a row of the audit trail.
MOST_UNKNOWN: Final = 100
MOST_DENIALS: Final = 100


@dataclass(frozen=True, slots=True)
class Heartbeats:
    """Answers heartbeats. Thread-safe."""

    parity: Parity
    keyring: Keyring
    lease_seconds: float
    #: Usual interval of heartbeats.
    interval_seconds: float
    #: Interval that workers are given.
    given_interval: Callable[[], float]
    clock: Callable[[], datetime]
    offers: Offers = field(default_factory=Offers)
    #: Called for events that were recorded for the first time, after the commit.
    on_events: Callable[[Caller, Sequence[EdgeEvent]], None] = lambda *_: None

    def handle(self, caller: Caller, heartbeat: Heartbeat) -> HeartbeatResponse:
        """Renew the worker's leases and return the control plane's commands. Raises `Refused`."""
        caller.require("worker:heartbeat", worker=caller.name.worker)
        with unit() as work:
            session = work.session
            check_revocation(session, caller)
            row = workers.heartbeat(session, caller.name.worker, heartbeat)
            if row is None:
                raise Refused(403, RefusalReason.FORBIDDEN, "this worker is not enrolled")
            now = row.last_heartbeat_at
            cancels = self._renew(session, caller, heartbeat, now)
            commands = (*cancels, *self._commands(row, caller, heartbeat))
            skew = row.clock_skew_seconds
            offers = self._offers(session, caller, heartbeat, now)
        # A transaction of its own: leases are renewed even if the events cannot be written.
        recorded = Recorded()
        if heartbeat.events:
            recorded = edge_events.record(caller, heartbeat.events, at=now, skew_seconds=skew)
            self.on_events(caller, recorded.new)
        return self._answer(now, commands, offers, recorded.taken)

    def handle_batch(
        self, beats: Sequence[tuple[Caller, Heartbeat]]
    ) -> list[HeartbeatResponse | Refused | None]:
        """Answer in one transaction the heartbeats that need no row locked by another transaction.

        None: the heartbeat must be handled alone, because a row is locked or something else than a renewal is due:
        a lease to cancel or reclaim, a task that Airflow gave up, an event to record; or because its transaction failed.
        One failing heartbeat leaves the others answered: each half of a failed batch gets a transaction of its own.
        Raises `SQLAlchemyError` while the database is down or busy.
        """
        try:
            with unit() as work:
                return batch.answer(work.session, beats, self)
        except Exception as error:
            if transient(error):
                raise
            if len(beats) == 1:
                log.exception("heartbeat.batch_failed", worker=beats[0][0].name.worker)
                return [None]
        middle = len(beats) // 2
        return [*self.handle_batch(beats[:middle]), *self.handle_batch(beats[middle:])]

    def answer(
        self, session: Any, now: datetime, order: Order, caller: Caller, heartbeat: Heartbeat
    ) -> HeartbeatResponse:
        """Return the answer to a heartbeat without events whose leases are all renewed."""
        offers = self._offers(session, caller, heartbeat, now)
        return self._answer(now, self._commands(order, caller, heartbeat), offers)

    def _offers(
        self, session: Any, caller: Caller, heartbeat: Heartbeat, now: datetime
    ) -> tuple[LeaseRef, ...]:
        return self.offers.to(session, (caller.name.region, caller.name.pool), heartbeat, now)

    def agrees_on_leases(self, heartbeat: Heartbeat, held: Sequence[Held]) -> bool:
        """Return whether the worker's leases match those of the ledger, and Airflow runs their task instances."""
        known = {each.lease for each in held if each.ti_state == "running"}
        listed = set(heartbeat.leases)
        if not known.issuperset(listed):
            return False
        unlisted = (each for each in held if each.lease not in listed)
        return all(each.ti_state == "running" and not self._disproves(heartbeat, each) for each in unlisted)

    def _answer(
        self,
        now: datetime,
        commands: Sequence[Command],
        offers: tuple[LeaseRef, ...] = (),
        events_taken: int = 0,
    ) -> HeartbeatResponse:
        return HeartbeatResponse(
            server_time=now,
            lease_seconds=self.lease_seconds,
            interval_seconds=self.given_interval(),
            commands=tuple(commands),
            events_taken=events_taken,
            offers=offers,
        )

    def _renew(
        self, session: Any, caller: Caller, heartbeat: Heartbeat, now: datetime
    ) -> list[CancelCommand]:
        worker = caller.name.worker
        held = held_leases.held(session, [worker]).get(worker, [])
        if not held and not heartbeat.leases:
            return []
        listed = set(heartbeat.leases)
        for each in held:
            if each.lease in listed:
                continue
            if each.ti_state != "running":
                if _confirms_end(heartbeat, each):
                    _settle_unwanted(session, worker, each)
            elif self._disproves(heartbeat, each):
                release.reclaim(session, caller, each.lease, now)
        fresh = held_leases.fresh_triggers(held, listed, now, self.lease_seconds)
        due = [lease for lease in heartbeat.leases if lease not in fresh]
        renewed = leases.renew(session, worker, due, self.lease_seconds, at=now) if due else set()
        renewed |= fresh
        alive = [each for each in held if each.lease in renewed and each.ti_state == "running"]
        held_leases.keep_alive(session, held_leases.tasks_of(alive), now)
        still = {each.lease for each in alive}
        states = {each.lease: each.ti_state for each in held}
        lost = [lease for lease in heartbeat.leases if lease not in still]
        return _cancels(session, caller, lost, states)

    def _disproves(self, heartbeat: Heartbeat, held: Held) -> bool:
        """Return whether the heartbeat proves that the worker does not hold a lease that the ledger assigns to it.

        The worker has received an answer since the grant, and neither lists the lease nor has a claim for it in flight:
        its process died before it journalled the grant, or lost its journal. The proof covers only the process that has
        this name now. Work that must never run twice still waits for `lost_after`: an earlier host of that name may be
        disconnected and running it.
        """
        if heartbeat.answered_at is None or held.stop_after is not None:
            return False
        if held.lease.item_id in heartbeat.claiming:
            return False
        return held.claimed_at + timedelta(seconds=self.interval_seconds) < heartbeat.answered_at

    def _commands(self, row: Order, caller: Caller, heartbeat: Heartbeat) -> list[Command]:
        commands: list[Command] = []
        judgement = self.parity.judge(heartbeat.versions)
        if row.wanted != "active" or not judgement.may_claim:
            if heartbeat.state is WorkerState.ACTIVE:
                commands.append(
                    DrainCommand(detail=judgement.detail if row.wanted == "active" else row.comment or "")
                )
        elif heartbeat.state is WorkerState.DRAINING:
            commands.append(ResumeCommand())
        keys = self.keyring.keys
        if heartbeat.trust_version != keys.trust.version:
            commands.append(TrustCommand(trust=keys.trust))
        certificate = caller.certificate
        issued = certificate.not_before + BACKDATE
        late = self.clock() >= issued + (certificate.not_after - issued) * RENEW_AT
        if late or caller.stale or certificate.issuer != keys.ca.key_id:
            commands.append(RenewCommand())
        return commands


def _confirms_end(heartbeat: Heartbeat, held: Held) -> bool:
    """Return whether the worker, which does not list this lease, has received its grant: then its process has ended."""
    if held.lease.item_id in heartbeat.claiming:
        return False
    return heartbeat.answered_at is None or held.claimed_at < heartbeat.answered_at


def _settle_unwanted(session: Any, worker: str, held: Held) -> None:
    """Settle a cancelled row that the worker no longer lists and Airflow no longer runs."""
    row = leases.lock(session, [held.lease.item_id]).get(str(held.lease.item_id))
    if row is not None and is_claimed(row, worker, held.lease.epoch):
        detail = row.detail if row.outcome else f"Airflow has it as {held.ti_state}"
        leases.settle(session, row, Outcome.CANCELLED, detail)


def _cancels(
    session: Any, caller: Caller, lost: Sequence[LeaseRef], states: dict[LeaseRef, str | None]
) -> list[CancelCommand]:
    if not lost:
        return []
    worker = caller.name.worker
    query = select(WorkItemRow).where(WorkItemRow.id.in_([str(lease.item_id) for lease in lost]))
    rows = {row.id: row for row in session.scalars(query.execution_options(populate_existing=True))}
    unknown = [lease for lease in lost if str(lease.item_id) not in rows]
    unanswered = set(unknown[MOST_UNKNOWN:])
    cancels: list[CancelCommand] = []
    named: list[Named] = []
    for lease in lost:
        if lease in unanswered:
            continue
        row = rows.get(str(lease.item_id))
        verdict = fence(row, worker, lease.epoch)
        named.append(Named(lease, row, verdict))
        reason = verdict.reason or RefusalReason.CANCELLED
        detail = verdict.detail or f"Airflow has the task instance as {states.get(lease)}"
        cancels.append(CancelCommand(item_id=lease.item_id, epoch=lease.epoch, reason=reason, detail=detail))
        log.info(
            "lease.cancelled",
            worker=worker,
            item_id=str(lease.item_id),
            epoch=lease.epoch,
            reason=str(reason),
        )
    denials = lease_denials.record(session, caller, "heartbeat", named, most=MOST_DENIALS)
    if unanswered or denials > MOST_DENIALS:
        log.warning(
            "leases.unaudited",
            worker=worker,
            listed=len(lost),
            audited=min(denials, MOST_DENIALS),
            unanswered=len(unanswered),
        )
    return cancels
