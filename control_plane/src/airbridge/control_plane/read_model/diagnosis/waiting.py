"""Cause of a work item that has not been claimed: the first check of the item's path that finds something."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from airbridge.control_plane.read_model import gateways, workers
from airbridge.control_plane.read_model.diagnosis import scheduler, waiting_queries
from airbridge.control_plane.read_model.diagnosis.cause import Cause, Code, Note, ago, count, span
from airbridge.control_plane.read_model.history.timeline import Step, Timeline
from airbridge.control_plane.read_model.platform import Platform
from airbridge.control_plane.read_model.standing import MISSING, Standing
from airbridge.control_plane.read_model.work import ItemView
from airbridge.control_plane.read_model.workers import WorkerView
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger.models import ItemState
from airbridge.executor.ledger.sharing.fair_shares import FairShares
from airbridge.executor.ledger.sharing.held_back import UNSENT

# A refused enrolment explains a pool without workers for this long.
REFUSED_ENROLMENT_WINDOW: Final = timedelta(minutes=15)
MAX_CERTIFICATE_NOTES: Final = 3
MAX_VERSIONS_NAMED: Final = 3

# Code and explanation, which follows "queued <time>: " in the cause's sentence, or what a trigger waits for.
Finding = tuple[Code, str]


def explain(session: Any, platform: Platform, line: Timeline, item: ItemView) -> Cause:
    """Return the cause for an unclaimed item."""
    fleet = workers.of_pool(session, platform, item.region, item.pool)
    checks = _Checks(session, platform, line, item, fleet)
    code, explanation = checks.first_finding()
    # The outbox moves work to its fallback, and does not run without a scheduler.
    moves = "" if code is Code.SCHEDULER_DOWN else checks.fallback_clause()
    waited = ago(item.placed_at, line.now)
    since = f"deferred {waited} ago; its trigger waits" if item.is_trigger else f"queued {waited}"
    sentence = f"{since}: {explanation}{moves}"
    return Cause(code, sentence, item.placed_at, tuple(certificate_notes(fleet)))


def certificate_notes(fleet: Sequence[WorkerView]) -> list[Note]:
    """Return notes on the first live workers whose certificate is about to expire."""
    expiring = [worker for worker in fleet if worker.certificate_ending and worker.standing.alive]
    return [
        Note(Code.CERTIFICATE, _certificate_clause(worker)) for worker in expiring[:MAX_CERTIFICATE_NOTES]
    ]


@dataclass(frozen=True, slots=True)
class _Checks:
    """Checks of one item, with the workers of its pool, latest heartbeat first."""

    session: Any
    platform: Platform
    line: Timeline
    item: ItemView
    fleet: list[WorkerView]

    def first_finding(self) -> Finding:
        # In the order of the item's path: a later problem cannot matter before an earlier one is solved.
        checks = [
            self._unknown_pool,
            self._scheduler_down,
            self._queue_unreachable,
            self._message_rejected,
            self._gateway_down,
            self._no_serving_worker,
            self._denied_by_policy,
        ]
        # Triggers count towards no limit and no quota, and take no slot.
        if not self.item.is_trigger:
            checks += [self._limit_reached, self._quota_reached, self._workers_full]
        for check in checks:
            if (finding := check()) is not None:
                return finding
        return self._nothing_wrong()

    def fallback_clause(self) -> str:
        """Return a clause on the item's next pool; empty without a fallback."""
        found = waiting_queries.fallback(self.session, self.item)
        if found is None:
            return ""
        target, at = found
        left = at - self.line.now
        when = f"in {span(left)}" if left > timedelta(0) else "at the outbox's next pass"
        return f"; it moves to {target} {when}"

    # --- the checks, in order -----------------------------------------------------------------------

    def _unknown_pool(self) -> Finding | None:
        catalogue = self.platform.catalogue
        region = catalogue.region(self.item.region)
        if region is None:
            known = ", ".join(catalogue.names)
            return (
                Code.UNKNOWN_REGION,
                f"region {self.item.region} is not in the catalogue; it has {known}",
            )
        if region.pool(self.item.pool) is None:
            pools = ", ".join(pool.name for pool in region.pools)
            return (
                Code.UNKNOWN_REGION,
                f"region {region.name} has no pool {self.item.pool}; it has {pools}",
            )
        return None

    def _scheduler_down(self) -> Finding | None:
        """Return the finding for an item that the outbox, a thread of the scheduler, has to send first."""
        item, now = self.item, self.line.now
        expired = item.expires_at is not None and item.expires_at <= now
        if item.sent_at is not None and not expired:
            return None
        down = scheduler.silence(self.session, now)
        if down is None:
            return None
        return Code.SCHEDULER_DOWN, f"{down.sentence}: nothing is sent to the queue of {self._place}"

    def _queue_unreachable(self) -> Finding | None:
        if self.item.sent_at is None:
            error = self._send_error()
            return (Code.QUEUE_UNREACHABLE, f"the queue of {self._place} {error}") if error else None
        # Another serving worker has not reported a failure: the queue works, and that worker may claim the item.
        failing = self._of(Standing.NO_QUEUE)
        if failing and not self._serving:
            return Code.QUEUE_UNREACHABLE, self._unreachable_for(failing[0].id, failing[0].why)
        return self._queue_failing_by_events()

    def _queue_failing_by_events(self) -> Finding | None:
        """Return the finding for workers of an earlier version, which report the failure by an event alone."""
        alive = [worker.id for worker in self.fleet if worker.standing.alive]
        latest = waiting_queries.latest_event(self.session, alive, ("queue.failing", "queue.restored"))
        if latest is None or latest.event == "queue.restored":
            return None
        if any(worker.id != latest.worker_id for worker in self._serving):
            return None
        explanation = self._unreachable_for(latest.worker_id, latest.detail.get("why", ""))
        return Code.QUEUE_UNREACHABLE, explanation

    def _unreachable_for(self, worker: str | None, why: str) -> str:
        return f"{worker} cannot receive from the queue of {self._place}: {why}"

    def _send_error(self) -> str | None:
        detail = self.item.detail
        if detail is not None and detail.startswith(UNSENT):
            return detail
        # This item was not tried yet, or is being tried: the outbox sends in order, so that the error of an item
        # before it holds this one up too.
        return waiting_queries.unsent_detail(self.session, self.item)

    def _message_rejected(self) -> Finding | None:
        item = self.item
        rejected = self._last_step("message.rejected")
        if rejected is None or rejected.at < (item.sent_at or item.placed_at):
            return None
        resent = (
            f"; a new message is sent in {span(item.expires_at - self.line.now)}" if item.expires_at else ""
        )
        return Code.POISON, (
            f"{rejected.worker} rejected its message ({rejected.detail.get('reason')}: "
            f"{rejected.detail.get('why')}), which goes to the dead-letter queue{resent}"
        )

    def _gateway_down(self) -> Finding | None:
        down = gateways.down(self.session)
        return (Code.GATEWAY_DOWN, f"{down}: workers cannot claim") if down else None

    def _no_serving_worker(self) -> Finding | None:
        if self._serving:
            return None
        for check in (self._refused_by_matrix, self._draining, self._silent, self._refused_enrolment):
            if (finding := check()) is not None:
                return finding
        stopped = len(self._of(Standing.STOPPED))
        suffix = f"; {count(stopped, 'worker')} stopped" if stopped else ""
        return Code.NO_WORKER, f"{self._pool_name} has 0 workers{suffix}"

    def _denied_by_policy(self) -> Finding | None:
        refusal = self._last_step("claim.refused")
        if refusal is None or refusal.detail.get("reason") != RefusalReason.FORBIDDEN:
            return None
        return Code.POLICY_DENIAL, f"{refusal.worker} may not claim it: {refusal.detail.get('why')}"

    def _limit_reached(self) -> Finding | None:
        if self.item.state is not ItemState.PLACED:
            return None
        loads = waiting_queries.limits(self.session, self.platform.catalogue.limits, self.item, self.line.now)
        full = next((load for load in loads if load.full), None)
        return (Code.LIMIT_REACHED, f"{full.full}, and {full.waiting} wait") if full else None

    def _quota_reached(self) -> Finding | None:
        if self.item.state is not ItemState.PLACED:
            return None
        item, ref = self.item, (self.item.region, self.item.pool)
        shares = FairShares(self.platform.catalogue.teams)
        if ref not in shares.with_quota:
            return None
        load = waiting_queries.team_load(self.session, item)
        needed = waiting_queries.next_slots(self.session, item, self.line.now)
        quota = shares.reached(ref, item.team, load, needed)
        if quota is None:
            return None
        too_large = f", its next task needs {needed}" if load.held < quota else ""
        return Code.QUOTA_REACHED, (
            f"quota of team {item.team} in {self._place}: {load.held} of {quota} slots taken{too_large}, "
            f"and {load.waiting} wait"
        )

    def _workers_full(self) -> Finding | None:
        slots, used = sum(w.slots for w in self._serving), sum(w.slots_used for w in self._serving)
        if used < slots:
            return None
        before = waiting_queries.items_before(self.session, self.item)
        ahead = f"{count(before, 'item')} {'waits' if before == 1 else 'wait'}" if before else "nothing waits"
        serving = count(len(self._serving), "worker")
        return (
            Code.WORKERS_FULL,
            f"all {slots} slots of {serving} in {self._place} are taken; {ahead} before it",
        )

    def _nothing_wrong(self) -> Finding:
        item, now = self.item, self.line.now
        refusal = self._last_step("claim.refused")
        refused = "" if refusal is None else f"; last {refusal.what}, {ago(refusal.at, now)} ago"
        takers = f"{self._takers} may claim it{refused}"
        if item.state is ItemState.SENT:
            when = f"sent {ago(item.sent_at, now)} ago" if item.sent_at else "being sent"
            return Code.ON_QUEUE, f"on the queue of {self._place}, {when}; {takers}"
        if item.not_before > now:
            delay = span(item.not_before - now)
            return Code.WAITING_CAPACITY, f"to be sent to {self._place} in {delay}{refused}"
        if item.is_trigger:
            return Code.WAITING_CAPACITY, f"to be sent to the queue of {self._place}; {takers}"
        before = count(waiting_queries.items_before(self.session, item), "item")
        return (
            Code.WAITING_CAPACITY,
            f"waits for capacity on the queue of {self._place}, {before} before it; {takers}",
        )

    # --- no serving worker: the reasons, in order ------------------------------------------------------

    def _refused_by_matrix(self) -> Finding | None:
        refused = self._of(Standing.REFUSED, Standing.DRAIN_ONLY)
        if not refused:
            return None
        return (
            Code.PARITY,
            f"{self._pool_name} has 0 workers that the matrix allows; {_by_version(refused)}",
        )

    def _draining(self) -> Finding | None:
        draining = self._of(Standing.DRAINING)
        if not draining:
            return None
        number, first = len(draining), draining[0]
        why = "" if first.why == first.standing.text else f" ({first.why})"
        return Code.DRAINING, (
            f"{self._pool_name} has 0 workers that accept work; {number} {_is(number)} draining{why}"
        )

    def _silent(self) -> Finding | None:
        silent = self._of(*MISSING)
        if not silent:
            return None
        # Without a valid certificate a worker cannot connect: if all have expired, that explains the silence.
        if all((worker.certificate_seconds_left or 0.0) < 0 for worker in silent):
            reason = _certificate_clause(silent[0])
            return Code.CERTIFICATE, f"{self._pool_name} has 0 connected workers; {reason}"
        latest = silent[0]
        return Code.PARTITION, (
            f"{self._pool_name} has 0 connected workers; {count(len(silent), 'worker')} {latest.standing.text}, "
            f"{latest.id} {latest.why}: disconnected or dead"
        )

    def _refused_enrolment(self) -> Finding | None:
        earliest = self.line.now - REFUSED_ENROLMENT_WINDOW
        # A worker that enrolled later shows that the pool accepts workers.
        since = max([earliest, *(worker.enrolled_at for worker in self.fleet)])
        refused = waiting_queries.refused_enrolment(self.session, self.item, since)
        if refused is None:
            return None
        return Code.PARITY, (
            f"{self._pool_name} has 0 workers; {refused.worker_id} on {refused.detail.get('runs')} was refused "
            f"by the matrix {ago(refused.at, self.line.now)} ago ({refused.detail.get('why')})"
        )

    # --- the item and its pool ------------------------------------------------------------------------

    @property
    def _place(self) -> str:
        """Pool of the item, written like a queue."""
        item = self.item
        return item.region if item.pool == "default" else f"{item.pool}@{item.region}"

    @property
    def _pool_name(self) -> str:
        return f"{'region' if self.item.pool == 'default' else 'pool'} {self._place}"

    @property
    def _takers(self) -> str:
        """Workers that may claim the item, with the slots that it may take."""
        serving = count(len(self._serving), "worker")
        if self.item.is_trigger:
            return serving
        free = sum(worker.slots - worker.slots_used for worker in self._serving)
        return f"{serving} with {count(free, 'free slot')}"

    @property
    def _serving(self) -> list[WorkerView]:
        return self._of(Standing.SERVING)

    def _of(self, *standings: Standing) -> list[WorkerView]:
        return [worker for worker in self.fleet if worker.standing in standings]

    def _last_step(self, event: str) -> Step | None:
        steps = reversed(self.line.steps)
        return next((step for step in steps if step.item_id == self.item.id and step.event == event), None)


def _certificate_clause(worker: WorkerView) -> str:
    left = worker.certificate_seconds_left or 0.0
    distance = span(timedelta(seconds=abs(left)))
    when = f"expires in {distance}" if left > 0 else f"expired {distance} ago"
    return f"the certificate of {worker.id} {when} and has not been renewed"


def _by_version(refused: list[WorkerView]) -> str:
    kinds = Counter((worker.airbridge, worker.standing) for worker in refused)
    counts = [
        f"{number} {_is(number)} on {version}, "
        f"{'drain only' if standing is Standing.DRAIN_ONLY else 'refused'}"
        for (version, standing), number in kinds.most_common(MAX_VERSIONS_NAMED)
    ]
    return f"{' and '.join(counts)} ({refused[0].why})"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
