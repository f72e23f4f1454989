"""Records of one history: the facts as each side recorded them. Values only; `recorder` fills them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.chaos.schedule import Schedule

TaskKey = tuple[str, str, str, int]
"""dag_id, run_id, task_id, map_index."""


@dataclass(frozen=True)
class Effect:
    """A line that task code wrote to a file of its own, whatever the rest of the world believed."""

    key: TaskKey
    ti_id: str
    try_number: int
    what: str
    """``start`` or ``end``."""
    outcome: str | None
    at: float


@dataclass(frozen=True)
class Item:
    """A row of the ledger: one queueing of one task instance."""

    id: str
    key: TaskKey
    ti_id: str
    try_number: int
    state: str
    outcome: str | None
    detail: str
    epoch: int
    worker: str | None
    lost_after: float
    placed_at: float
    claimed_at: float | None
    renewed_at: float | None
    settled_at: float | None


@dataclass(frozen=True)
class Fire:
    """A line that a trigger's code wrote to a file of its own when it fired."""

    ti_id: str
    at: float


@dataclass(frozen=True)
class Applied:
    """An event of a trigger that the control plane applied."""

    item: str
    worker: str
    """The worker that reported it."""
    fired_at: float
    """The time that the control plane took for the event's."""
    at: float


@dataclass(frozen=True)
class Task:
    """Airflow's row of a task instance: its last try."""

    key: TaskKey
    ti_id: str
    state: str | None
    try_number: int


@dataclass(frozen=True)
class Death:
    """A worker's process that was killed, and the results in its journal at that moment."""

    worker: str
    at: float
    journalled: frozenset[str]
    """Work items whose final state was in the journal, unreported: synced, according to the worker."""
    held: frozenset[str] = frozenset()
    """Work items whose grant was in it."""


@dataclass(frozen=True)
class Report:
    """The response that a worker got to a final state that it reported."""

    worker: str
    item: str
    status: int


@dataclass(frozen=True)
class History:
    """The records of all sides."""

    schedule: Schedule
    runs: Mapping[tuple[str, str], str]
    """(dag_id, run_id) to the run's state."""
    plans: Mapping[tuple[str, str], Mapping[str, Mapping[str, Any]]]
    lease_seconds: float = 4.0
    """How long a worker may be silent before another attempt of a cancelled task may start."""
    effects: tuple[Effect, ...] = ()
    items: tuple[Item, ...] = ()
    tasks: tuple[Task, ...] = ()
    xcoms: Mapping[tuple[TaskKey, str], Any] = field(default_factory=dict)
    variables: Mapping[str, str] = field(default_factory=dict)
    deaths: tuple[Death, ...] = ()
    cleared: frozenset[TaskKey] = frozenset()
    """Task instances that were cleared while they ran."""
    reports: tuple[Report, ...] = ()
    settlements: Mapping[str, int] = field(default_factory=dict)
    """Number of settlement events of each work item."""
    journals: Mapping[str, int] = field(default_factory=dict)
    """Number of records that each worker had yet to report at the end."""
    ended: Mapping[str, int] = field(default_factory=dict)
    """Workers that ended without being killed, and their exit codes."""
    triggers: tuple[Item, ...] = ()
    """The ledger's rows of triggers."""
    applied: tuple[Applied, ...] = ()
    cancelled: Mapping[str, float] = field(default_factory=dict)
    """Times at which triggers were cancelled, by work item."""
    lost: frozenset[str] = frozenset()
    """Work items of triggers that a silent worker lost."""
    fires: tuple[Fire, ...] = ()
    objects: Mapping[str, str] = field(default_factory=dict)
    """Digests of the stored XComs' contents, by key in the region's bucket."""
    logs: Mapping[str, str] = field(default_factory=dict)
    """The shipped whole logs, by work item."""
