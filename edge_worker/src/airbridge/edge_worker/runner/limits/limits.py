"""Limits of one task, its share of a worker's slots, and how it ran into one of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from airbridge.core.protocol import Grant
from airbridge.edge_worker.exceptions import RunnerError

MIB: Final = 1024 * 1024


class Limit(StrEnum):
    """Kind of limit. The same word in the event, the log and the docs."""

    MEMORY = "memory"
    PROCESSES = "processes"
    DISK = "disk"


@dataclass(frozen=True)
class Hit:
    """Limit that a task ran into, and the sentence that explains it with its numbers. It quotes nothing of the task's own."""

    limit: Limit
    detail: str


@dataclass(frozen=True)
class Limits:
    """Limits of one task; a field of None limits nothing. Memory and disk are in bytes, processors in cores."""

    memory: int | None = None
    cpus: float | None = None
    processes: int | None = None
    disk: int | None = None

    @property
    def in_cgroup(self) -> bool:
        """Return whether there is anything for a cgroup to hold."""
        return (self.memory, self.cpus, self.processes) != (None, None, None)


@dataclass(frozen=True)
class Share:
    """Limits of one slot of a worker, and how many slots it has. A task of several slots gets as many shares."""

    slots: int = 1
    limits: Limits = field(default_factory=Limits)

    def slots_for(self, grant: Grant) -> int:
        """Return the slots that a task takes: those of its work item, or more if its memory or processors need them."""
        wanted, share = grant.resources, self.limits
        needed = max(_shares(wanted.memory, share.memory), _shares(wanted.cpus, share.cpus), grant.slots)
        return min(needed, self.slots)

    def limits_for(self, grant: Grant) -> Limits:
        """Return a task's limits: what it requests, or else its slots' share. Raises `RunnerError` if this worker has less."""
        slots, share, wanted = self.slots_for(grant), self.limits, grant.resources
        self._check("memory", wanted.memory, share.memory, mebibytes)
        self._check("cpus", wanted.cpus, share.cpus, _cores)
        return Limits(
            memory=wanted.memory or _times(share.memory, slots),
            cpus=wanted.cpus or (None if share.cpus is None else share.cpus * slots),
            processes=_times(share.processes, slots),
            disk=_times(share.disk, slots),
        )

    def _check(
        self, name: str, wanted: float | None, share: float | None, text: Callable[[float], str]
    ) -> None:
        if wanted is None or share is None or wanted <= share * self.slots:
            return
        raise RunnerError(
            f"the task requests {name} of {text(wanted)}, and this worker has {text(share * self.slots)}: "
            f"{self.slots} slots of {text(share)} each. Request less, or send it to a pool of larger workers"
        )


def mebibytes(value: float) -> str:
    """Return an amount of memory or disk in words."""
    return f"{value / MIB:.0f} MiB"


def _cores(value: float) -> str:
    return f"{value:g}"


def _shares(wanted: float | None, share: float | None) -> int:
    return 0 if wanted is None or share is None else math.ceil(wanted / share)


def _times(share: int | None, slots: int) -> int | None:
    return None if share is None else share * slots
