"""Which calls of Airflow's Task Execution API a task may make: a table, and the rule "its own" for writes.

What is not in the table is refused. Starting a task instance and its heartbeat are not in it: the
gateway starts task instances at the claim, and the lease keeps them alive.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qs, unquote
from uuid import UUID

from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.policy import OWN, Access, Policy, TaskFacts
from airbridge.executor.protocol import Record

ALIAS: Final = "alias:"
"""How the name of an asset's alias is told from an asset's name among a task's declared ones."""

_TELLING: Final = ("dag_id", "name", "uri")
"""Parameters of a query that say what is asked for."""

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
    rule: str = OWN
    """The policy's rule that allowed it, if it reaches beyond the task's own."""
    access: Access | None = None
    """What the policy was asked."""

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
    ends: bool = False
    """Whether the call was the task's final state, which it now does not reach."""


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


def judge(
    record: Record,
    task: TaskFacts,
    scopes: Scopes,
    policy: Policy,
    own_assets: Callable[[], Collection[str]] = tuple,
) -> Call | Denied:
    """Return the call that `record` asks for, or why `task` may not make it.

    `own_assets` gives the names and URIs of the assets that the task's DAG declares for it.
    """
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
    doubled = [name for name in _TELLING if len(query.get(name, [])) > 1]
    if doubled:
        # Which of several values a framework takes is not ours to guess.
        return Denied(f"{doubled[0]} is given more than once", "calls: ambiguous")
    access = _access(row, parts, query)
    if not scopes.allow(access.action, access.name, region=task.region, pool=task.pool):
        detail = f"no scope of this worker's token allows {access.action} {access.name or ''}".rstrip()
        return Denied(detail, f"scope {access.action}")
    ruling = policy.judge(task, access)
    if not ruling.allowed and not _declared(access, path, own_assets):
        return Denied(ruling.why, ruling.rule)
    if row.ends and (denied := _undeclared(record.body, task, policy, own_assets)) is not None:
        return denied
    rule = ruling.rule if ruling.allowed else OWN
    return Call(record.method, path, record.query, record.body, row.ends, rule, access)


def _undeclared(
    body: str | None, task: TaskFacts, policy: Policy, own_assets: Callable[[], Collection[str]]
) -> Denied | None:
    """Judge the assets that a final state says were changed: those that the DAG declares are the task's own."""
    changed = _changed(body)
    if changed is None:
        return Denied("what it says of changed assets cannot be read", "calls: malformed", ends=True)
    own = {*own_assets()} if changed else set()
    for access in changed:
        if {access.name, access.uri} & own:
            continue
        ruling = policy.judge(task, access)
        if not ruling.allowed:
            return Denied(ruling.why, ruling.rule, ends=True)
    return None


def _declared(access: Access, path: str, own_assets: Callable[[], Collection[str]]) -> bool:
    if access.action != "assets:read":
        return False
    if path.endswith("/by-asset-alias"):
        return f"{ALIAS}{access.name}" in own_assets()
    return bool({access.name, access.uri} & {*own_assets()})


def _changed(body: str | None) -> list[Access] | None:
    """Return the changes of assets that a state reports, or None if it cannot be told."""
    try:
        said = json.loads(body or "{}")
        listed = said.get("task_outlets") or []
        aliased = [
            event["dest_asset_key"]
            for event in said.get("outlet_events") or []
            if "source_alias_name" in event
        ]
        assets = (*(each for each in listed if each["type"] != "AssetAlias"), *aliased)
        return [Access("assets:change", asset.get("name"), uri=asset.get("uri")) for asset in assets]
    except (ValueError, TypeError, KeyError, AttributeError):
        return None


def _find(method: str, path: str) -> tuple[_Allowed, Parts] | None:
    for row in _TABLE:
        if method in row.methods and (match := row.pattern.fullmatch(path)):
            return row, match.groupdict()
    return None


def _access(row: _Allowed, parts: Parts, query: Query) -> Access:
    name = parts.get("name") or (_first(query, "name") if row.action == "assets:read" else None)
    uri = _first(query, "uri") if row.action == "assets:read" else None
    return Access(row.action, name, parts.get("dag") or _first(query, "dag_id"), parts.get("run"), uri)


def _first(query: Query, name: str) -> str | None:
    return next(iter(query.get(name, [])), None)
