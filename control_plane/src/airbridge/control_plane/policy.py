"""What a task may read and write beyond its own: the one place that decides.

The gateway has checked by then who calls, that the caller holds the task, and that writes to task
instances and XComs are the task's own; no policy can widen that. A policy narrows the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """The task on whose behalf a call is made, from the ledger's row: never from what the caller says."""

    item_id: str
    ti_id: str
    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    region: str
    pool: str
    worker: str
    queue: str


@dataclass(frozen=True, slots=True)
class Access:
    """What a task asks for: an action (``connections:read``) on a name, perhaps of another DAG.

    An asset has two names, `name` and `uri`; a rule that matches either allows it.
    """

    action: str
    name: str | None = None
    dag_id: str | None = None
    run_id: str | None = None
    uri: str | None = None


@dataclass(frozen=True, slots=True)
class Ruling:
    """The answer. `rule` is the name of the rule that allowed it, or of what denied it."""

    allowed: bool
    rule: str
    why: str = ""
    """Of a denial: the message for the task, which names the rule that would allow it."""


OWN: Final = "own"
"""The rule's name where a task asks for what is its own."""


class Policy(Protocol):
    """Decides one access."""

    def judge(self, task: TaskFacts, access: Access) -> Ruling:
        """Return whether `task` may, by which rule, or why not."""


class AirflowPolicy:
    """Airflow 3.0.4's own semantics: any task may read any connection, variable and XCom, and trigger any DAG."""

    def judge(self, task: TaskFacts, access: Access) -> Ruling:  # noqa: ARG002 - the protocol's
        """Allow."""
        return Ruling(True, OWN)
