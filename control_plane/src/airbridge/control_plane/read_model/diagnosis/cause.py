"""Causes of a task's state: a stable code and one sentence."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum


class Code(StrEnum):
    """Code of a cause, the same in `--json`, on the dashboard and in docs/how-to/troubleshoot.md."""

    RUNNING = "running"
    STARTING = "starting"
    #: It waits for its trigger, which runs.
    DEFERRED = "deferred"
    ENDED = "ended"
    FAILED = "failed"
    #: Airflow itself has not queued it.
    NOT_QUEUED = "not_queued"
    SCHEDULER_DOWN = "scheduler_down"
    OTHER_EXECUTOR = "other_executor"
    #: It waits in the outbox for capacity on the queue.
    WAITING_CAPACITY = "waiting_capacity"
    #: A worker may take it at any moment.
    ON_QUEUE = "on_queue"
    NO_WORKER = "no_worker"
    WORKERS_FULL = "workers_full"
    #: As many tasks as a limit of the catalogue allows run already.
    LIMIT_REACHED = "limit_reached"
    #: Its team's work in the pool takes as many slots as the team's quota there allows.
    QUOTA_REACHED = "quota_reached"
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
    """Further finding about the task's environment."""

    code: Code
    sentence: str


@dataclass(frozen=True, slots=True)
class Cause:
    """Cause of a task's state. `sentence` is complete on its own."""

    code: Code
    sentence: str
    #: Time since when the task has been in this state.
    since: datetime | None = None
    notes: tuple[Note, ...] = ()

    @property
    def trouble(self) -> bool:
        """True if the cause needs an operator's attention."""
        return self.code not in _NO_TROUBLE


_NO_TROUBLE = frozenset(
    {
        Code.RUNNING,
        Code.STARTING,
        Code.DEFERRED,
        Code.ENDED,
        Code.NOT_QUEUED,
        Code.OTHER_EXECUTOR,
        Code.WAITING_CAPACITY,
    }
    | {Code.ON_QUEUE, Code.CANCELLED, Code.LIMIT_REACHED, Code.QUOTA_REACHED}
)


def ago(past: datetime, now: datetime) -> str:
    """Return the time between two moments, in one unit."""
    return span(now - past)


def span(length: timedelta) -> str:
    """Return a duration in one unit."""
    seconds = max(0, int(length.total_seconds()))
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7_200:
        return f"{seconds // 60} min"
    if seconds < 172_800:
        return f"{seconds // 3_600} h"
    return f"{seconds // 86_400} d"


def count(number: int, noun: str) -> str:
    """Return a number with its noun, in the plural unless it is 1."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
