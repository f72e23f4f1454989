"""Workers, with the matrix's verdict and their standing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Text, case, cast, func, or_, select

from airbridge.control_plane.read_model import paging
from airbridge.control_plane.read_model.paging import FIRST, Page, PageRequest
from airbridge.control_plane.read_model.platform import CERTIFICATE_WARNING, Platform
from airbridge.control_plane.read_model.standing import MISSING, TROUBLED, Report, Standing, standing_of
from airbridge.core.compatibility import Verdict
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import WorkerRow


@dataclass(frozen=True, slots=True)
class WorkerView:
    """Worker, by its last heartbeat. Times are by the database's clock; durations are in seconds."""

    id: str
    region: str
    pool: str
    standing: Standing
    #: Explanation of the standing: the matrix's, the operator's comment, the queue's error, or the time without heartbeats.
    why: str
    #: State that the worker reports: active, draining, stopping.
    state: str
    #: State that the operator wants: active, draining, maintenance, revoked.
    wanted: str
    comment: str | None
    airbridge: str
    airflow: str
    python: str
    image: str | None
    verdict: Verdict
    verdict_detail: str
    slots: int
    slots_used: int
    journal_pending: int
    journal_bytes: int
    #: Error of its last poll, while it cannot receive from its queue.
    queue_error: str | None
    #: Seconds that its clock is ahead of the database's.
    clock_skew_seconds: float
    certificate_expires_at: datetime | None
    certificate_seconds_left: float | None
    #: True if its renewal is overdue.
    certificate_ending: bool
    enrolled_at: datetime
    last_heartbeat_at: datetime | None
    silent_seconds: float | None


@dataclass(frozen=True, slots=True)
class WorkerFilter:
    """Filter of workers; fields of None match all. `text` is searched in id and comment."""

    region: str | None = None
    pool: str | None = None
    text: str | None = None
    wanted: str | None = None
    #: Value of a `Standing`. It is computed, not stored: filtering by it reads the whole fleet.
    standing: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """Workers of one pool, counted. `slots` are those of serving workers."""

    standings: Counter[Standing] = field(default_factory=Counter)
    slots: int = 0
    slots_used: int = 0
    last_heartbeat_at: datetime | None = None
    #: Error of a worker that cannot receive from its queue.
    queue_error: str | None = None


def listing(
    session: Any,
    platform: Platform,
    which: WorkerFilter = WorkerFilter(),
    page: PageRequest = FIRST,
) -> Page[WorkerView]:
    """Return a page of workers by region, pool and id."""
    now = clock.now(session)
    query = _chosen(which).order_by(WorkerRow.region, WorkerRow.pool, WorkerRow.id)
    if which.standing is not None:
        return _of_standings(session, platform, query, {which.standing}, page)
    return paging.fetch(session, query, page, lambda row: view(row[0], platform, now))


def troubled(session: Any, platform: Platform, page: PageRequest = FIRST) -> Page[WorkerView]:
    """Return a page of the workers that an operator should look into. Reads the whole fleet."""
    query = select(WorkerRow).order_by(WorkerRow.region, WorkerRow.pool, WorkerRow.id)
    return _of_standings(session, platform, query, TROUBLED, page)


def _of_standings(
    session: Any, platform: Platform, query: Any, standings: Collection[str], page: PageRequest
) -> Page[WorkerView]:
    now = clock.now(session)
    ids = _ids_of_standings(session, query, platform, standings, now)
    shown = select(WorkerRow).where(WorkerRow.id.in_(ids[page.offset : page.offset + page.size]))
    rows = session.scalars(shown.order_by(WorkerRow.region, WorkerRow.pool, WorkerRow.id))
    return Page(tuple(view(row, platform, now) for row in rows), page.number, page.size, len(ids))


def get(session: Any, platform: Platform, worker_id: str) -> WorkerView | None:
    """Return one worker."""
    row = session.get(WorkerRow, worker_id)
    return None if row is None else view(row, platform, clock.now(session))


def of_pool(session: Any, platform: Platform, region: str, pool: str, limit: int = 2_000) -> list[WorkerView]:
    """Return the workers of a pool, latest heartbeat first."""
    query = (
        select(WorkerRow)
        .where(WorkerRow.region == region, WorkerRow.pool == pool)
        .order_by(WorkerRow.last_heartbeat_at.desc())
        .limit(limit)
    )
    now = clock.now(session)
    return [view(row, platform, now) for row in session.scalars(query)]


def summary(session: Any, platform: Platform) -> dict[tuple[str, str], Summary]:
    """Return the counts of every pool. The database groups the rows: a fleet has few distinct combinations."""
    row, reported, now = WorkerRow, cast(WorkerRow.versions, Text), clock.now(session)
    age = case(
        (row.last_heartbeat_at >= now - platform.stale_after, 2),
        (row.last_heartbeat_at >= now - platform.alive_after, 1),
        else_=0,
    )
    failing = case((row.queue_error.is_(None), 0), else_=1)
    kinds = (row.region, row.pool, row.state, row.wanted, reported, age, failing)
    sums = (
        *(func.sum(row.slots_total), func.sum(row.slots_used)),
        *(func.max(row.last_heartbeat_at), func.max(row.queue_error)),
    )
    verdicts: dict[str, Verdict] = {}
    found: dict[tuple[str, str], Summary] = {}
    for region, pool, state, wanted, versions, *_, count, slots, used, heartbeat_at, error in session.execute(
        select(*kinds, func.count(), *sums).group_by(*kinds)
    ):
        before = found.get((region, pool), Summary())
        verdict = verdicts.get(versions) or platform.judge(json.loads(versions)).verdict
        verdicts[versions] = verdict
        standing = standing_of(Report(state, wanted, heartbeat_at, error), verdict, platform, now)
        serving = standing is Standing.SERVING
        before.standings[standing] += count
        times = [at for at in (before.last_heartbeat_at, heartbeat_at) if at is not None]
        found[region, pool] = Summary(
            standings=before.standings,
            slots=before.slots + (int(slots) if serving else 0),
            slots_used=before.slots_used + (int(used) if serving else 0),
            last_heartbeat_at=max(times, default=None),
            queue_error=error if standing is Standing.NO_QUEUE else before.queue_error,
        )
    return found


def versions_in_use(session: Any, platform: Platform) -> list[tuple[dict[str, Any], Verdict, str, int]]:
    """Return every combination of versions in use: versions, verdict, reason, number of workers."""
    counted: Counter[str] = Counter()
    kinds: dict[str, dict[str, Any]] = {}
    for (versions,) in session.execute(select(WorkerRow.versions).where(WorkerRow.wanted != "revoked")):
        key = repr(sorted(versions.items()))
        kinds[key] = versions
        counted[key] += 1
    judged = [(kinds[key], platform.judge(kinds[key]), count) for key, count in counted.most_common()]
    return [(versions, each.verdict, each.detail, count) for versions, each, count in judged]


def view(row: WorkerRow, platform: Platform, now: datetime) -> WorkerView:
    """Return a row as a view at `now`."""
    judged = platform.judge(row.versions)
    report = Report(row.state, row.wanted, row.last_heartbeat_at, row.queue_error)
    standing = standing_of(report, judged.verdict, platform, now)
    left = None
    if row.certificate_expires_at is not None:
        left = (row.certificate_expires_at - now).total_seconds()
    silent = (now - row.last_heartbeat_at).total_seconds() if row.last_heartbeat_at else None
    return WorkerView(
        id=row.id,
        region=row.region,
        pool=row.pool,
        standing=standing,
        why=_why(standing, row, judged.detail, silent),
        state=row.state,
        wanted=row.wanted,
        comment=row.comment,
        airbridge=row.versions.get("airbridge", ""),
        airflow=row.versions.get("airflow", ""),
        python=row.versions.get("python", ""),
        image=row.versions.get("image"),
        verdict=judged.verdict,
        verdict_detail=judged.detail,
        slots=row.slots_total,
        slots_used=row.slots_used,
        journal_pending=row.journal_pending,
        journal_bytes=row.journal_bytes,
        queue_error=row.queue_error,
        clock_skew_seconds=row.clock_skew_seconds,
        certificate_expires_at=row.certificate_expires_at,
        certificate_seconds_left=left,
        certificate_ending=left is not None
        and left < platform.certificate_lifetime.total_seconds() * CERTIFICATE_WARNING,
        enrolled_at=row.enrolled_at,
        last_heartbeat_at=row.last_heartbeat_at,
        silent_seconds=silent,
    )


def _chosen(which: WorkerFilter) -> Any:
    query = select(WorkerRow)
    for column, value in (
        (WorkerRow.region, which.region),
        (WorkerRow.pool, which.pool),
        (WorkerRow.wanted, which.wanted),
    ):
        if value is not None:
            query = query.where(column == value)
    if which.text:
        query = query.where(
            or_(
                WorkerRow.id.contains(which.text, autoescape=True),
                func.coalesce(WorkerRow.comment, "").contains(which.text, autoescape=True),
            )
        )
    return query


def _ids_of_standings(
    session: Any, query: Any, platform: Platform, standings: Collection[str], now: datetime
) -> list[str]:
    row, verdicts = WorkerRow, dict[str, Verdict]()
    columns = (
        *(row.id, cast(row.versions, Text)),
        *(row.state, row.wanted, row.last_heartbeat_at, row.queue_error),
    )
    found = []
    for name, versions, *reported in session.execute(query.with_only_columns(*columns)):
        verdict = verdicts.get(versions) or platform.judge(json.loads(versions)).verdict
        verdicts[versions] = verdict
        if standing_of(Report(*reported), verdict, platform, now) in standings:
            found.append(name)
    return found


def _why(standing: Standing, row: WorkerRow, verdict: str, silent: float | None) -> str:
    if standing in {Standing.REFUSED, Standing.DRAIN_ONLY}:
        return verdict
    if standing in {Standing.REVOKED, Standing.DRAINING}:
        return row.comment or standing.text
    if standing is Standing.NO_QUEUE:
        return row.queue_error or ""
    if standing in {*MISSING, Standing.STOPPED}:
        heartbeat_at = (
            "no heartbeat yet" if silent is None else f"last heartbeat {timedelta(seconds=int(silent))} ago"
        )
        return f"stopped, {heartbeat_at}" if standing is Standing.STOPPED else heartbeat_at
    return ""
