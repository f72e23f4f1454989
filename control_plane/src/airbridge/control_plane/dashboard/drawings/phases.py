"""Phases of a task: where each of its work items was at any time, and what it waited for between them.

The events say it; the item's own times stand in for events that are gone. An item that is sent again was on the queue until
then, although its row has the time of the last send only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final

from airbridge.control_plane.read_model.history.timeline import Step, Timeline
from airbridge.control_plane.read_model.work import ItemView
from airbridge.executor.ledger.models import Outcome

OUTBOX: Final = "outbox"
QUEUE: Final = "queue"
RUN: Final = "run"
SILENT: Final = "silent"
WAIT: Final = "wait"

_EVENTS: Final = {
    "item.sent": QUEUE,
    "claim.granted": RUN,
    "item.released": OUTBOX,
    "item.rerouted": OUTBOX,
    "trigger.lost": OUTBOX,
}
# Reasons why a task waits in Airflow, by the state that it reported or has now.
_WAITS: Final = {
    "deferred": "deferred",
    "up_for_reschedule": "waiting to be rescheduled",
    "up_for_retry": "waiting for retry",
}


@dataclass(frozen=True, slots=True)
class Phase:
    """Time in one place. `end` is None while it lasts."""

    kind: str
    begin: datetime
    end: datetime | None
    label: str
    trouble: bool = False


def of_item(item: ItemView, steps: Sequence[Step], silent_since: datetime | None = None) -> Iterator[Phase]:
    """Yield the phases of a work item in order. `silent_since`: its holder has sent no heartbeat since."""
    changes = [(item.placed_at, OUTBOX), *_changes(item, steps)]
    ends: list[datetime | None] = [at for at, _ in changes[1:]]
    for (begin, kind), end in zip(changes, [*ends, item.settled_at], strict=True):
        last = end is item.settled_at
        if kind == RUN and end is None and silent_since is not None:
            since = max(begin, silent_since)
            yield Phase(RUN, begin, since, _label(item, RUN))
            yield Phase(SILENT, since, None, f"no heartbeat from {item.worker_id}", trouble=True)
        else:
            bad = kind == RUN and last and item.outcome in _BAD
            yield Phase(kind, begin, end, _label(item, kind), trouble=bad)


_BAD: Final = {Outcome.FAILED, Outcome.LOST, Outcome.UNPLACEABLE}


def waits(line: Timeline) -> Iterator[tuple[ItemView, Phase]]:
    """Yield the waits in Airflow after a work item: for a trigger, a reschedule or a retry."""
    for before, after in pairwise(line.items):
        if before.settled_at is not None and after.placed_at > before.settled_at:
            retried = after.try_number > before.try_number
            state = "up_for_retry" if retried else before.detail or ""
            label = _WAITS.get(state, "waiting in Airflow")
            yield before, Phase(WAIT, before.settled_at, after.placed_at, label)
    last, state = line.item, line.task.current.state or ""
    if last is not None and last.settled_at is not None and state in _WAITS:
        yield last, Phase(WAIT, last.settled_at, None, _WAITS[state])


def _changes(item: ItemView, steps: Sequence[Step]) -> list[tuple[datetime, str]]:
    found = [(step.at, _EVENTS[step.event]) for step in steps if step.event in _EVENTS]
    kinds = {kind for _, kind in found}
    for at, kind in ((item.sent_at, QUEUE), (item.claimed_at, RUN)):
        if at is not None and kind not in kinds:
            found.append((at, kind))
    end = item.settled_at
    kept: list[tuple[datetime, str]] = []
    for at, kind in sorted(found, key=lambda change: change[0]):
        # A fast worker claims before the send is recorded.
        late = kind == QUEUE and bool(kept) and kept[-1][1] == RUN
        if not late:
            kept.append((max(item.placed_at, at if end is None else min(at, end)), kind))
    return kept


def _label(item: ItemView, kind: str) -> str:
    of = "trigger " if item.is_trigger else ""
    match kind:
        case "outbox":
            return f"{of}waiting to be sent"
        case "queue":
            return f"{of}on the queue of {item.region}"
        case _:
            return f"{of}held by {item.worker_id}"
