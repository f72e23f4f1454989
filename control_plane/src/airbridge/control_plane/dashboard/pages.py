"""Pages of the dashboard: each returns its template's values, from an open session and the query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final

from airbridge.control_plane import worker_commands
from airbridge.control_plane.dashboard import _airflow
from airbridge.control_plane.dashboard.drawings import gantt, network, run_map, sparkline, window, world
from airbridge.control_plane.dashboard.queries import Query
from airbridge.control_plane.dashboard.sessions import Viewer
from airbridge.control_plane.read_model import (
    overview,
    paging,
    tasks,
    throughput,
    usage,
    versions,
    work,
    workers,
)
from airbridge.control_plane.read_model.diagnosis import causes
from airbridge.control_plane.read_model.diagnosis.cause import Code
from airbridge.control_plane.read_model.history import audit_log, changes, run
from airbridge.control_plane.read_model.history.changes import EventFilter
from airbridge.control_plane.read_model.paging import PageRequest
from airbridge.control_plane.read_model.platform import Platform
from airbridge.control_plane.read_model.regions import RegionView
from airbridge.control_plane.read_model.standing import Standing
from airbridge.control_plane.read_model.usage import By
from airbridge.control_plane.read_model.work import ItemView, WorkFilter
from airbridge.control_plane.read_model.workers import WorkerFilter
from airbridge.core.protocol import ItemKind
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.audit import Filter
from airbridge.executor.ledger.models import ItemState

Values = Mapping[str, Any]

# Name of a DAG's id in the queries of pages.
DAG: Final = "dag"

# Kinds of work items that the Work page lists, by the value of its filter. Without one it lists tasks, which all counts are of.
_KINDS: Final[Mapping[str, ItemKind | None]] = {"trigger": ItemKind.TRIGGER, "all": None}

# So many regions are drawn as boxes; more as a map of the world.
FEW_REGIONS: Final = 8
# Regions with a line of their own in the chart of throughput; the others share one.
CHART_LINES: Final = 5

# Work items among which the Timeline page's search finds tasks.
MATCHES: Final = 50
# Causes that say since when the worker of a claimed item has sent no heartbeat.
_SILENT: Final = (Code.PARTITION, Code.GATEWAY_DOWN, Code.CERTIFICATE)


# Periods of the Usage page, in hours.
PERIODS: Final = {
    "1": "the last hour",
    "24": "the last day",
    "168": "the last week",
    "720": "the last 30 days",
}
DEFAULT_PERIOD: Final = "24"
# Moves of XComs that the Run page lists.
MAX_RUN_MOVES: Final = 50
# Groups that the Usage page shows.
MAX_GROUPS: Final = 200


class NotFound(Exception):  # noqa: N818 - says what was found
    """The page or its subject does not exist. The message is shown to the user."""


@dataclass(frozen=True, slots=True)
class PageContext:
    """Request for a page, with the session and platform to answer it from."""

    session: Any
    platform: Platform
    viewer: Viewer
    #: DAGs that the viewer may read; None for all.
    dags: frozenset[str] | None
    #: Whether the viewer may see the tasks of the DAG that the query names, on a page `of_dag`.
    sees_dag: bool
    query: Query
    path: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """Page: its template (``name.html``; its live part is ``name_live.html``) and the function that fills it."""

    name: str
    title: str
    path: str
    fill: Callable[[PageContext], Values]
    #: True if only users who may read Airflow's audit log may see it.
    audit: bool = False
    menu: bool = True
    #: True if it shows tasks of the DAG that its query names (`DAG`): only to users who may see them.
    of_dag: bool = False


def regions(context: PageContext) -> Values:
    """Return every region on one screen, those in trouble first, with a drawing: the network, or of many regions the world."""
    now = overview.take(context.session, context.platform)
    series = throughput.series(context.session)
    large = len(now.regions) > FEW_REGIONS
    most = max((max(counts) for counts in series.regions.values()), default=0)
    return {
        "screen": now,
        "network": None if large else network.draw(now.regions),
        "world": world.draw(now.regions) if large else None,
        "gateways_alive": sum(gateway.alive for gateway in now.gateways),
        "series": series,
        "sparklines": {name: sparkline.points(counts, most) for name, counts in series.regions.items()},
        "chart": {
            "minutes": [int(each.timestamp()) for each in series.minutes],
            "regions": throughput.largest(series, CHART_LINES),
        },
        "listed": _listed_regions(now.regions, context.query),
        "filtered": any(context.query.text(name) for name in ("q", "health")),
        "own_version": context.platform.parity.control_plane,
    }


def _listed_regions(found: Sequence[RegionView], query: Query) -> list[RegionView]:
    """Return the regions that the query chooses: of many, those in trouble come first."""
    text, health = (query.text("q") or "").lower(), query.text("health")
    chosen = [
        region
        for region in found
        if text in region.name
        and (health is None or (health == "trouble" and region.troubled) or region.health == health)
    ]
    if len(found) <= FEW_REGIONS:
        return chosen
    return sorted(chosen, key=lambda region: (not region.troubled, not region.home, region.name))


def fleet(context: PageContext) -> Values:
    """Return the workers, by region and pool."""
    query = context.query
    which = WorkerFilter(
        region=query.text("region"),
        pool=query.text("pool"),
        text=query.text("q"),
        wanted=query.text("wanted"),
        standing=query.text("standing"),
    )
    summary = workers.summary(context.session, context.platform)
    standings = {
        standing: sum(each.standings[standing] for each in summary.values()) for standing in Standing
    }
    return {
        "found": workers.listing(context.session, context.platform, which, query.page()),
        "standings": {standing: count for standing, count in standings.items() if count},
        "filtered": which != WorkerFilter(),
        "orders": _commands(context.viewer),
    }


def worker(context: PageContext) -> Values:
    """Return one worker: its last heartbeat, the tasks and triggers that it holds, and its events."""
    found = workers.get(context.session, context.platform, context.path["worker"])
    if found is None:
        raise NotFound(f"There is no worker {context.path['worker'][:64]!r}.")
    held, triggers = (
        work.listing(context.session, _readable(context, WorkFilter(kind=kind, worker=found.id, open=True)))
        for kind in (ItemKind.TASK, ItemKind.TRIGGER)
    )
    events = changes.listing(context.session, EventFilter(worker=found.id), PageRequest(1, 30))
    return {
        "worker": found,
        "held": held,
        "triggers": triggers,
        "events": events if context.viewer.may_audit else None,
        "orders": [
            each
            for each in _commands(context.viewer)
            if found.wanted != "revoked" or each is worker_commands.REVOKE
        ],
        "heading": found.id,
    }


def items(context: PageContext) -> Values:
    """Return the work items, with filters and search."""
    query = context.query
    state = query.text("state")
    which = WorkFilter(
        kind=_KINDS.get(query.text("kind") or "", ItemKind.TASK),
        region=query.text("region"),
        pool=query.text("pool"),
        worker=query.text("worker"),
        outcome=query.text("outcome"),
        text=query.text("q"),
        open={"open": True}.get(state or ""),
        state=ItemState(state) if state in set(ItemState) else None,
    )
    found = work.listing(context.session, _readable(context, which), query.page())
    return {
        "found": found,
        "exceptions": work.exceptions(context.session, found.rows),
        "filtered": which != WorkFilter(kind=ItemKind.TASK),
        "states": tuple(ItemState),
        "task_url": task_url,
    }


def task(context: PageContext) -> Values:
    """Return one task through all its tries, in the control plane and at the edge."""
    query = context.query
    dag_id, run_id, task_id = query.text(DAG), query.text("run"), query.text("task")
    if not dag_id and not run_id and not task_id:
        return {"line": None, **_search(context)}
    if not dag_id or not run_id or not task_id:
        raise NotFound("Choose a task on the Work page, or press Timeline on its page in Airflow.")
    index = query.number("map_index", -1)
    if not context.sees_dag:
        raise NotFound(f"there is no task {task_id!r} in run {run_id!r} of DAG {dag_id!r}")
    found = tasks.find(context.session, dag_id, run_id, task_id, index)
    if found is None:
        raise NotFound(tasks.missing(context.session, dag_id, run_id, task_id))
    line, cause = causes.of_task(context.session, context.platform, found)
    return {
        "line": line,
        "cause": cause,
        "gantt": gantt.draw(
            line, cause.since if cause.code in _SILENT else None, window.parse(query.text("part"))
        ),
        "task_page": _airflow.task_page(dag_id, run_id, task_id, index),
        "heading": found.task_id,
    }


def dag_run(context: PageContext) -> Values:
    """Return a DAG run over regions: where its tasks ran, and what moved between them."""
    dag_id, run_id = context.query.text(DAG), context.query.text("run")
    if not dag_id or not run_id:
        raise NotFound("Choose a run on the Work page.")
    found = run.find(context.session, dag_id, run_id) if context.sees_dag else None
    if found is None:
        raise NotFound(
            f"No work of run {run_id!r} of DAG {dag_id!r} has been placed, or it has been deleted."
        )
    page = context.query.page()
    shown = found.tasks[page.offset : page.offset + page.size]
    return {
        "run": found,
        "map": run_map.draw(found),
        "listed": paging.Page(shown, page.number, page.size, len(found.tasks)),
        "moves": sorted(found.moves, key=lambda move: not move.crosses)[:MAX_RUN_MOVES],
        "heading": dag_id,
    }


def _search(context: PageContext) -> Values:
    """Return the tasks that a text finds, newest first; none without a text."""
    text = context.query.text("q")
    if text is None:
        return {"matches": None}
    which = _readable(context, WorkFilter(kind=ItemKind.TASK, text=text))
    found = work.listing(context.session, which, PageRequest(1, MATCHES))
    names = {(each.dag_id, each.run_id, each.task_id, each.map_index): each for each in reversed(found.rows)}
    return {"matches": [*reversed(names.values())]}


def used(context: PageContext) -> Values:
    """Return what work items used, grouped, of the DAGs that the viewer may read."""
    asked = context.query.text("period")
    period = asked if asked in PERIODS else DEFAULT_PERIOD
    words = {*(context.query.text("by") or "").split(",")}
    by = [each for each in By if each in words] or [By.TEAM]
    since = clock.now(context.session) - timedelta(hours=int(period))
    return {
        "usage": usage.take(context.session, by, since, dag_ids=context.dags),
        "limits": overview.limits(context.session, context.platform),
        "period": PERIODS[period],
        "most": MAX_GROUPS,
    }


def parity(context: PageContext) -> Values:
    """Return the versions in use, with the compatibility matrix's verdict on each."""
    matrix = context.platform.parity.matrix
    return {
        "fleets": versions.in_use(context.session, context.platform),
        "matrix": matrix,
        "own_version": context.platform.parity.control_plane,
        "images": sorted(context.platform.parity.images),
    }


def audit(context: PageContext) -> Values:
    """Return audit rows (grants, denials, changes) from the sealed trail, or the events."""
    query = context.query
    if query.text("source") == "events":
        which = EventFilter(
            event=query.text("event"),
            actor=query.text("actor"),
            region=query.text("region"),
            worker=query.text("worker"),
        )
        found = changes.listing(context.session, which, query.page())
        return {"source": "events", "found": found, "filtered": which != EventFilter()}
    event, verdict = query.text("event"), query.text("verdict")
    folded = event is None and verdict is None
    wanted = Filter(
        event=event,
        verdict=None if verdict == "all" else verdict,
        actor=query.text("actor"),
        region=query.text("region"),
        worker=query.text("worker"),
        without_claims=folded,
    )
    before = query.number("before", 0) or None
    return {
        "source": "trail",
        "found": audit_log.listing(context.session, wanted, before=before),
        "filtered": wanted != Filter(without_claims=folded) or before is not None,
        "folded": folded,
    }


def task_url(item: ItemView) -> str:
    """Return the query string of an item's timeline."""
    names = {DAG: item.dag_id, "run": item.run_id, "task": item.task_id}
    return Query(names).string(map_index=item.map_index if item.map_index >= 0 else None)


def _commands(viewer: Viewer) -> list[worker_commands.WorkerCommand]:
    allowed = {worker_commands.REVOKE: viewer.may_revoke}
    return [
        command for command in worker_commands.COMMANDS.values() if allowed.get(command, viewer.may_command)
    ]


def _readable(context: PageContext, which: WorkFilter) -> WorkFilter:
    return which if context.dags is None else replace(which, dag_ids=context.dags)


REGIONS: Final = Page("regions", "Regions", "/", regions)
WORKERS: Final = Page("workers", "Workers", "/workers", fleet)
WORKER: Final = Page("worker", "Worker", "/workers/{worker}", worker, menu=False)
WORK: Final = Page("work", "Work", "/work", items)
TIMELINE: Final = Page("timeline", "Timeline", "/timeline", task, of_dag=True)
RUN: Final = Page("run", "Run", "/run", dag_run, menu=False, of_dag=True)
USAGE: Final = Page("usage", "Usage", "/usage", used)
PARITY: Final = Page("parity", "Parity", "/parity", parity)
AUDIT: Final = Page("audit", "Audit", "/audit", audit, audit=True)
PAGES: Final = (REGIONS, WORKERS, WORKER, WORK, TIMELINE, RUN, USAGE, PARITY, AUDIT)
