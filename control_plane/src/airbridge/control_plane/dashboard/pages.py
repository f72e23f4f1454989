"""What each page shows: from an open session and the query, the values its template is filled with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from airbridge.control_plane import orders
from airbridge.control_plane.dashboard import _airflow, drawing
from airbridge.control_plane.dashboard.people import Person
from airbridge.control_plane.dashboard.queries import Query
from airbridge.control_plane.observe import (
    audit,
    causes,
    screen,
    tasks,
    throughput,
    timeline,
    trail,
    versions,
    work,
    workers,
)
from airbridge.control_plane.observe.audit import AuditFilter
from airbridge.control_plane.observe.paging import PageRequest
from airbridge.control_plane.observe.platform import Platform
from airbridge.control_plane.observe.work import ItemView, WorkFilter
from airbridge.control_plane.observe.workers import WorkerFilter
from airbridge.executor.ledger.audit import Filter
from airbridge.executor.ledger.models import ItemState

Values = Mapping[str, Any]


class NotFound(Exception):  # noqa: N818 - says what was found
    """There is no such page, or nothing that it could show. The message is for the reader."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a page, and what it is answered from."""

    session: Any
    platform: Platform
    person: Person
    dags: frozenset[str] | None
    """The DAGs that the person may read; None for all."""
    query: Query
    path: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Page:
    """A page: its template (``name.html``; the part that is kept fresh is ``name_live.html``) and what fills it."""

    name: str
    title: str
    path: str
    fill: Callable[[Asked], Values]
    audit: bool = False
    """Whether only those may see it who may read Airflow's audit log."""
    menu: bool = True


def regions(asked: Asked) -> Values:
    """Every region on one screen, with the network drawn."""
    now = screen.take(asked.session, asked.platform)
    series = throughput.series(asked.session)
    return {
        "screen": now,
        "network": drawing.network(now.regions),
        "gateways_alive": sum(gateway.alive for gateway in now.gateways),
        "series": series,
        "chart": {
            "minutes": [int(each.timestamp()) for each in series.minutes],
            "regions": {name: list(counts) for name, counts in series.regions.items()},
        },
        "own_version": asked.platform.parity.control_plane,
    }


def fleet(asked: Asked) -> Values:
    """The workers, by region and pool."""
    query = asked.query
    which = WorkerFilter(
        region=query.text("region"),
        pool=query.text("pool"),
        text=query.text("q"),
        wanted=query.text("wanted"),
        standing=query.text("standing"),
    )
    summary = workers.summary(asked.session, asked.platform)
    standings = {
        standing: sum(each.standings[standing] for each in summary.values()) for standing in workers.Standing
    }
    return {
        "found": workers.listing(asked.session, asked.platform, which, query.page()),
        "standings": {standing: count for standing, count in standings.items() if count},
        "filtered": which != WorkerFilter(),
        "orders": _orders(asked.person),
    }


def worker(asked: Asked) -> Values:
    """One worker: what it said last, what it holds, what happened to it."""
    found = workers.get(asked.session, asked.platform, asked.path["worker"])
    if found is None:
        raise NotFound(f"There is no worker {asked.path['worker'][:64]!r}.")
    held = work.listing(asked.session, _readable(asked, WorkFilter(worker=found.id, open=True)))
    events = audit.listing(asked.session, AuditFilter(worker=found.id), PageRequest(1, 30))
    return {
        "worker": found,
        "held": held,
        "events": events if asked.person.may_audit else None,
        "orders": [
            each for each in _orders(asked.person) if found.wanted != "revoked" or each is orders.REVOKE
        ],
        "heading": found.id,
    }


def items(asked: Asked) -> Values:
    """The work items, with filters and search."""
    query = asked.query
    state = query.text("state")
    which = WorkFilter(
        region=query.text("region"),
        pool=query.text("pool"),
        worker=query.text("worker"),
        outcome=query.text("outcome"),
        text=query.text("q"),
        open={"open": True}.get(state or ""),
        state=ItemState(state) if state in set(ItemState) else None,
    )
    found = work.listing(asked.session, _readable(asked, which), query.page())
    return {
        "found": found,
        "filtered": which != WorkFilter(),
        "states": tuple(ItemState),
        "task_url": task_url,
    }


def task(asked: Asked) -> Values:
    """One task through all its tries, on both sides of the wire."""
    query = asked.query
    dag_id, run_id, task_id = query.text("dag"), query.text("run"), query.text("task")
    if not dag_id and not run_id and not task_id:
        return {"line": None}
    if not dag_id or not run_id or not task_id:
        raise NotFound("Choose a task on the Work page, or press Timeline on its page in Airflow.")
    index = query.number("map_index", -1)
    found = (
        tasks.find(asked.session, dag_id, run_id, task_id, index)
        if _airflow.may_see_task(asked.person.user, dag_id)
        else None
    )
    if found is None:
        raise NotFound(f"Airflow has no task {task_id!r} in run {run_id!r} of DAG {dag_id!r}.")
    line = timeline.of(asked.session, found)
    return {
        "line": line,
        "cause": causes.explain(asked.session, asked.platform, line),
        "gantt": drawing.gantt(line),
        "task_page": _airflow.task_page(dag_id, run_id, task_id, index),
        "heading": found.task_id,
    }


def parity(asked: Asked) -> Values:
    """Who runs what, and whether the compatibility matrix allows it."""
    matrix = asked.platform.parity.matrix
    return {
        "fleets": versions.in_use(asked.session, asked.platform),
        "matrix": matrix,
        "own_version": asked.platform.parity.control_plane,
        "images": sorted(asked.platform.parity.images),
    }


def audited(asked: Asked) -> Values:
    """What was granted, denied and changed, from the sealed trail; or what happened, from the events."""
    query = asked.query
    if query.text("source") == "events":
        which = AuditFilter(
            event=query.text("event"),
            actor=query.text("actor"),
            region=query.text("region"),
            worker=query.text("worker"),
        )
        found = audit.listing(asked.session, which, query.page())
        return {"source": "events", "found": found, "filtered": which != AuditFilter()}
    wanted = Filter(
        event=query.text("event"),
        verdict=query.text("verdict"),
        actor=query.text("actor"),
        region=query.text("region"),
        worker=query.text("worker"),
    )
    before = query.number("before", 0) or None
    return {
        "source": "trail",
        "found": trail.listing(asked.session, wanted, before=before),
        "filtered": wanted != Filter() or before is not None,
    }


def task_url(item: ItemView) -> str:
    """Return the query string of an item's timeline."""
    names = {"dag": item.dag_id, "run": item.run_id, "task": item.task_id}
    return Query(names).string(map_index=item.map_index if item.map_index >= 0 else None)


def _orders(person: Person) -> list[orders.Order]:
    allowed = {orders.REVOKE: person.may_revoke}
    return [order for order in orders.ORDERS.values() if allowed.get(order, person.may_steer)]


def _readable(asked: Asked, which: WorkFilter) -> WorkFilter:
    return which if asked.dags is None else replace(which, dag_ids=asked.dags)


REGIONS: Final = Page("regions", "Regions", "/", regions)
WORKERS: Final = Page("workers", "Workers", "/workers", fleet)
WORKER: Final = Page("worker", "Worker", "/workers/{worker}", worker, menu=False)
WORK: Final = Page("work", "Work", "/work", items)
TIMELINE: Final = Page("timeline", "Timeline", "/timeline", task)
PARITY: Final = Page("parity", "Parity", "/parity", parity)
AUDIT: Final = Page("audit", "Audit", "/audit", audited, audit=True)
PAGES: Final = (REGIONS, WORKERS, WORKER, WORK, TIMELINE, PARITY, AUDIT)
