"""Versions: who runs what, and what the compatibility matrix says of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Text, case, cast, func, select

from airbridge.control_plane.observe.platform import Platform
from airbridge.executor.compatibility import Verdict
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import WorkerRow

_WORST_FIRST: Final = (Verdict.REFUSE, Verdict.DRAIN, Verdict.ALLOW)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers that run the same versions."""

    versions: Mapping[str, Any]
    """As a heartbeat says them: airbridge, airflow, task_sdk, python, protocol, image."""
    verdict: Verdict
    detail: str
    workers: int
    """Revoked ones excepted."""
    alive: int
    """Of these, heard of lately."""
    regions: Mapping[str, int]
    """Workers by region."""


def in_use(session: Any, platform: Platform) -> tuple[Fleet, ...]:
    """Return every combination of versions that workers run, those that may not work first."""
    row, said = WorkerRow, cast(WorkerRow.versions, Text)
    since = clock.now(session) - platform.alive_after
    alive = func.sum(case((row.last_heartbeat_at > since, 1), else_=0))
    query = select(row.region, said, func.count(), alive).where(row.wanted != "revoked")
    regions: dict[str, Counter[str]] = {}
    heard: Counter[str] = Counter()
    for region, text, count, living in session.execute(query.group_by(row.region, said)):
        key = json.dumps(json.loads(text), sort_keys=True)
        regions.setdefault(key, Counter())[region] += count
        heard[key] += int(living)
    fleets = [_fleet(json.loads(key), platform, regions[key], heard[key]) for key in regions]
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
