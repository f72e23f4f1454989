"""Work that a limit or a team's quota holds back: it waits for its turn, and not for a worker.

So it moves to no fallback, and its age is no fault of its pool. A limit or quota holds work back while it is in use and has no room
for all that waits under it. One that nothing runs under, because no worker claims, holds nothing back; nor is work held back that was let
go and that its queue did not take.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

from sqlalchemy import and_, func, not_

from airbridge.executor.ledger.models import WorkItemRow
from airbridge.executor.ledger.sharing import fair_shares
from airbridge.executor.ledger.sharing.fair_shares import FairShares
from airbridge.executor.ledger.sharing.limits import Limits

#: Prefix of a row's `detail` while its queue cannot be reached.
UNSENT: Final = "did not take it: "


def conditions(session: Any, limits: Limits, shares: FairShares | None, now: datetime) -> Sequence[Any]:
    """Return the conditions of work that is held back, sent or not; one that meets any of them is. Without limits and quotas, none."""
    taken = not_(func.coalesce(WorkItemRow.detail, "").startswith(UNSENT, autoescape=True))
    return [and_(taken, each) for each in (*_by_limits(session, limits, now), *_by_quotas(session, shares))]


def _by_limits(session: Any, limits: Limits, now: datetime) -> list[Any]:
    room = limits.room(session, now)
    row = WorkItemRow
    return [
        and_(row.region == ref[0], row.pool == ref[1], *_named(names))
        for ref, names in (room.held_back() if room is not None else ())
    ]


def _named(names: str | None) -> tuple[Any, ...]:
    if names is None:
        return (WorkItemRow.limits.is_(None),)
    return (WorkItemRow.limits.isnot(None), WorkItemRow.limits == names)


def _by_quotas(session: Any, shares: FairShares | None) -> list[Any]:
    refs = shares.with_quota if shares is not None else frozenset()
    if shares is None or not refs:
        return []
    row = WorkItemRow
    return [
        and_(row.region == ref[0], row.pool == ref[1], row.team == team)
        for ref, teams in fair_shares.loads(session, refs).items()
        for team, load in teams.items()
        if shares.holds_back(ref, team, load)
    ]
