"""Policy decisions on a task's access to resources that are not its own.

The gateway authenticates the caller first, and checks that it holds the task and that writes to task
instances and XComs are the task's own; no policy can widen that. A policy narrows the rest.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final, Protocol


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """Task of a call, from the ledger's row: never from the caller's request."""

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
    #: The DAG bundle that defines the task's DAG, as the work item was placed.
    bundle: str = ""


class Source(StrEnum):
    """Place of the value of a connection or a variable."""

    #: Airflow's database, or a secrets backend of the control plane.
    HOME = "home"
    #: The secrets backend of the task's own pool.
    REGION = "region"


@dataclass(frozen=True, slots=True)
class Access:
    """Requested access: an action (``connections:read``) on a name, perhaps of another DAG.

    An asset has two names, `name` and `uri`. The two that are given here are those by which Airflow looks it up, and
    each of them has to be allowed.
    """

    action: str
    name: str | None = None
    dag_id: str | None = None
    run_id: str | None = None
    uri: str | None = None
    source: Source = Source.HOME


@dataclass(frozen=True, slots=True)
class AssetRef:
    """An asset, or an asset's alias, by the names that are given: of an asset its name, its URI or both."""

    name: str | None = None
    uri: str | None = None
    alias: bool = False

    def covers(self, asked: AssetRef) -> bool:
        """Return whether `asked` refers to this asset or alias, by every name that it gives."""
        if self.alias or asked.alias:
            return self.alias == asked.alias and self.name == asked.name
        named = asked.name in {None, self.name} and asked.uri in {None, self.uri}
        return named and (asked.name or asked.uri) is not None


@dataclass(frozen=True, slots=True)
class Ruling:
    """The answer. `rule` is the name of the rule that allowed it (of two, where each allowed a name), or of what denied it."""

    allowed: bool
    rule: str
    #: Message of a denial for the task; it names the rule that would allow the access.
    why: str = ""


# Name of the rule for access to a task's own resources.
OWN: Final = "own"

# The action of a bundle that defines the task's DAG. Allowed as `OWN`: without an owner in the policy, the
# first bundle to define the DAG is its owner.
DEFINE: Final = "dags:define"


class Policy(Protocol):
    """Policy that decides on accesses."""

    def judge(self, task: TaskFacts, access: Access) -> Ruling:
        """Return the decision on an access of `task`."""


class AirflowPolicy:
    """Policy with Airflow 3.0.4's semantics: any task may read any connection, variable and XCom, and trigger any DAG."""

    def judge(self, task: TaskFacts, access: Access) -> Ruling:  # noqa: ARG002 - the protocol's
        """Allow."""
        return Ruling(True, OWN)
