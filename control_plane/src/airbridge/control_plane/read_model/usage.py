"""Usage of the platform, grouped as one asks: by team, DAG, region, pool, or several of them."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final

from airbridge.executor.ledger import clock
from airbridge.executor.ledger.sharing import usage
from airbridge.executor.ledger.sharing.usage import Amount, Subject

# Period that is shown if none is asked for.
DEFAULT_PERIOD: Final = timedelta(days=1)


class By(StrEnum):
    """Keys that usage is grouped by."""

    TEAM = "team"
    DAG = "dag"
    REGION = "region"
    POOL = "pool"


# Team, DAG, region and pool of a group.
_Group = tuple[str | None, str | None, str | None, str | None]


@dataclass(frozen=True, slots=True)
class UsageLine:
    """Usage of one group. What it is not grouped by is None. `share` is its part of all slot-seconds, from 0 to 1."""

    team: str | None
    dag: str | None
    region: str | None
    pool: str | None
    amount: Amount
    share: float


@dataclass(frozen=True, slots=True)
class Usage:
    """Usage from `since` to before `until`; the lines are in order of slot-seconds, the most first, and add up to `total`."""

    since: datetime
    until: datetime
    by: tuple[By, ...]
    lines: tuple[UsageLine, ...]
    total: Amount


def take(
    session: Any,
    by: Sequence[By],
    since: datetime | None = None,
    until: datetime | None = None,
    dag_ids: Collection[str] | None = None,
) -> Usage:
    """Return the usage of a period, by default of the last day. `dag_ids`: of these DAGs alone."""
    now = clock.now(session)
    until = until or now + timedelta(seconds=1)
    since = since or until - DEFAULT_PERIOD
    groups: dict[_Group, Amount] = {}
    total = Amount()
    for subject, amount in usage.between(session, since, until).items():
        if dag_ids is None or subject.dag_id in dag_ids:
            key = _group(subject, by)
            groups[key] = groups.get(key, Amount()) + amount
            total += amount
    ordered = sorted(
        groups.items(), key=lambda each: (-each[1].slot_seconds, [part or "" for part in each[0]])
    )
    whole = total.slot_seconds or 1.0
    lines = tuple(UsageLine(*key, amount, amount.slot_seconds / whole) for key, amount in ordered)
    return Usage(since, until, tuple(by), lines, total)


def _group(subject: Subject, by: Sequence[By]) -> _Group:
    return (
        subject.team if By.TEAM in by else None,
        subject.dag_id if By.DAG in by else None,
        subject.region if By.REGION in by else None,
        subject.pool if By.POOL in by else None,
    )
