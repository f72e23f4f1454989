"""Violations of the platform's promises, and what the expected values are made of."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from tests.chaos.history import TaskKey


class Kind(StrEnum):
    """Kinds of violation."""

    LOST = "lost"
    """Code produced a result that was not committed, without an honest reason."""
    DOUBLED = "doubled"
    """Committed twice, or run twice under one grant."""
    STUCK = "stuck"
    """Not settled, not finished, or not reported, though all is well again."""
    INVENTED = "invented"
    """Committed, and no code produced it."""
    DISHONEST = "dishonest failure"
    """Failed or given up without a kill or a cut that explains it."""
    FENCE = "fence broken"
    """Writes of an attempt that was not committed are visible."""
    DISAGREE = "disagreement"
    """Two sides have different records of the same task."""
    OVERLAP = "two attempts at once"
    """A second attempt of a task instance ran before the first had ended, and its worker could be reached."""
    ERROR = "error in task code"
    """Task code saw an error that its plan does not have."""
    LOG = "log not whole"
    REFERENCE = "reference without its object"
    """An XCom that is stored in the region cannot be read by its reference."""


@dataclass(frozen=True)
class Violation:
    """One violation of a promise."""

    kind: Kind
    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.where}: {self.what}"


def value_of(run_id: str, task_id: str, upstream: str = "") -> str:
    """Return a task's expected return value. Written a second time on purpose: the DAG file's own is under test."""
    return hashlib.sha256(f"{run_id}/{task_id}/{upstream}".encode()).hexdigest()


def name_of(key: TaskKey) -> str:
    """Return a task instance as text."""
    dag_id, run_id, task_id, map_index = key
    return f"{dag_id}.{task_id}{f'[{map_index}]' if map_index >= 0 else ''} {run_id}"
