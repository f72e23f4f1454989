"""Throughput: work items that ended per minute and region, over the last hour."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Integer, cast, func, select

from airbridge.core.protocol import ItemKind
from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import WorkItemRow

MINUTE = 60


@dataclass(frozen=True, slots=True)
class Throughput:
    """Items per minute. Each region has one count per minute; the last one is the last complete minute."""

    minutes: tuple[datetime, ...]
    regions: Mapping[str, tuple[int, ...]]

    @property
    def total(self) -> int:
        """Number of items that ended in all these minutes."""
        return sum(map(sum, self.regions.values()))


def series(session: Any, minutes: int = 60) -> Throughput:
    """Return the counts of the last complete minutes."""
    end = clock.now(session).replace(second=0, microsecond=0)
    start = end - timedelta(minutes=minutes)
    first = int(start.timestamp()) // MINUTE
    minute = _minute(session, WorkItemRow.settled_at)
    query = (
        select(WorkItemRow.region, minute, func.count())
        .where(
            WorkItemRow.settled_at >= start,
            WorkItemRow.settled_at < end,
            WorkItemRow.kind == ItemKind.TASK,
        )
        .group_by(WorkItemRow.region, minute)
    )
    counts: dict[str, list[int]] = {}
    for region, at, count in session.execute(query):
        counts.setdefault(region, [0] * minutes)[int(at) - first] = count
    return Throughput(
        minutes=tuple(datetime.fromtimestamp((first + number) * MINUTE, UTC) for number in range(minutes)),
        regions={region: tuple(counts[region]) for region in sorted(counts)},
    )


def largest(found: Throughput, lines: int) -> dict[str, list[int]]:
    """Return the counts of the `lines` regions with the most work, by name, and those of all others together."""
    ranked = sorted(found.regions, key=lambda name: -sum(found.regions[name]))
    shown, others = sorted(ranked[:lines]), ranked[lines:]
    counts = {name: list(found.regions[name]) for name in shown}
    if others:
        together = zip(*(found.regions[name] for name in others), strict=True)
        counts[f"{len(others)} others"] = [sum(each) for each in together]
    return counts


def _minute(session: Any, column: Any) -> Any:
    """Return the SQL expression of a time in whole minutes since the epoch, for the session's database."""
    if session.get_bind().dialect.name == "postgresql":
        return cast(func.floor(func.extract("epoch", column) / MINUTE), Integer)
    return cast(func.strftime("%s", column), Integer) / MINUTE
