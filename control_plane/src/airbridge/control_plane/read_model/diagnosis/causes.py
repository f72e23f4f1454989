"""Cause of a task's state, from the database alone.

The checks follow the path of a task: Airflow, placement, the queue, the gateway, the workers, the task. The first check
that finds something names the cause.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from airbridge.control_plane._airflow import Try
from airbridge.control_plane.read_model import gateways, tasks, workers
from airbridge.control_plane.read_model.diagnosis import scheduler, waiting
from airbridge.control_plane.read_model.diagnosis.cause import Cause, Code, Note, ago, span
from airbridge.control_plane.read_model.history import timeline
from airbridge.control_plane.read_model.history.timeline import Step, Timeline
from airbridge.control_plane.read_model.platform import Platform
from airbridge.control_plane.read_model.standing import MISSING
from airbridge.control_plane.read_model.work import ItemView
from airbridge.control_plane.read_model.workers import WorkerView
from airbridge.executor.ledger.models import ItemState, Outcome

EDGE_EXECUTOR = "airbridge.executor.EdgeExecutor"


def explain(session: Any, platform: Platform, line: Timeline) -> Cause:
    """Return the cause of the state of a timeline's task."""
    item = line.item
    if item is None or not _concerns(item, line.task.current):
        return _without_item(session, line)
    held_item = _Held(session, platform, line, item)
    if item.state is ItemState.SETTLED:
        return held_item.settled()
    if item.state is ItemState.CLAIMED:
        return held_item.claimed()
    return waiting.explain(session, platform, line, item)


_QUEUED_AGAIN = {"up_for_retry", "success", "failed", "restarting", "removed"}
_FINAL = {"success", "failed", "skipped", "upstream_failed", "removed"}
# Details of items whose task goes on with another item.
_PAUSED = {"deferred", "up_for_reschedule"}


def _concerns(item: ItemView, current: Try) -> bool:
    """Return whether a task's newest item explains its state: Airflow has not gone on with the task since."""
    if item.ti_id != current.ti_id and current.state not in _QUEUED_AGAIN:
        return False
    if item.is_trigger and item.open:
        return current.state == "deferred"
    return not _leaves_open(item) or current.state in _FINAL


def _leaves_open(item: ItemView) -> bool:
    """Return whether an item ended without ending its task."""
    paused = item.outcome == Outcome.SUCCESS and item.detail in _PAUSED
    return item.state is ItemState.SETTLED and (item.is_trigger or paused)


def _without_item(session: Any, line: Timeline) -> Cause:
    current = line.task.current
    tried = f" after try {current.try_number}" if current.try_number and line.items else ""
    if current.state in _FINAL:
        return Cause(Code.ENDED, f"ended: Airflow has it as {current.state}{tried}", current.ended_at)
    if current.executor and current.executor != EDGE_EXECUTOR:
        return Cause(
            Code.OTHER_EXECUTOR,
            f"it is {current.state or 'not queued'}; executor {current.executor!r} runs it",
        )
    down = scheduler.silence(session, line.now)
    if down is not None:
        return Cause(Code.SCHEDULER_DOWN, f"{current.state or 'not scheduled'}: {down.sentence}", down.since)
    if current.state == "queued":
        waited = f" for {ago(current.queued_at, line.now)}" if current.queued_at else ""
        return Cause(
            Code.NOT_QUEUED,
            f"queued by the scheduler{waited}; its executor has not placed it yet",
            current.queued_at,
        )
    if current.state == "deferred":
        item = line.item
        of_this = item is not None and item.ti_id == current.ti_id and item.detail == "deferred"
        since = item.settled_at if item is not None and of_this else None
        waited = f" for {ago(since, line.now)}" if since else ""
        return Cause(Code.DEFERRED, f"deferred{waited}: its trigger is with Airflow's triggerer", since)
    if current.state == "up_for_reschedule":
        return Cause(
            Code.NOT_QUEUED, f"up_for_reschedule{tried}: Airflow queues it again once its next run is due"
        )
    return Cause(
        Code.NOT_QUEUED,
        f"Airflow has it as {current.state or 'none'}{tried}: it is not eligible yet (dependencies, pools, limits)",
        current.scheduled_at,
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """Claimed or settled item, with its timeline."""

    session: Any
    platform: Platform
    line: Timeline
    item: ItemView

    # --- claimed ----------------------------------------------------------------------------------

    def claimed(self) -> Cause:
        """Return the cause for an item that a worker holds."""
        worker = workers.get(self.session, self.platform, self.item.worker_id or "")
        silent = self._silent(worker)
        if silent is not None:
            return silent
        cause = self._on_worker()
        notes = [*self._denials(), *waiting.certificate_notes([worker] if worker else [])]
        return replace(cause, notes=tuple(notes))

    def _silent(self, worker: WorkerView | None) -> Cause | None:
        """Return the cause for an item whose lease is over, or whose holder sends no heartbeats; None otherwise."""
        item, now = self.item, self.line.now
        if item.lease_until is None or item.renewed_at is None:
            return None
        missing = worker if worker is not None and worker.standing in MISSING else None
        if item.lease_until > now and missing is None:
            return None
        # Pages show the age of the worker's heartbeat, and so does this sentence.
        since = (missing.last_heartbeat_at if missing else None) or item.renewed_at
        ends = (
            f"its lease ran out {ago(item.lease_until, now)} ago"
            if item.lease_until <= now
            else f"its lease runs out in {span(item.lease_until - now)}"
        )
        given_up = "it is sent again" if item.is_trigger else "it is fenced off"
        fenced = f", {given_up} in {span(item.lost_at - now)}" if item.lost_at and item.lost_at > now else ""
        held = self._held
        down = gateways.down(self.session)
        if down:
            return Cause(
                Code.GATEWAY_DOWN,
                f"{held}, but {down}; the worker continues: {ends}{fenced}",
                item.renewed_at,
            )
        if (
            worker is not None
            and worker.certificate_seconds_left is not None
            and worker.certificate_seconds_left < 0
        ):
            return Cause(
                Code.CERTIFICATE,
                f"{held}, whose certificate expired "
                f"{span(now - worker.certificate_expires_at)} ago without being renewed: {ends}{fenced}",  # type: ignore[operator] # set when seconds_left is
                item.renewed_at,
            )
        return Cause(
            Code.PARTITION,
            f"{held}, no heartbeat for {ago(since, now)}: disconnected or dead; {ends}{fenced}",
            since,
        )

    @property
    def _held(self) -> str:
        held = f"held by {self.item.worker_id} in {self.item.region}"
        return f"deferred, its trigger {held}" if self.item.is_trigger else held

    def _on_worker(self) -> Cause:
        item, now = self.item, self.line.now
        since = item.claimed_at or item.placed_at
        held = f"{item.worker_id} in {item.region}"
        mine = [step for step in self.line.steps if step.item_id == item.id and step.epoch == item.epoch]
        last = next((step for step in reversed(mine) if step.event in _EDGE_STATES), None)
        if item.is_trigger:
            return self._trigger_on_worker(last)
        if last is None:
            return Cause(
                Code.STARTING, f"claimed by {held} {ago(since, now)} ago; no further event yet", since
            )
        if last.event == "bundle.failing":
            return Cause(Code.MISSING_BUNDLE, f"claimed {ago(since, now)} ago, but {last.what}", since)
        if last.event == "task.forked":
            return Cause(Code.RUNNING, f"running for {ago(last.at, now)} on {held}", last.at)
        if last.event == "task.stopping":
            return Cause(Code.CANCELLED, last.what, last.at)
        return Cause(Code.STARTING, f"claimed by {held} {ago(since, now)} ago: {last.what}", since)

    def _trigger_on_worker(self, last: Step | None) -> Cause:
        item, now = self.item, self.line.now
        waited = f"deferred for {ago(item.placed_at, now)}"
        if last is not None and last.event == "bundle.failing":
            return Cause(
                Code.MISSING_BUNDLE, f"{waited}; its trigger does not start: {last.what}", item.placed_at
            )
        return Cause(
            Code.DEFERRED, f"{waited}: its trigger runs on {item.worker_id} in {item.region}", item.placed_at
        )

    # --- settled ----------------------------------------------------------------------------------

    def settled(self) -> Cause:
        """Return the cause for an item that has ended."""
        item, state = self.item, self.line.task.current.state
        after = f"; Airflow has it as {state}" if state else ""
        since = item.settled_at
        notes = tuple(self._denials())
        if item.outcome == Outcome.UNPLACEABLE:
            return Cause(self._unplaceable(), f"not placed: {item.detail}{after}", since)
        if item.outcome == Outcome.LOST and not item.is_trigger:
            return Cause(Code.FENCED, f"fenced off: {item.detail}{self._late_results()}{after}", since, notes)
        if item.outcome in {Outcome.CANCELLED, Outcome.LOST}:
            return Cause(Code.CANCELLED, f"cancelled: {item.detail}{after}", since, notes)
        if _leaves_open(item):
            return self._ended_between(after)
        why = self._last("task.failed")
        failing = self._last("bundle.failing")
        if failing is not None and self._last("task.forked") is None and state != "success":
            # The worker's reason arrives with its next heartbeat, later than the failure itself.
            reported = why.detail.get("why") if why else failing.what
            return Cause(Code.MISSING_BUNDLE, f"failed: {reported}{after}", since, notes)
        bad = item.outcome == Outcome.FAILED or state in {"failed", "up_for_retry"}
        if bad and item.detail not in _REPORTED:
            return Cause(
                Code.FAILED,
                f"failed on {item.worker_id} in {item.region}: {item.detail}{after}",
                since,
                notes,
            )
        if bad and notes:
            return Cause(Code.POLICY_DENIAL, f"failed after {notes[-1].sentence}{after}", since, notes)
        if bad:
            reported = why.detail.get("why") if why else f"the task reported {item.detail}; see its log"
            return Cause(
                Code.FAILED, f"failed on {item.worker_id} in {item.region}: {reported}{after}", since
            )
        return Cause(Code.ENDED, f"ended on {item.worker_id} in {item.region} as {item.detail}{after}", since)

    def _ended_between(self, after: str) -> Cause:
        """Return the cause for a task that has ended without another item: by its trigger, or in Airflow."""
        item, failed = self.item, self.line.task.current.state in {"failed", "upstream_failed"}
        code, ended = (Code.FAILED, "failed") if failed else (Code.ENDED, "ended")
        place = f"on {item.worker_id} in {item.region}" if item.worker_id else f"in {item.region}"
        if item.is_trigger and (item.detail or "").startswith("fired"):
            return Cause(code, f"{ended} by its trigger {place}{after}", item.settled_at)
        paused = "rescheduled" if item.detail == "up_for_reschedule" else "deferred"
        return Cause(code, f"{ended} after it was {paused} {place}{after}", item.settled_at)

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


# Details of items that the task itself reported failed; another one is a reason of the control plane's own.
_REPORTED = {"failed", "up_for_retry"}
_EDGE_STATES = {
    *("message.claimed", "bundle.failing", "bundle.fetched", "task.forked", "task.ended", "task.stopping"),
    "task.failed",
}


def of_task(session: Any, platform: Platform, task: tasks.TaskView) -> tuple[Timeline, Cause]:
    """Return a task's timeline and the cause that it gives."""
    line = timeline.of(session, task)
    return line, explain(session, platform, line)
