"""Throughput: how many work items ended in each minute of the last hour, region by region."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Integer, cast, func, select

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.models import WorkItemRow

MINUTE = 60


@dataclass(frozen=True, slots=True)
class Throughput:
    """Items per minute. Each region has as many counts as there are minutes; the last minute is the last whole one."""

    minutes: tuple[datetime, ...]
    regions: Mapping[str, tuple[int, ...]]

    @property
    def total(self) -> int:
        """Items that ended in all these minutes."""
        return sum(map(sum, self.regions.values()))


def series(session: Any, minutes: int = 60) -> Throughput:
    """Return the counts of the last whole minutes."""
    end = clock.now(session).replace(second=0, microsecond=0)
    start = end - timedelta(minutes=minutes)
    first = int(start.timestamp()) // MINUTE
    minute = _minute(session, WorkItemRow.settled_at)
    query = (
        select(WorkItemRow.region, minute, func.count())
        .where(WorkItemRow.settled_at >= start, WorkItemRow.settled_at < end)
        .group_by(WorkItemRow.region, minute)
    )
    counts: dict[str, list[int]] = {}
    for region, at, count in session.execute(query):
        counts.setdefault(region, [0] * minutes)[int(at) - first] = count
    return Throughput(
        minutes=tuple(datetime.fromtimestamp((first + number) * MINUTE, UTC) for number in range(minutes)),
        regions={region: tuple(counts[region]) for region in sorted(counts)},
    )


def _minute(session: Any, column: Any) -> Any:
    """The minutes since the epoch that a time lies in, in the database's own words."""
    if session.get_bind().dialect.name == "postgresql":
        return cast(func.floor(func.extract("epoch", column) / MINUTE), Integer)
    return cast(func.strftime("%s", column), Integer) / MINUTE
