"""Workers: who they are, what the matrix says of them, and whether they take work."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from sqlalchemy import Text, case, cast, func, or_, select

from airbridge.control_plane.observe import paging
from airbridge.control_plane.observe.paging import FIRST, Page, PageRequest
from airbridge.control_plane.observe.platform import CERTIFICATE_WARNING, Platform
from airbridge.executor.compatibility import Verdict
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import WorkerRow
from airbridge.executor.protocol import WorkerState


class Standing(StrEnum):
    """What a worker may do now, the most telling reason first."""

    REVOKED = "revoked"
    STOPPED = "stopped"
    """It said that it was stopping, and has not been heard of since."""
    SILENT = "silent"
    """It has not been heard of lately and did not say that it would stop: cut off, or gone."""
    REFUSED = "refused"
    """The compatibility matrix refuses it."""
    DRAIN_ONLY = "drain_only"
    """The compatibility matrix lets it finish what it holds, and no more."""
    DRAINING = "draining"
    """It finishes what it holds: an operator, or it itself, wants it so."""
    SERVING = "serving"

    @property
    def alive(self) -> bool:
        """Whether it has been heard of lately."""
        return self not in {Standing.REVOKED, Standing.STOPPED, Standing.SILENT}

    @property
    def words(self) -> str:
        """The standing as a sentence's end."""
        return _WORDS[self]


_WORDS: Final = {
    Standing.REVOKED: "revoked",
    Standing.STOPPED: "stopped",
    Standing.SILENT: "not heard of",
    Standing.REFUSED: "refused by the matrix",
    Standing.DRAIN_ONLY: "drain only by the matrix",
    Standing.DRAINING: "draining",
    Standing.SERVING: "serving",
}


@dataclass(frozen=True, slots=True)
class WorkerView:
    """One worker, by its last heartbeat. Times are the database's; durations are in seconds."""

    id: str
    region: str
    pool: str
    standing: Standing
    why: str
    """The standing in words: the matrix's, the operator's comment, how long it has been silent."""
    state: str
    """What it says: active, draining, stopping."""
    wanted: str
    """What the operator wants: active, draining, maintenance, revoked."""
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
    clock_skew_seconds: float
    """How far its clock is ahead of the database's."""
    certificate_expires_at: datetime | None
    certificate_seconds_left: float | None
    certificate_ending: bool
    """Whether it should have been renewed by now and was not."""
    enrolled_at: datetime
    last_heartbeat_at: datetime | None
    silent_seconds: float | None


@dataclass(frozen=True, slots=True)
class WorkerFilter:
    """Which workers are wanted; a field of None does not choose. `text` is looked for in the id."""

    region: str | None = None
    pool: str | None = None
    text: str | None = None
    wanted: str | None = None
    standing: str | None = None
    """A `Standing`. It is judged and not stored, so that the whole fleet is read for it."""


@dataclass(frozen=True, slots=True)
class Summary:
    """The workers of one pool. `slots` are those of serving workers."""

    standings: Counter[Standing] = field(default_factory=Counter)
    slots: int = 0
    slots_used: int = 0
    last_heard_at: datetime | None = None


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
        ids = _ids_of_standing(session, query, platform, which.standing, now)
        shown = select(WorkerRow).where(WorkerRow.id.in_(ids[page.offset : page.offset + page.size]))
        rows = session.scalars(shown.order_by(WorkerRow.region, WorkerRow.pool, WorkerRow.id))
        return Page(tuple(view(row, platform, now) for row in rows), page.number, page.size, len(ids))
    return paging.fetch(session, query, page, lambda row: view(row[0], platform, now))


def get(session: Any, platform: Platform, worker_id: str) -> WorkerView | None:
    """Return one worker."""
    row = session.get(WorkerRow, worker_id)
    return None if row is None else view(row, platform, clock.now(session))


def of_pool(session: Any, platform: Platform, region: str, pool: str, limit: int = 2_000) -> list[WorkerView]:
    """Return the workers of a pool, those heard of last first."""
    query = (
        select(WorkerRow)
        .where(WorkerRow.region == region, WorkerRow.pool == pool)
        .order_by(WorkerRow.last_heartbeat_at.desc())
        .limit(limit)
    )
    now = clock.now(session)
    return [view(row, platform, now) for row in session.scalars(query)]


def summary(session: Any, platform: Platform) -> dict[tuple[str, str], Summary]:
    """Return the workers of every pool, counted. The database counts: a fleet differs in few respects."""
    row, said, now = WorkerRow, cast(WorkerRow.versions, Text), clock.now(session)
    alive = case((row.last_heartbeat_at >= now - platform.alive_after, 1), else_=0)
    kinds = (row.region, row.pool, row.state, row.wanted, said, alive)
    sums = (func.sum(row.slots_total), func.sum(row.slots_used), func.max(row.last_heartbeat_at))
    verdicts: dict[str, Verdict] = {}
    found: dict[tuple[str, str], Summary] = {}
    for region, pool, state, wanted, versions, _, count, slots, used, heard in session.execute(
        select(*kinds, func.count(), *sums).group_by(*kinds)
    ):
        before = found.get((region, pool), Summary())
        verdict = verdicts.get(versions) or platform.judge(json.loads(versions)).verdict
        verdicts[versions] = verdict
        standing = _standing(state, wanted, heard, verdict, platform, now=now)
        serving = standing is Standing.SERVING
        before.standings[standing] += count
        times = [at for at in (before.last_heard_at, heard) if at is not None]
        found[region, pool] = Summary(
            standings=before.standings,
            slots=before.slots + (int(slots) if serving else 0),
            slots_used=before.slots_used + (int(used) if serving else 0),
            last_heard_at=max(times, default=None),
        )
    return found


def versions_in_use(session: Any, platform: Platform) -> list[tuple[dict[str, Any], Verdict, str, int]]:
    """Return every combination of versions that workers run: versions, verdict, the reason, how many workers."""
    counted: Counter[str] = Counter()
    kinds: dict[str, dict[str, Any]] = {}
    for (versions,) in session.execute(select(WorkerRow.versions).where(WorkerRow.wanted != "revoked")):
        key = repr(sorted(versions.items()))
        kinds[key] = versions
        counted[key] += 1
    judged = [(kinds[key], platform.judge(kinds[key]), count) for key, count in counted.most_common()]
    return [(versions, each.verdict, each.detail, count) for versions, each, count in judged]


def view(row: WorkerRow, platform: Platform, now: datetime) -> WorkerView:
    """Return a worker as it stands at `now`."""
    judged = platform.judge(row.versions)
    standing = _standing(row.state, row.wanted, row.last_heartbeat_at, judged.verdict, platform, now=now)
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


def _ids_of_standing(session: Any, query: Any, platform: Platform, standing: str, now: datetime) -> list[str]:
    row, verdicts = WorkerRow, dict[str, Verdict]()
    columns = (row.id, row.state, row.wanted, cast(row.versions, Text), row.last_heartbeat_at)
    found = []
    for name, state, wanted, versions, heard in session.execute(query.with_only_columns(*columns)):
        verdict = verdicts.get(versions) or platform.judge(json.loads(versions)).verdict
        verdicts[versions] = verdict
        if _standing(state, wanted, heard, verdict, platform, now=now) == standing:
            found.append(name)
    return found


def _standing(
    state: str,
    wanted: str,
    heard: datetime | None,
    verdict: Verdict,
    platform: Platform,
    *,
    now: datetime,
) -> Standing:
    if wanted == "revoked":
        return Standing.REVOKED
    if heard is None or now - heard > platform.alive_after:
        stopped = state == WorkerState.STOPPING
        return Standing.STOPPED if stopped else Standing.SILENT
    if verdict is Verdict.REFUSE:
        return Standing.REFUSED
    if verdict is Verdict.DRAIN:
        return Standing.DRAIN_ONLY
    if wanted != "active" or state != WorkerState.ACTIVE:
        return Standing.DRAINING
    return Standing.SERVING


def _why(standing: Standing, row: WorkerRow, verdict: str, silent: float | None) -> str:
    if standing in {Standing.REFUSED, Standing.DRAIN_ONLY}:
        return verdict
    if standing in {Standing.REVOKED, Standing.DRAINING}:
        return row.comment or standing.words
    if standing in {Standing.SILENT, Standing.STOPPED}:
        heard = "never heard of" if silent is None else f"last heard of {timedelta(seconds=int(silent))} ago"
        return f"stopped, {heard}" if standing is Standing.STOPPED else heard
    return ""
