"""Fair shares: which team's work goes next to a pool that several teams have work for.

Weighted max-min fairness by slots: the next item is of the team whose work on the queue and on workers takes the fewest slots for its
weight. What a team does not use, the others share; what it holds counts, so a team that has only begun to use the pool catches up
at once, and long tasks count for as long as they run. There is no memory but the ledger's rows: schedulers come to the same
decision, and a restart changes nothing.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

from sqlalchemy import func, select, text

from airbridge.core.protocol import ItemKind
from airbridge.core.regions import Team, place_of
from airbridge.executor.ledger import _locking
from airbridge.executor.ledger.backlogs import PoolRef
from airbridge.executor.ledger.models import ItemState, WorkItemRow


class _HasSlots(Protocol):
    slots: Any


_FIELDS: Final = {ItemState.PLACED: "waiting", ItemState.SENT: "sent", ItemState.CLAIMED: "claimed"}

ItemT = TypeVar("ItemT", bound=_HasSlots)


@dataclass(frozen=True, slots=True)
class TeamLoad:
    """Work of one team in one pool: slots of what is sent and of what is claimed, and the number of items that wait in the ledger."""

    sent: int = 0
    claimed: int = 0
    waiting: int = 0

    @property
    def held(self) -> int:
        """Slots of all work that the ledger has let go."""
        return self.sent + self.claimed


# Loads by pool and team.
Loads = Mapping[PoolRef, Mapping[str, TeamLoad]]


def loads(session: Any, refs: Collection[PoolRef] | None = None) -> Loads:
    """Return the load of every team that has open work, in these pools or in all."""
    row = WorkItemRow
    query = (
        select(row.region, row.pool, row.team, row.state, func.count(), func.sum(row.slots))
        .where(
            row.state.in_((ItemState.PLACED, ItemState.SENT, ItemState.CLAIMED)), row.kind == ItemKind.TASK
        )
        .group_by(row.region, row.pool, row.team, row.state)
    )
    if refs is not None:
        query = query.where(
            row.region.in_({region for region, _ in refs}), row.pool.in_({pool for _, pool in refs})
        )
    found: defaultdict[PoolRef, defaultdict[str, dict[str, int]]] = defaultdict(lambda: defaultdict(dict))
    for region, pool, team, state, count, slots in session.execute(query):
        amount = count if state == ItemState.PLACED else int(slots)
        found[region, pool][team][_FIELDS[state]] = amount
    return {
        ref: {team: TeamLoad(**amounts) for team, amounts in sorted(teams.items())}
        for ref, teams in sorted(found.items())
    }


# First key of Postgres' advisory locks on the quotas of a region; the second is of the region's name.
_QUOTA_LOCK: Final = 0x61627174
_LOCK_QUOTAS: Final = text("SELECT pg_advisory_xact_lock(:key, hashtext(:region))")


def lock_quotas(session: Any, regions: Collection[str]) -> None:
    """Let no other scheduler send work of these regions until the transaction ends: loads that are read now stay as they are.

    Row locks are no help: schedulers pass over the rows that another one has locked, and each would fill the quota.
    """
    if session.get_bind().dialect.name == "sqlite":
        _locking.take_write_lock(session)
        return
    for region in sorted(regions):
        session.execute(_LOCK_QUOTAS, {"key": _QUOTA_LOCK, "region": region})


class FairShares:
    """Shares of the catalogue's teams. A team that the catalogue does not name (any more) has weight 1 and no quota."""

    def __init__(self, teams: Iterable[Team]) -> None:
        self._weights: dict[str, float] = {}
        self._quotas: dict[tuple[PoolRef, str], int] = {}
        for team in teams:
            self._weights[team.name] = team.weight
            for queue, slots in team.quota.items():
                self._quotas[place_of(queue), team.name] = slots

    @property
    def with_quota(self) -> frozenset[PoolRef]:
        """Pools in which a team has a quota."""
        return frozenset(ref for ref, _ in self._quotas)

    def holds_back(self, ref: PoolRef, team: str, load: TeamLoad) -> bool:
        """Return whether a team's work waits for its own work in the pool to end: its quota has no room for all of it."""
        quota = self._quotas.get((ref, team))
        return quota is not None and load.claimed > 0 and load.waiting > max(0, quota - load.held)

    def reached(self, ref: PoolRef, team: str, load: TeamLoad, slots: int) -> int | None:
        """Return the quota that keeps a team's next item, of that many slots, waiting for its own work there to end; None if none does."""
        if load.claimed == 0 or not self._exceeds_quota(ref, team, load.held, slots):
            return None
        return self._quotas[ref, team]

    def limited(self, refs: Iterable[PoolRef]) -> set[str]:
        """Return the regions of those of these pools in which a team has a quota."""
        return {ref[0] for ref in refs if ref in self.with_quota}

    def applies(self, ref: PoolRef, waiting: Collection[str]) -> bool:
        """Return whether it makes a difference that these teams have work that waits for the pool."""
        return len(waiting) > 1 or any((ref, team) in self._quotas for team in waiting)

    def in_turn(
        self,
        ref: PoolRef,
        of_team: Mapping[str, Sequence[ItemT]],
        load: Mapping[str, TeamLoad],
        limit: int,
        admits: Callable[[ItemT], bool] | None = None,
    ) -> list[ItemT]:
        """Return up to `limit` of the teams' items, each team's in their order, as the teams take turns at the pool.

        An item that `admits` refuses is passed over, at no cost to its team.
        """
        held = {team: each.held for team, each in load.items()}
        rest = {team: list(reversed(items)) for team, items in of_team.items() if items}
        chosen: list[ItemT] = []
        while rest and len(chosen) < limit:
            team = min(rest, key=lambda name: (held.get(name, 0) / self._weights.get(name, 1.0), name))
            if self._exceeds_quota(ref, team, held.get(team, 0), rest[team][-1].slots):
                del rest[team]
                continue
            item = rest[team].pop()
            if admits is None or admits(item):
                chosen.append(item)
                held[team] = held.get(team, 0) + item.slots
            if not rest[team]:
                del rest[team]
        return chosen

    def _exceeds_quota(self, ref: PoolRef, team: str, held: int, slots: int) -> bool:
        """Return whether the team must wait. A task that needs more than the quota runs when nothing else of the team does."""
        quota = self._quotas.get((ref, team))
        return quota is not None and held > 0 and held + slots > quota
