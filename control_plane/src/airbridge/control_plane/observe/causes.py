"""Why a task is not running: the one place that knows. It reads what is in the database and guesses nothing.

The order of the questions is the order of the path: Airflow, placement, the queue, the gateway, the workers, the task.
The first that has an answer names the cause.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from airbridge.control_plane.observe import tasks, timeline, waiting, workers
from airbridge.control_plane.observe.cause import Cause, Code, Note, ago, span
from airbridge.control_plane.observe.platform import Platform
from airbridge.control_plane.observe.timeline import Step, Timeline
from airbridge.control_plane.observe.work import ItemView
from airbridge.control_plane.observe.workers import WorkerView
from airbridge.executor.ledger.models import ItemState, Outcome

OURS = "airbridge.executor.EdgeExecutor"
SCHEDULER_SILENT_SECONDS = 60.0


def explain(session: Any, platform: Platform, line: Timeline) -> Cause:
    """Return why the task of a timeline is where it is."""
    item = line.item
    current = line.task.current
    if item is None or (item.ti_id != current.ti_id and current.state not in _QUEUED_AGAIN):
        return _without_item(session, line)
    about = _About(session, platform, line, item)
    if item.state is ItemState.SETTLED:
        return about.settled()
    if item.state is ItemState.CLAIMED:
        return about.claimed()
    return waiting.explain(session, platform, line, item)


_QUEUED_AGAIN = {"up_for_retry", "success", "failed", "restarting", "removed"}


def _without_item(session: Any, line: Timeline) -> Cause:
    current = line.task.current
    tried = f" after try {current.try_number}" if current.try_number and line.items else ""
    if current.state in {"success", "failed", "skipped", "upstream_failed", "removed"}:
        return Cause(Code.ENDED, f"ended: Airflow has it as {current.state}{tried}", current.ended_at)
    if current.executor and current.executor != OURS:
        return Cause(
            Code.OTHER_EXECUTOR,
            f"it is {current.state or 'not queued'}; executor {current.executor!r} runs it",
        )
    seen = tasks.scheduler_seen_at(session)
    if seen is None or (line.now - seen).total_seconds() > SCHEDULER_SILENT_SECONDS:
        when = f"has not been heard of for {ago(seen, line.now)}" if seen else "has ever been heard of"
        whom = "the scheduler" if seen else "no scheduler"
        return Cause(Code.SCHEDULER_DOWN, f"{current.state or 'not scheduled'}: {whom} {when}", seen)
    if current.state == "queued":
        waited = f" for {ago(current.queued_at, line.now)}" if current.queued_at else ""
        return Cause(
            Code.NOT_QUEUED,
            f"queued by the scheduler{waited}; its executor has not taken it over yet",
            current.queued_at,
        )
    return Cause(
        Code.NOT_QUEUED,
        f"Airflow has it as {current.state or 'none'}{tried}: its turn has not come (dependencies, pools, limits)",
        current.scheduled_at,
    )


@dataclass(frozen=True, slots=True)
class _About:
    """One claimed or settled item, and what surrounds it."""

    session: Any
    platform: Platform
    line: Timeline
    item: ItemView

    # --- claimed ----------------------------------------------------------------------------------

    def claimed(self) -> Cause:
        """Why a task that a worker holds is not running, if it is not."""
        worker = workers.get(self.session, self.platform, self.item.worker_id or "")
        silent = self._silent(worker)
        if silent is not None:
            return silent
        cause = self._at_the_edge()
        notes = [*self._denials(), *waiting.certificate_notes([worker] if worker else [])]
        return replace(cause, notes=tuple(notes))

    def _silent(self, worker: WorkerView | None) -> Cause | None:
        item, now = self.item, self.line.now
        if item.lease_until is None or item.lease_until > now or item.renewed_at is None:
            return None
        heard = ago(item.renewed_at, now)
        ends = f"its lease ran out {ago(item.lease_until, now)} ago"
        fenced = (
            f", it is fenced off in {span(item.lost_at - now)}" if item.lost_at and item.lost_at > now else ""
        )
        down = waiting.gateway_down(self.session)
        if down:
            return Cause(
                Code.GATEWAY_DOWN,
                f"held by {item.worker_id} in {item.region}, but {down}; the worker runs on: {ends}{fenced}",
                item.renewed_at,
            )
        if (
            worker is not None
            and worker.certificate_seconds_left is not None
            and worker.certificate_seconds_left < 0
        ):
            return Cause(
                Code.CERTIFICATE,
                f"held by {item.worker_id} in {item.region}, whose certificate ended "
                f"{span(now - worker.certificate_expires_at)} ago without being renewed: {ends}{fenced}",  # type: ignore[operator] # set when seconds_left is
                item.renewed_at,
            )
        return Cause(
            Code.PARTITION,
            f"held by {item.worker_id} in {item.region}, not heard of for {heard}: cut off or gone; {ends}{fenced}",
            item.renewed_at,
        )

    def _at_the_edge(self) -> Cause:
        item, now = self.item, self.line.now
        since = item.claimed_at or item.placed_at
        held = f"{item.worker_id} in {item.region}"
        mine = [step for step in self.line.steps if step.item_id == item.id and step.epoch == item.epoch]
        last = next((step for step in reversed(mine) if step.event in _EDGE_STATES), None)
        if last is None:
            return Cause(
                Code.STARTING, f"claimed by {held} {ago(since, now)} ago; it has not said more yet", since
            )
        if last.event == "bundle.failing":
            return Cause(Code.MISSING_BUNDLE, f"claimed {ago(since, now)} ago, but {last.what}", since)
        if last.event == "task.forked":
            return Cause(Code.RUNNING, f"running for {ago(last.at, now)} on {held}", last.at)
        if last.event == "task.stopping":
            return Cause(Code.CANCELLED, last.what, last.at)
        return Cause(Code.STARTING, f"claimed by {held} {ago(since, now)} ago: {last.what}", since)

    # --- settled ----------------------------------------------------------------------------------

    def settled(self) -> Cause:
        """Why a task that is over ended as it did."""
        item, state = self.item, self.line.task.current.state
        after = f"; Airflow has it as {state}" if state else ""
        since = item.settled_at
        notes = tuple(self._denials())
        if item.outcome == Outcome.UNPLACEABLE:
            return Cause(self._unplaceable(), f"not placed: {item.detail}{after}", since)
        if item.outcome == Outcome.LOST:
            return Cause(Code.FENCED, f"fenced off: {item.detail}{self._late_results()}{after}", since, notes)
        if item.outcome == Outcome.CANCELLED:
            return Cause(Code.CANCELLED, f"cancelled: {item.detail}{after}", since, notes)
        why = self._last("task.failed")
        failing = self._last("bundle.failing")
        if failing is not None and self._last("task.forked") is None and state != "success":
            # Why the worker gave up comes with its next heartbeat, after the failure itself.
            said = why.detail.get("why") if why else failing.what
            return Cause(Code.MISSING_BUNDLE, f"failed: {said}{after}", since, notes)
        bad = item.outcome == Outcome.FAILED or state in {"failed", "up_for_retry"}
        if bad and notes:
            return Cause(Code.POLICY_DENIAL, f"failed after {notes[-1].sentence}{after}", since, notes)
        if bad:
            said = why.detail.get("why") if why else f"the task reported {item.detail}; its log says why"
            return Cause(Code.FAILED, f"failed on {item.worker_id} in {item.region}: {said}{after}", since)
        return Cause(Code.ENDED, f"ended on {item.worker_id} in {item.region} as {item.detail}{after}", since)

    def _unplaceable(self) -> Code:
        queue = self.item.queue
        region = queue.rpartition("@")[2]
        known = self.platform.catalogue.region(region) is not None
        if known:
            return Code.UNPLACEABLE
        return Code.MISSING_BUNDLE if "DAG bundle" in (self.item.detail or "") else Code.UNKNOWN_REGION

    def _late_results(self) -> str:
        if self._last("exchange.refused"):
            return "; what its worker reported later was refused"
        return "; its worker stopped it" if self._last("task.stopping") else ""

    def _last(self, event: str) -> Step | None:
        mine = (step for step in reversed(self.line.steps) if step.item_id == self.item.id)
        return next((step for step in mine if step.event == event), None)

    def _denials(self) -> list[Note]:
        denied = [
            step for step in self.line.steps if step.event == "call.denied" and step.item_id == self.item.id
        ]
        return [Note(Code.POLICY_DENIAL, f"a call was {step.what}") for step in denied[-3:]]


_EDGE_STATES = {
    *("message.claimed", "bundle.failing", "bundle.fetched", "task.forked", "task.ended", "task.stopping"),
    "task.failed",
}


def of_task(session: Any, platform: Platform, task: tasks.TaskView) -> tuple[Timeline, Cause]:
    """Return a task's timeline and the cause that it gives."""
    line = timeline.of(session, task)
    return line, explain(session, platform, line)
