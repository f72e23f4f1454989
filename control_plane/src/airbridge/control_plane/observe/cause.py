"""A cause: why a task is not running, as a stable code and one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class Code(StrEnum):
    """The causes. The same word in `--json`, on the dashboard and in docs/troubleshooting.md."""

    RUNNING = "running"
    STARTING = "starting"
    ENDED = "ended"
    FAILED = "failed"
    NOT_QUEUED = "not_queued"
    """Airflow itself has not queued it."""
    SCHEDULER_DOWN = "scheduler_down"
    OTHER_EXECUTOR = "other_executor"
    WAITING_ROOM = "waiting_room"
    """It waits in the outbox for room on the queue."""
    ON_QUEUE = "on_queue"
    """A worker may take it at any moment."""
    NO_WORKER = "no_worker"
    WORKERS_FULL = "workers_full"
    PARITY = "parity"
    DRAINING = "draining"
    QUEUE_UNREACHABLE = "queue_unreachable"
    GATEWAY_DOWN = "gateway_down"
    PARTITION = "partition"
    POLICY_DENIAL = "policy_denial"
    MISSING_BUNDLE = "missing_bundle"
    CERTIFICATE = "certificate"
    UNKNOWN_REGION = "unknown_region"
    UNPLACEABLE = "unplaceable"
    FENCED = "fenced"
    POISON = "poison"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Note:
    """Something else that an operator should know of the task's surroundings."""

    code: Code
    sentence: str


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a task is where it is. `sentence` is complete: it can be shown alone."""

    code: Code
    sentence: str
    since: datetime | None = None
    """Since when the task has been in this state."""
    notes: tuple[Note, ...] = ()

    @property
    def trouble(self) -> bool:
        """Whether somebody should do something."""
        return self.code not in _CALM


_CALM = frozenset(
    {Code.RUNNING, Code.STARTING, Code.ENDED, Code.NOT_QUEUED, Code.OTHER_EXECUTOR, Code.WAITING_ROOM}
    | {Code.ON_QUEUE, Code.CANCELLED}
)


def ago(past: datetime, now: datetime) -> str:
    """Return the time between as a person says it."""
    return span(now - past)


def span(length: timedelta) -> str:
    """Return a duration as a person says it."""
    seconds = max(0, int(length.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7_200:
        return f"{seconds // 60} min"
    if seconds < 172_800:
        return f"{seconds // 3_600} h"
    return f"{seconds // 86_400} d"


def count(number: int, noun: str) -> str:
    """Return a number with its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
