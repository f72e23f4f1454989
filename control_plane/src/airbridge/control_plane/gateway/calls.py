"""Which calls of Airflow's Task Execution API a task may make: a table, and the rule "its own" for writes.

What is not in the table is refused. Starting a task instance and its heartbeat are not in it: the
gateway starts task instances at the claim, and the lease keeps them alive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote
from uuid import UUID

from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.policy import Access, Policy, TaskFacts
from airbridge.executor.protocol import Record

READS: Final = frozenset({"GET", "HEAD"})

Parts = Mapping[str, str]
Query = Mapping[str, list[str]]
Rule = Callable[[TaskFacts, Parts, Query], str | None]
"""Returns None, or why the call is not the task's to make."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call a task may make, with `path` decoded once and for all."""

    method: str
    path: str
    query: str
    body: str | None
    ends: bool
    """Whether a success of it ends the work item: the task reports a state."""

    @property
    def writes(self) -> bool:
        """Whether it is to be applied once only, and recorded."""
        return self.method not in READS


@dataclass(frozen=True, slots=True)
class Denied:
    """A call that a task may not make, and why."""

    detail: str
    rule: str = "calls: a task's own"
    """What decided, for the audit trail."""


@dataclass(frozen=True, slots=True)
class _Allowed:
    methods: frozenset[str]
    pattern: re.Pattern[str]
    action: str
    rule: Rule | None = None
    ends: bool = False


def _any(_task: TaskFacts, _parts: Parts, _query: Query) -> str | None:
    return None


def _own_instance(task: TaskFacts, parts: Parts, _query: Query) -> str | None:
    try:
        same = UUID(parts["ti"]) == UUID(task.ti_id)
    except ValueError:
        same = False
    return None if same else f"task instance {parts['ti'][:64]!r} is not this task's own"


def _own_xcom(task: TaskFacts, parts: Parts, query: Query) -> str | None:
    mine = (task.dag_id, task.run_id, task.task_id)
    if (parts["dag"], parts["run"], parts["task"]) != mine:
        return "an XCom of another task can be read, not written"
    # All values count: which of several a framework takes is not ours to guess.
    if any(value != str(task.map_index) for value in query.get("map_index", ["-1"])):
        return f"an XCom of another map index can be read, not written; this task's is {task.map_index}"
    return None


def _allow(methods: str, path: str, action: str, rule: Rule | None = None, *, ends: bool = False) -> _Allowed:
    """Compile a row: ``{name}`` is a path segment, ``{name*}`` the rest of the path."""
    pattern = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.+)", re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))
    return _Allowed(frozenset(methods.split()), re.compile(pattern, re.DOTALL), action, rule, ends)


_TABLE: Final = (
    _allow("PATCH", "task-instances/{ti}/state", "task_instances:write", _own_instance, ends=True),
    _allow("PATCH", "task-instances/{ti}/skip-downstream", "task_instances:write", _own_instance),
    _allow("PUT", "task-instances/{ti}/rtif", "task_instances:write", _own_instance),
    _allow("GET", "task-instances/{ti}/previous-successful-dagrun", "task_instances:read", _own_instance),
    _allow("GET", "task-instances/{ti}/validate-inlets-and-outlets", "task_instances:read", _own_instance),
    _allow("GET", "task-instances/(?:count|states)", "task_instances:read"),
    _allow("GET", "task-reschedules/{ti}/start_date", "task_instances:read", _own_instance),
    _allow("GET", "connections/{name*}", "connections:read"),
    _allow("GET", "variables/{name*}", "variables:read"),
    _allow("PUT DELETE", "variables/{name*}", "variables:write"),
    _allow("GET HEAD", "xcoms/{dag}/{run}/{task}/{name*}", "xcoms:read"),
    _allow("POST DELETE", "xcoms/{dag}/{run}/{task}/{name*}", "xcoms:write", _own_xcom),
    _allow("GET", "assets/(?:by-name|by-uri)", "assets:read"),
    _allow("GET", "asset-events/(?:by-asset|by-asset-alias)", "assets:read"),
    _allow("GET", "dag-runs/count", "dag_runs:read"),
    _allow("GET", "dag-runs/{dag}/{run}/state", "dag_runs:read"),
    _allow("POST", "dag-runs/{dag}/{run}(?:/clear)?", "dag_runs:write"),
)


def judge(record: Record, task: TaskFacts, scopes: Scopes, policy: Policy) -> Call | Denied:
    """Return the call that `record` asks for, or why `task` may not make it."""
    path = unquote(record.path).lstrip("/")
    found = _find(record.method, path)
    if found is None:
        return Denied(
            f"{record.method} {path[:200]!r} is not a call that a task may make", "calls: not listed"
        )
    row, parts = found
    query = parse_qs(record.query, keep_blank_values=True)
    why = (row.rule or _any)(task, parts, query)
    if why is not None:
        return Denied(why)
    access = Access(row.action, _name(parts), _dag(parts, query), parts.get("run"))
    if not scopes.allow(access.action, access.name, region=task.region, pool=task.pool):
        detail = f"no scope of this worker's token allows {access.action} {access.name or ''}".rstrip()
        return Denied(detail, f"scope {access.action}")
    why = policy.denial(task, access)
    if why is not None:
        return Denied(why, f"policy: no rule for {access.action}")
    return Call(record.method, path, record.query, record.body, row.ends)


def _find(method: str, path: str) -> tuple[_Allowed, Parts] | None:
    for row in _TABLE:
        if method in row.methods and (match := row.pattern.fullmatch(path)):
            return row, match.groupdict()
    return None


def _name(parts: Parts) -> str | None:
    return parts.get("name")


def _dag(parts: Parts, query: Query) -> str | None:
    return parts.get("dag") or next(iter(query.get("dag_id", [])), None)
