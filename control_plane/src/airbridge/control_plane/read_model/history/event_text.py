"""Sentences for events, by their stable names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from airbridge.control_plane.read_model.diagnosis.cause import count

_SENTENCES: Final[Mapping[str, str]] = {
    # events of the control plane
    "item.placed": "placed in {pool}@{region}: {why}",
    "item.unplaceable": "could not be placed: {reason}",
    "item.sent": "sent to the queue of {region}",
    "item.unsent": "could not be sent: {reason}",
    "item.rerouted": "moved to {region}: {reason}",
    "item.cancelled": "cancelled: {reason}",
    "item.lost": "fenced off: {reason}",
    "item.released": "given back by {worker}: {why}",
    "item.settled": "{ended}",
    "trigger.placed": "placed in {pool}@{region}: its task is deferred",
    "trigger.fired": "event of {worker} applied: {outcome}",
    "trigger.lost": "given up, to be sent again: {reason}",
    "enrol.refused": "{worker} on {runs} was refused an identity: {why}",
    "claim.granted": "granted to {worker}",
    "claim.refused": "refused to {worker}: {reason} ({why})",
    "call.denied": "denied: {method} {path} ({why})",
    "write.refused": "refused: {method} {path} ({why})",
    "exchange.refused": "{reports} of {worker}, late, refused: {reason}",
    "exchange.applied": "{reports} of the task applied",
    "xcom.written": "XCom {key} written, {size}{in_bucket}",
    "xcom.read": "XCom {key} of {of_task} read, {size}{in_bucket}",
    # events of the edge
    "message.received": "received from the queue by {worker}",
    "message.rejected": "message rejected by {worker}: {reason} ({why})",
    "message.claimed": "claimed by {worker}, grant journalled",
    "bundle.fetched": "DAG code {bundle} fetched by {worker}{moved}",
    "bundle.failing": "DAG code {bundle} cannot be fetched by {worker}: {why}",
    "task.forked": "process started on {worker}",
    "task.ended": "process ended on {worker} ({exception}){used}{ran_into}",
    "task.stopping": "being stopped on {worker}: {reason} ({why})",
    "task.failed": "failed by {worker}: {why}",
    "report.delivered": "{reports} delivered by {worker}",
    "report.refused": "reports of {worker} refused: {reason}",
    "link.cut": "{worker} lost its connection to the gateway",
    "link.restored": "{worker} is connected again",
    "queue.failing": "{worker} cannot receive from its queue: {why}",
    "queue.restored": "{worker} receives from its queue again",
    "agent.started": "{worker} started",
    "clock.skewed": "the clock of {worker} is off",
    "journal.damaged": "the journal of {worker} was damaged: {why}",
    "write.accepted_locally": "{method} {path} accepted on {worker} during a cut",
}

# Ends of an attempt, by the state that the task reported, or else by the outcome of the work item.
_ENDS: Final[Mapping[str, str]] = {
    "success": "ended: success",
    "skipped": "ended: skipped",
    "failed": "ended: failed",
    "up_for_retry": "ended: failed, to be retried",
    "deferred": "ended: deferred until its trigger fires",
    "up_for_reschedule": "ended: to be started again later",
    "removed": "ended: removed from its DAG",
    # of triggers
    "fired": "ended: fired, its task goes on",
    "fired: success": "ended: fired, its task succeeded",
    "fired: failed": "ended: fired, its task failed",
    "fired: skipped": "ended: fired, its task skipped",
    "lost": "ended: lost",
    "cancelled": "ended: cancelled",
    "unplaceable": "ended: not placed",
}

_TROUBLES: Final = frozenset(
    {
        *(
            "item.unplaceable",
            "item.unsent",
            "item.lost",
            "trigger.lost",
            "claim.refused",
            "call.denied",
            "exchange.refused",
        ),
        "write.refused",
        *("enrol.refused", "message.rejected", "bundle.failing", "task.stopping", "task.failed"),
        *(
            "clock.skewed",
            "journal.damaged",
            "report.refused",
            "link.cut",
            "queue.failing",
            "request.refused",
        ),
    }
)

# Events that have a sentence.
NAMES: Final = frozenset(_SENTENCES)


class _Blanks(dict[str, Any]):
    """Mapping that renders missing details as empty."""

    def __missing__(self, key: str) -> str:
        return ""


def of(event: str, detail: Mapping[str, Any], region: str | None = None, worker: str | None = None) -> str:
    """Return an event as a sentence without its subject; an event without a sentence is shown by its name."""
    sentence = _SENTENCES.get(event)
    if sentence is None:
        return event.replace(".", " ").replace("_", " ")
    words = {key: value for key, value in detail.items() if value is not None}
    if event == "item.settled":
        words["ended"] = _ended(str(words.get("outcome", "")), str(words.get("reason") or ""))
    cpu, peak = words.get("cpu_seconds"), words.get("peak_memory_bytes")
    # Not what a worker could have put there before the gateway kept numbers alone.
    if isinstance(cpu, int | float) and isinstance(peak, int):
        words["used"] = f", used {cpu:.3g} s of CPU and {peak / 2**20:.0f} MiB"
    words |= _sizes(words)
    if event == "task.ended" and words.get("why"):
        words["ran_into"] = f". {words['why']}"
    if "records" in words:
        words["reports"] = count(words["records"], "report")
    filled = sentence.format_map(_Blanks(words | {"region": region or "", "worker": worker or "a worker"}))
    return filled.replace(" ()", "").rstrip(": ")


def _sizes(words: Mapping[str, Any]) -> dict[str, str]:
    """Return the words of a size, and of the bucket that something lies in."""
    size, moved = words.get("bytes"), words.get("moved_bytes")
    return {
        "size": size_text(size) if isinstance(size, int) else "",
        "moved": f", {size_text(moved)}" if isinstance(moved, int) else "",
        "in_bucket": f", in the bucket of {words['stored']}" if words.get("stored") else "",
    }


def size_text(size: int) -> str:
    """Return a number of bytes in the largest unit that it is at least one of."""
    for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= factor:
            return f"{size / factor:.3g} {unit}" if size < 100 * factor else f"{size / factor:.0f} {unit}"
    return f"{size} B"


def _ended(outcome: str, reason: str) -> str:
    """Return how an attempt ended: by the state that the task reported, else by the outcome, with the reason for it."""
    if reason in _ENDS:
        return _ENDS[reason]
    return _ENDS.get(outcome, f"ended: {outcome}") + (f" ({reason})" if reason else "")


def is_trouble(event: str, detail: Mapping[str, Any]) -> bool:
    """Return whether an event is a refusal, a failure or a loss."""
    if event == "item.settled":
        return detail.get("outcome") in {"failed", "lost", "unplaceable"} or detail.get("reason") == "failed"
    return event in _TROUBLES or (event == "task.ended" and bool(detail.get("limit")))
