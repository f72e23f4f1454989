"""Why nobody has taken an unclaimed work item yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import and_, func, or_, select

from airbridge.control_plane.observe import gateways, workers
from airbridge.control_plane.observe.cause import Cause, Code, Note, ago, count, span
from airbridge.control_plane.observe.platform import Platform
from airbridge.control_plane.observe.timeline import Step, Timeline
from airbridge.control_plane.observe.work import ItemView
from airbridge.control_plane.observe.workers import Standing, WorkerView
from airbridge.executor.ledger import clock, events
from airbridge.executor.ledger.models import EventRow, ItemState, WorkItemRow
from airbridge.executor.outbox import UNSENT
from airbridge.executor.protocol import RefusalReason

SENT_AWAY_LATELY: Final = timedelta(minutes=15)
"""How long a worker that was refused an identity counts as what is wrong with a pool that has none."""


def explain(session: Any, platform: Platform, line: Timeline, item: ItemView) -> Cause:
    """Return why an item that waits has not been claimed."""
    fleet = workers.of_pool(session, platform, item.region, item.pool)
    about = _Waiting(session, platform, line, item, fleet)
    code, why = about.cause()
    waited = ago(item.placed_at, line.now)
    return Cause(code, f"queued {waited}: {why}{about.next_step()}", item.placed_at, about.notes())


def gateway_down(session: Any) -> str:
    """Return since when no gateway has been there, in words; empty if one is."""
    found = gateways.listing(session, limit=10)
    if any(each.alive for each in found):
        return ""
    if not found:
        return "no gateway has ever been there"
    return f"no gateway has been there for {ago(found[0].seen_at, clock.now(session))}"


def certificate_words(worker: WorkerView) -> str:
    """Say how long a worker's certificate lasts."""
    left = worker.certificate_seconds_left or 0.0
    when = f"ends in {_seconds(left)}" if left > 0 else f"ended {_seconds(-left)} ago"
    return f"the certificate of {worker.id} {when} and has not been renewed"


def certificate_notes(fleet: Sequence[WorkerView]) -> list[Note]:
    """Return a note for the first workers there whose certificate is about to end."""
    ending = [worker for worker in fleet if worker.certificate_ending and worker.standing.alive]
    return [Note(Code.CERTIFICATE, certificate_words(worker)) for worker in ending[:3]]


def _seconds(seconds: float) -> str:
    return span(timedelta(seconds=seconds))


@dataclass(frozen=True, slots=True)
class _Waiting:
    session: Any
    platform: Platform
    line: Timeline
    item: ItemView
    fleet: list[WorkerView]

    @property
    def place(self) -> str:
        """Where it waits, as a queue is written."""
        item = self.item
        return item.region if item.pool == "default" else f"{item.pool}@{item.region}"

    def cause(self) -> tuple[Code, str]:
        """Ask the questions in the order of the path."""
        for question in (
            self._unknown,
            self._unsent,
            self._rejected,
            self._gateway,
            self._nobody,
            self._denied,
            self._full,
        ):
            found = question()
            if found is not None:
                return found
        return self._soon()

    def next_step(self) -> str:
        """Say what happens if nothing changes."""
        # The fallback is the row's; it is read only for the one item that is explained.
        row = self.session.get(WorkItemRow, self.item.id)
        if row is None or row.fallback_at is None or not row.placement.get("fallback"):
            return ""
        there = row.placement["fallback"][0]
        left = row.fallback_at - self.line.now
        when = f"in {span(left)}" if left.total_seconds() > 0 else "as soon as the outbox gets to it"
        return f"; it moves to {there['pool']}@{there['region']} {when}"

    def notes(self) -> tuple[Note, ...]:
        """Name the workers of the pool whose certificate is about to end."""
        return tuple(certificate_notes(self.fleet))

    # --- the questions ------------------------------------------------------------------------------

    def _unknown(self) -> tuple[Code, str] | None:
        region = self.platform.catalogue.region(self.item.region)
        if region is None:
            known = ", ".join(self.platform.catalogue.names)
            return Code.UNKNOWN_REGION, f"region {self.item.region} is not in the catalogue; it has {known}"
        if region.pool(self.item.pool) is None:
            pools = ", ".join(pool.name for pool in region.pools)
            return Code.UNKNOWN_REGION, f"region {region.name} has no pool {self.item.pool}; it has {pools}"
        return None

    def _unsent(self) -> tuple[Code, str] | None:
        item = self.item
        if item.sent_at is None:
            # Placed, or just being tried again: an attempt may take as long as a connection that nobody answers.
            said = item.detail if (item.detail or "").startswith(UNSENT) else self._unsent_beside()
            if said:
                return Code.QUEUE_UNREACHABLE, f"the queue of {self.place} {said}"
            return None
        failing = self._pool_event("queue.failing", "queue.restored")
        if failing is not None and not self._others_receive(failing):
            why = failing.detail.get("why", "")
            return (
                Code.QUEUE_UNREACHABLE,
                f"{failing.worker_id} cannot receive from the queue of {self.place}: {why}",
            )
        return None

    def _unsent_beside(self) -> str | None:
        """Say what keeps the items before this one from the queue: this one was not tried."""
        row = WorkItemRow
        query = (
            select(row.detail)
            .where(
                row.state.in_((ItemState.PLACED, ItemState.SENT)),
                row.sent_at.is_(None),
                row.region == self.item.region,
                row.pool == self.item.pool,
                row.detail.startswith(UNSENT, autoescape=True),
            )
            .limit(1)
        )
        found: str | None = self.session.scalars(query).first()
        return found

    def _others_receive(self, failing: EventRow) -> bool:
        return any(
            worker.standing is Standing.SERVING and worker.id != failing.worker_id for worker in self.fleet
        )

    def _pool_event(self, bad: str, good: str) -> EventRow | None:
        """Return the last word of the pool's workers about something, if it is the bad one."""
        ids = [worker.id for worker in self.fleet if worker.standing.alive][:100]
        row = EventRow
        query = (
            select(row)
            .where(row.worker_id.in_(ids), row.event.in_((bad, good)))
            .order_by(row.id.desc())
            .limit(1)
        )
        found: EventRow | None = self.session.scalars(query).first()
        return found if found is not None and found.event == bad else None

    def _rejected(self) -> tuple[Code, str] | None:
        since = self.item.sent_at or self.item.placed_at
        for step in reversed(self.line.steps):
            if step.item_id == self.item.id and step.event == "message.rejected" and step.at >= since:
                again = ""
                if self.item.expires_at is not None:
                    again = f"; a new message is sent in {span(self.item.expires_at - self.line.now)}"
                return Code.POISON, (
                    f"{step.worker} rejected its message ({step.detail.get('reason')}: {step.detail.get('why')}), "
                    f"which goes to the dead-letter queue{again}"
                )
        return None

    def _gateway(self) -> tuple[Code, str] | None:
        down = gateway_down(self.session)
        return (Code.GATEWAY_DOWN, f"{down}: workers cannot claim") if down else None

    def _nobody(self) -> tuple[Code, str] | None:
        fleet = self.fleet
        standings = Counter(worker.standing for worker in fleet)
        if standings[Standing.SERVING]:
            return None
        there = f"{'region' if self.item.pool == 'default' else 'pool'} {self.place}"
        refused = [worker for worker in fleet if worker.standing in {Standing.REFUSED, Standing.DRAIN_ONLY}]
        if refused:
            return Code.PARITY, f"{there} has 0 workers that the matrix allows; {_by_version(refused)}"
        draining = standings[Standing.DRAINING]
        if draining:
            why = next(worker.why for worker in fleet if worker.standing is Standing.DRAINING)
            return (
                Code.DRAINING,
                f"{there} has 0 workers that take work; {draining} {_is(draining)} draining ({why})",
            )
        silent = [worker for worker in fleet if worker.standing is Standing.SILENT]
        if silent:
            return self._silence(there, silent)
        sent_away = self._sent_away()
        if sent_away is not None:
            said = sent_away.detail
            return Code.PARITY, (
                f"{there} has 0 workers; {sent_away.worker_id} on {said.get('runs')} was refused by the matrix "
                f"{ago(sent_away.at, self.line.now)} ago ({said.get('why')})"
            )
        gone = standings[Standing.STOPPED]
        was = f"; {count(gone, 'worker')} stopped" if gone else ""
        return Code.NO_WORKER, f"{there} has 0 workers{was}"

    def _sent_away(self) -> EventRow | None:
        """Return the last worker that the pool was lately refused for what it runs, if none has enrolled since."""
        item = self.item
        since = max((worker.enrolled_at for worker in self.fleet), default=self.line.now - SENT_AWAY_LATELY)
        refused = events.since(
            self.session, "enrol.refused", max(since, self.line.now - SENT_AWAY_LATELY), region=item.region
        )
        return next((each for each in refused if each.detail.get("pool") == item.pool), None)

    def _denied(self) -> tuple[Code, str] | None:
        """Say by which rule the worker that asked last may not have it."""
        asked = self._last_step("claim.refused")
        if asked is None or asked.detail.get("reason") != RefusalReason.FORBIDDEN:
            return None
        return Code.POLICY_DENIAL, f"{asked.worker} may not take it: {asked.detail.get('why')}"

    def _silence(self, there: str, silent: list[WorkerView]) -> tuple[Code, str]:
        expired = [
            worker
            for worker in silent
            if worker.certificate_seconds_left is not None and worker.certificate_seconds_left < 0
        ]
        if len(expired) == len(silent):
            return Code.CERTIFICATE, f"{there} has 0 workers in contact; {certificate_words(expired[0])}"
        latest = silent[0]
        number = count(len(silent), "worker")
        return Code.PARTITION, (
            f"{there} has 0 workers in contact; {number} of it not heard of, {latest.id} {latest.why}: cut off or gone"
        )

    def _full(self) -> tuple[Code, str] | None:
        serving = [worker for worker in self.fleet if worker.standing is Standing.SERVING]
        slots, used = sum(w.slots for w in serving), sum(w.slots_used for w in serving)
        if used < slots:
            return None
        before = self._before()
        ahead = f"{count(before, 'item')} {'waits' if before == 1 else 'wait'}" if before else "nothing waits"
        return Code.WORKERS_FULL, (
            f"all {slots} slots of {count(len(serving), 'worker')} in {self.place} are taken; {ahead} before it"
        )

    def _before(self) -> int:
        row, item = WorkItemRow, self.item
        ahead = or_(
            row.priority > item.priority, and_(row.priority == item.priority, row.placed_at < item.placed_at)
        )
        query = select(func.count()).where(
            row.state.in_((ItemState.PLACED, ItemState.SENT)),
            row.region == item.region,
            row.pool == item.pool,
            ahead,
        )
        return int(self.session.execute(query).scalar_one())

    def _soon(self) -> tuple[Code, str]:
        item, now = self.item, self.line.now
        serving = [worker for worker in self.fleet if worker.standing is Standing.SERVING]
        free = sum(w.slots - w.slots_used for w in serving)
        takers = f"{count(len(serving), 'worker')} with {count(free, 'free slot')} may take it"
        refusal = self._last_refusal()
        if item.state is ItemState.SENT:
            when = f"sent {ago(item.sent_at, now)} ago" if item.sent_at else "being sent"
            return Code.ON_QUEUE, f"on the queue of {self.place}, {when}; {takers}{refusal}"
        if item.not_before > now:
            return Code.WAITING_ROOM, f"to be sent to {self.place} in {span(item.not_before - now)}{refusal}"
        return Code.WAITING_ROOM, (
            f"waits for room on the queue of {self.place}, {count(self._before(), 'item')} before it; {takers}{refusal}"
        )

    def _last_refusal(self) -> str:
        step = self._last_step("claim.refused")
        return "" if step is None else f"; last {step.what}, {ago(step.at, self.line.now)} ago"

    def _last_step(self, event: str) -> Step | None:
        mine = (step for step in reversed(self.line.steps) if step.item_id == self.item.id)
        return next((step for step in mine if step.event == event), None)


def _by_version(refused: list[WorkerView]) -> str:
    kinds = Counter((worker.airbridge, worker.standing) for worker in refused)
    said = [
        f"{number} {_is(number)} on {version}, "
        f"{'drain only' if standing is Standing.DRAIN_ONLY else 'refused'}"
        for (version, standing), number in kinds.most_common(3)
    ]
    return f"{' and '.join(said)} ({refused[0].why})"


def _is(number: int) -> str:
    return "is" if number == 1 else "are"
