"""Permissions of tasks on Airflow's Task Execution API: a table of calls, ownership rules for writes, and bodies.

Calls that are not in the table are denied. Starting a task instance and its heartbeat are not in it: the
gateway starts task instances at the claim, and the lease keeps them alive.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Final
from urllib.parse import parse_qs, unquote, urlencode
from uuid import UUID

from airbridge.control_plane.gateway.auth.residency import (
    NO_RESIDENCY,
    Residency,
    SecretPlaces,
    StoredRead,
    judge_read,
    judge_secret,
)
from airbridge.control_plane.gateway.triggers import events as trigger_events
from airbridge.control_plane.gateway.triggers.events import Event, Failed
from airbridge.control_plane.gateway.validation.bodies import Bodies, Body, Route, check_query
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.policy.decisions import OWN, Access, AssetRef, Policy, Source, TaskFacts
from airbridge.core.protocol import TRIGGER_EVENT, Record
from airbridge.core.violations import Violation

# Query parameters that name the target of a call.
_TARGET_PARAMETERS: Final = ("dag_id", "name", "uri")

READS: Final = frozenset({"GET", "HEAD"})

PathValues = Mapping[str, str]
Query = Mapping[str, list[str]]
# Returns None if the task may make the call, or the reason why not.
Rule = Callable[[TaskFacts, PathValues, Query], str | None]


@dataclass(frozen=True, slots=True)
class Call:
    """Permitted call of a task. `path` is percent-decoded exactly once."""

    method: str
    path: str
    query: str
    body: str | None
    #: True if its success ends the work item: the task reports a state.
    ends: bool
    #: Policy rule that allowed it, if it reaches beyond the task's own resources.
    rule: str = OWN
    #: Access that the policy decided on.
    access: Access | None = None
    #: Stored XCom that it reads, which Airflow has no part in.
    stored: StoredRead | None = None
    #: Secret that it asks the places of.
    secret: SecretPlaces | None = None
    #: Event of a trigger, which is Airflow's to apply, by another way than its API.
    fired: Event | None = None

    @property
    def writes(self) -> bool:
        """True if it must be applied exactly once, and recorded."""
        return self.method not in READS


@dataclass(frozen=True, slots=True)
class Denied:
    """Denied call of a task, with the reason."""

    detail: str
    #: Rule that denied it, for the audit trail.
    rule: str = "calls: a task's own"
    #: True if the attempt fails with it, because it is its final state.
    fails: bool = False


@dataclass(frozen=True, slots=True)
class _Allowed:
    methods: frozenset[str]
    pattern: re.Pattern[str]
    action: str
    rule: Rule | None = None
    body: Route = Route.NONE
    ends: bool = False


def _no_rule(_task: TaskFacts, _parts: PathValues, _query: Query) -> str | None:
    return None


def _own_instance(task: TaskFacts, parts: PathValues, _query: Query) -> str | None:
    try:
        same = UUID(parts["ti"]) == UUID(task.ti_id)
    except ValueError:
        same = False
    return None if same else f"task instance {parts['ti'][:64]!r} is not this task's own"


def _own_xcom(task: TaskFacts, parts: PathValues, query: Query) -> str | None:
    own = (task.dag_id, task.run_id, task.task_id)
    if (parts["dag"], parts["run"], parts["task"]) != own:
        return "an XCom of another task can be read, not written"
    # Every value is checked: frameworks differ in which of repeated parameters they use.
    if any(value != str(task.map_index) for value in query.get("map_index", ["-1"])):
        return f"an XCom of another map index can be read, not written; this task's is {task.map_index}"
    return None


def _allow(
    methods: str,
    path: str,
    action: str,
    rule: Rule | None = None,
    body: Route = Route.NONE,
    *,
    ends: bool = False,
) -> _Allowed:
    """Compile a row: ``{name}`` is a path segment, ``{name*}`` the rest of the path."""
    pattern = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.+)", re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", path))
    return _Allowed(frozenset(methods.split()), re.compile(pattern, re.DOTALL), action, rule, body, ends)


_TABLE: Final = (
    _allow(
        "PATCH", "task-instances/{ti}/state", "task_instances:write", _own_instance, Route.STATE, ends=True
    ),
    _allow(
        "PATCH",
        "task-instances/{ti}/skip-downstream",
        "task_instances:write",
        _own_instance,
        Route.SKIP_DOWNSTREAM,
    ),
    _allow("PUT", "task-instances/{ti}/rtif", "task_instances:write", _own_instance, Route.RENDERED_FIELDS),
    _allow("GET", "task-instances/{ti}/previous-successful-dagrun", "task_instances:read", _own_instance),
    _allow("GET", "task-instances/{ti}/validate-inlets-and-outlets", "task_instances:read", _own_instance),
    _allow("GET", "task-instances/(?:count|states)", "task_instances:read"),
    _allow("GET", "task-reschedules/{ti}/start_date", "task_instances:read", _own_instance),
    _allow("GET", "connections/{name*}", "connections:read"),
    _allow("GET", "variables/{name*}", "variables:read"),
    _allow("PUT", "variables/{name*}", "variables:write", body=Route.VARIABLE),
    _allow("DELETE", "variables/{name*}", "variables:write"),
    _allow("GET HEAD", "xcoms/{dag}/{run}/{task}/{name*}", "xcoms:read"),
    _allow("POST", "xcoms/{dag}/{run}/{task}/{name*}", "xcoms:write", _own_xcom, Route.XCOM),
    _allow("DELETE", "xcoms/{dag}/{run}/{task}/{name*}", "xcoms:write", _own_xcom),
    _allow("GET", "assets/(?:by-name|by-uri)", "assets:read"),
    _allow("GET", "asset-events/(?:by-asset|by-asset-alias)", "assets:read"),
    _allow("GET", "dag-runs/count", "dag_runs:read"),
    _allow("GET", "dag-runs/{dag}/{run}/state", "dag_runs:read"),
    _allow("POST", "dag-runs/{dag}/{run}/clear", "dag_runs:write"),
    _allow("POST", "dag-runs/{dag}/{run}", "dag_runs:write", body=Route.DAG_RUN),
)


def judge(
    record: Record,
    task: TaskFacts,
    scopes: Scopes,
    policy: Policy,
    *,
    bodies: Bodies,
    own_assets: Callable[[], Collection[AssetRef]] = tuple,
    residency: Residency = NO_RESIDENCY,
) -> Call | Denied:
    """Return the call of `record`, or its denial if `task` may not make it.

    `own_assets` returns the assets that the task's DAG declares for it.
    """
    path = unquote(record.path).lstrip("/")
    ours = _judge_ours(record, path, task, scopes, policy=policy, residency=residency)
    if ours is not None:
        return ours
    found = _find(record.method, path)
    if found is None:
        return Denied(
            f"{record.method} {path[:200]!r} is not a call that a task may make", "calls: not listed"
        )
    row, parts = found
    query = _query(record, row, task)
    why = (row.rule or _no_rule)(task, parts, query)
    if why is not None:
        return Denied(why)
    denied = _malformed(query, path)
    if denied is not None:
        return denied
    access = _access(row, path, parts, query)
    if not scopes.allow(access.action, access.name, region=task.region, pool=task.pool):
        detail = f"no scope of this worker's token allows {access.action} {access.name or ''}".rstrip()
        return Denied(detail, f"scope {access.action}")
    ruling = policy.judge(task, access)
    if not ruling.allowed and not _declared(access, path, own_assets):
        return Denied(ruling.why, ruling.rule)
    rule = ruling.rule if ruling.allowed else OWN
    body = _check_body(row, record, query, bodies, lambda violation: residency.describe(task, violation))
    if isinstance(body, Denied):
        return body
    why = residency.why_not(task, row.body, body, parts.get("name", ""))
    if why is not None:
        return Denied(f"residency: {why}", f"residency of region {task.region}", fails=row.ends)
    denied = _denied_by_body(body, task, scopes, policy, own_assets=own_assets, residency=residency)
    # Written anew: what was judged is what Airflow's framework reads, which takes a query's bytes for Latin-1.
    judged = urlencode(query, doseq=True)
    return denied or Call(record.method, path, judged, body.text, row.ends, rule, access)


def judge_trigger(record: Record, task: TaskFacts, residency: Residency) -> Call | Denied | None:
    """Judge a write of a trigger, whose only one is its event; None for a read, which is judged as its task's.

    The traceback of a trigger that failed is left out in a strict region: its task fails without.
    """
    if record.method in READS:
        return None
    path = unquote(record.path).lstrip("/")
    if (record.method, path) != ("POST", TRIGGER_EVENT):
        detail = f"{record.method} {path[:200]!r} is not a call that a trigger may make"
        return Denied(detail, "calls: a trigger's own")
    try:
        fired = trigger_events.read(record.body)
    except Violation as violation:
        return Denied(f"event: {residency.describe(task, violation)}", "body: trigger_event", fails=True)
    if isinstance(fired, Failed):
        fired = Failed() if residency.of_task(task).strict else fired
    elif (why := residency.why_no_event(task, fired)) is not None:
        return Denied(f"residency: {why}", f"residency of region {task.region}", fails=True)
    return Call(record.method, path, "", None, ends=True, fired=fired)


def _query(record: Record, row: _Allowed, task: TaskFacts) -> dict[str, list[str]]:
    query = parse_qs(record.query, keep_blank_values=True)
    if record.method == "DELETE" and row.rule is _own_xcom:
        # `XCom.delete` of Airflow 3.0.4 sends no map index, and the route would delete that of a task that is not mapped.
        query.setdefault("map_index", [str(task.map_index)])
    return query


# See `airbridge.edge_worker.proxy.region_calls`.
_REGIONAL: Final = re.compile(r"regional-secrets/(?:connections|variables)/.+", re.DOTALL)
_STORED: Final = re.compile(r"stored-xcoms/[^/]+/.+", re.DOTALL)


def _check_body(
    row: _Allowed, record: Record, query: Query, bodies: Bodies, describe: Callable[[Violation], str]
) -> Body | Denied:
    try:
        if row.body is not Route.NONE:
            check_query(row.body, query)
        return bodies.check(row.body, record.body)
    except Violation as violation:
        return Denied(f"body: {describe(violation)}", f"body: {row.body}", fails=row.ends)


def _judge_ours(
    record: Record, path: str, task: TaskFacts, scopes: Scopes, *, policy: Policy, residency: Residency
) -> Call | Denied | None:
    """Judge a call that Airflow does not have; None if it is none of these."""
    if record.method != "GET":
        return None
    if _STORED.fullmatch(path):
        read = judge_read(path, task, scopes, policy)
        if not isinstance(read, StoredRead):
            return Denied(read.why, read.rule)
        return Call("GET", path, "", None, ends=False, rule=read.rule, access=read.access, stored=read)
    if _REGIONAL.fullmatch(path):
        secret = judge_secret(path, task, scopes, policy, residency)
        if not isinstance(secret, SecretPlaces):
            return Denied(secret.why, secret.rule)
        return Call("GET", path, "", None, ends=False, access=secret.access, secret=secret)
    return None


def _malformed(query: Query, path: str) -> Denied | None:
    """Deny what is ambiguous, or what the database cannot take."""
    if "\x00" in path or any("\x00" in text for values in query.values() for text in values):
        return Denied("a NUL character in the path or the query", "calls: malformed")
    repeated = [name for name in _TARGET_PARAMETERS if len(query.get(name, [])) > 1]
    if repeated:
        # Airflow's framework might use another one of the values than the one checked here.
        return Denied(f"{repeated[0]} is given more than once", "calls: ambiguous")
    return None


def _denied_by_body(
    body: Body,
    task: TaskFacts,
    scopes: Scopes,
    policy: Policy,
    *,
    own_assets: Callable[[], Collection[AssetRef]],
    residency: Residency,
) -> Denied | None:
    """Judge what a body makes the control plane, or a trigger on a worker, reach on the task's behalf."""
    regional = body.read_at_edge and residency.of_task(task).secrets_backend is not None
    reached = [
        *(Access("connections:read", name) for name in body.connections),
        *(Access("dag_runs:read", dag_id=dag_id) for dag_id in body.dags),
    ]
    for access in reached:
        if not scopes.allow(access.action, access.name, region=task.region, pool=task.pool):
            return Denied(f"no scope of this worker's token allows {access.action} for a trigger", fails=True)
    own = own_assets() if body.assets else ()
    reached += [
        Access("assets:change", asset.name, uri=asset.uri)
        for asset in body.assets
        if not any(each.covers(asset) for each in own)
    ]
    for access in reached:
        ruling = policy.judge(task, access)
        if not ruling.allowed and regional and access.action == "connections:read":
            ruling = policy.judge(task, replace(access, source=Source.REGION))
        if not ruling.allowed:
            return Denied(ruling.why, ruling.rule, fails=True)
    return None


def _declared(access: Access, path: str, own_assets: Callable[[], Collection[AssetRef]]) -> bool:
    """Return whether the access is a read of an asset or an alias that the task's DAG declares for it."""
    if access.action != "assets:read":
        return False
    asked = AssetRef(access.name, access.uri, alias=path.endswith("/by-asset-alias"))
    return any(each.covers(asked) for each in own_assets())


def _find(method: str, path: str) -> tuple[_Allowed, PathValues] | None:
    for row in _TABLE:
        if method in row.methods and (match := row.pattern.fullmatch(path)):
            return row, match.groupdict()
    return None


def _access(row: _Allowed, path: str, parts: PathValues, query: Query) -> Access:
    if row.action == "assets:read":
        return _asset_access(path, query)
    return Access(
        row.action, parts.get("name"), parts.get("dag") or _first(query, "dag_id"), parts.get("run")
    )


def _asset_access(path: str, query: Query) -> Access:
    """Return what Airflow looks an asset up by: the query may have more, and empty text counts as nothing there."""
    by = path.rpartition("/")[2]
    name = (_first(query, "name") or None) if by != "by-uri" else None
    uri = (_first(query, "uri") or None) if by in {"by-uri", "by-asset"} else None
    return Access("assets:read", name, uri=uri)


def _first(query: Query, name: str) -> str | None:
    return next(iter(query.get(name, [])), None)
