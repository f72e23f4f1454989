"""Routes of the execution API proxy: the treatment of each call of the Task Execution API, in one table.

A *deferred* write is acknowledged once it is journalled, and sent together with others. A *passed* write is
journalled too, but its answer is Airflow's, because a task may have to act on a refusal. A *read* is Airflow's answer,
or the cache's during a cut. Start and heartbeat are answered here: the grant and the lease have settled them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final
from urllib.parse import parse_qs, unquote
from uuid import UUID

from airbridge.core.protocol import Grant
from airbridge.edge_worker.proxy.protocol import READS, Call

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"})


class Kind(StrEnum):
    """Treatment of a call."""

    RUN = "run"
    HEARTBEAT = "heartbeat"
    #: The task's state: deferred, and the last write that the control plane needs.
    FINAL = "final"
    DEFERRED = "deferred"
    PASSED = "passed"
    READ = "read"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Route:
    """A call's kind, and the status that stands for "accepted" when the proxy answers by itself."""

    kind: Kind
    accepted: int = 200


# The statuses are those of Airflow 3.0.4's routes (execution_api/routes).
_OWN_TASK: Final = {
    ("PATCH", "run"): Route(Kind.RUN, 200),
    ("PUT", "heartbeat"): Route(Kind.HEARTBEAT, 204),
    ("PATCH", "state"): Route(Kind.FINAL, 204),
    ("PUT", "rtif"): Route(Kind.DEFERRED, 201),
    ("PATCH", "skip-downstream"): Route(Kind.DEFERRED, 204),
}
_ACCEPTED: Final = {
    ("POST", "xcoms"): 201,
    ("DELETE", "xcoms"): 200,
    ("PUT", "variables"): 201,
    ("DELETE", "variables"): 204,
    ("POST", "dag-runs"): 204,
}


def classify(call: Call, grant: Grant) -> Route:
    """Return how the task of `grant` is served this call."""
    if call.method not in METHODS:
        return Route(Kind.UNKNOWN)
    parts = segments(call.path)
    if call.method in READS:
        return Route(Kind.READ)
    if len(parts) == 3 and parts[0] == "task-instances" and _same(parts[1], grant.ti_id):
        own = _OWN_TASK.get((call.method, parts[2]))
        if own is not None:
            return own
    accepted = _ACCEPTED.get((call.method, parts[0] if parts else ""), 200)
    deferred = _is_own_xcom(parts, grant) and not _may_be_refused(call)
    return Route(Kind.DEFERRED if deferred else Kind.PASSED, accepted)


def segments(path: str) -> list[str]:
    """Return the decoded segments of a path relative to the API's root."""
    return [unquote(part) for part in path.strip("/").split("/")]


def _is_own_xcom(parts: list[str], grant: Grant) -> bool:
    ti = grant.ti
    own = ["xcoms", ti.get("dag_id"), ti.get("run_id"), ti.get("task_id")]
    return len(parts) == 5 and parts[:4] == own


def _may_be_refused(call: Call) -> bool:
    """Return whether Airflow may refuse the value: a list that a later task is mapped over may be too long."""
    return "mapped_length" in parse_qs(call.query)


def _same(text: str, ti_id: UUID) -> bool:
    try:
        return UUID(text) == ti_id
    except ValueError:
        return False
