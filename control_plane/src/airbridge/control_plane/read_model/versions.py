"""Versions in use, with the compatibility matrix's verdict."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Text, case, cast, func, select

from airbridge.control_plane.read_model.platform import Platform
from airbridge.core.compatibility import Verdict
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import WorkerRow

_WORST_FIRST: Final = (Verdict.REFUSE, Verdict.DRAIN, Verdict.ALLOW)


@dataclass(frozen=True, slots=True)
class Fleet:
    """Workers that run the same versions."""

    #: Versions of a heartbeat: airbridge, airflow, task_sdk, python, protocol, image.
    versions: Mapping[str, Any]
    verdict: Verdict
    detail: str
    #: Number of workers that are not revoked.
    workers: int
    #: Of these, workers with recent heartbeats.
    alive: int
    #: Workers by region.
    regions: Mapping[str, int]


def in_use(session: Any, platform: Platform) -> tuple[Fleet, ...]:
    """Return every combination of versions in use, refused ones first."""
    row, reported = WorkerRow, cast(WorkerRow.versions, Text)
    since = clock.now(session) - platform.alive_after
    alive = func.sum(case((row.last_heartbeat_at > since, 1), else_=0))
    query = select(row.region, reported, func.count(), alive).where(row.wanted != "revoked")
    regions: dict[str, Counter[str]] = {}
    alive_by_versions: Counter[str] = Counter()
    for region, text, count, living in session.execute(query.group_by(row.region, reported)):
        key = json.dumps(json.loads(text), sort_keys=True)
        regions.setdefault(key, Counter())[region] += count
        alive_by_versions[key] += int(living)
    fleets = [_fleet(json.loads(key), platform, regions[key], alive_by_versions[key]) for key in regions]
    return tuple(sorted(fleets, key=lambda each: (_WORST_FIRST.index(each.verdict), -each.workers)))


def _fleet(versions: dict[str, Any], platform: Platform, regions: Counter[str], alive: int) -> Fleet:
    judged = platform.judge(versions)
    return Fleet(
        versions=versions,
        verdict=judged.verdict,
        detail=judged.detail,
        workers=regions.total(),
        alive=alive,
        regions=dict(sorted(regions.items())),
    )
