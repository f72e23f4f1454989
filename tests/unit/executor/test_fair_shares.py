"""Fair shares of teams: properties over generated loads."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airbridge.core.regions import Team
from airbridge.executor.ledger.sharing.fair_shares import FairShares, TeamLoad

POOL = ("eu-west-1", "default")
TEAMS = ("a", "b", "c", "d")


@dataclass(frozen=True)
class Item:
    team: str
    number: int
    slots: int


def shares(weights: dict[str, float], quotas: dict[str, int] | None = None) -> FairShares:
    return FairShares(
        Team(
            name=name,
            bundles=(f"{name}-dags",),
            weight=weight,
            quota={"eu-west-1": quotas[name]} if quotas and name in quotas else {},
        )
        for name, weight in weights.items()
    )


weights = st.fixed_dictionaries({name: st.sampled_from([0.5, 1.0, 2.0, 4.0]) for name in TEAMS})
counts = st.dictionaries(st.sampled_from(TEAMS), st.integers(0, 40), min_size=1)


def work(of: dict[str, int], sizes: list[int]) -> dict[str, list[Item]]:
    return {team: [Item(team, n, sizes[n % len(sizes)]) for n in range(count)] for team, count in of.items()}


@given(weights, counts, counts, st.lists(st.integers(1, 4), min_size=1), st.integers(0, 60))
def test_no_team_waits_while_another_exceeds_its_share(
    weight: dict[str, float], holds: dict[str, int], waits: dict[str, int], sizes: list[int], limit: int
) -> None:
    """Whoever was served had, without its last item, no more for its weight than anyone who waits; nothing idles, none overtakes."""
    of_team = work(waits, sizes)
    loads = {team: TeamLoad(sent=holds.get(team, 0)) for team in TEAMS}
    chosen = shares(weight).in_turn(POOL, of_team, loads, limit)

    assert len(chosen) == min(limit, sum(waits.values()))
    served = {team: [item for item in chosen if item.team == team] for team in TEAMS}
    for team, items in served.items():
        assert items == of_team.get(team, [])[: len(items)]
    held = {team: holds.get(team, 0) + sum(i.slots for i in served[team]) for team in TEAMS}
    waiting = [team for team in TEAMS if len(served[team]) < waits.get(team, 0)]
    for team in [team for team in TEAMS if served[team]]:
        for other in waiting:
            before_last = held[team] - served[team][-1].slots
            assert before_last / weight[team] <= held[other] / weight[other]


@given(weights, counts, counts, st.dictionaries(st.sampled_from(TEAMS), st.integers(1, 6), min_size=1))
def test_quota_holds_and_starves_nobody(
    weight: dict[str, float], holds: dict[str, int], waits: dict[str, int], quotas: dict[str, int]
) -> None:
    """No team gets beyond its quota, except for one large task alone; whoever has room and work gets some."""
    of_team = work(waits, [1, 2, 5])
    loads = {team: TeamLoad(sent=holds.get(team, 0)) for team in TEAMS}
    chosen = shares(weight, quotas).in_turn(POOL, of_team, loads, 1000)
    for team in TEAMS:
        mine = [item.slots for item in chosen if item.team == team]
        held = holds.get(team, 0)
        if team not in quotas:
            assert len(mine) == waits.get(team, 0)
        elif mine:
            assert held + sum(mine) <= quotas[team] or (held == 0 and len(mine) == 1)
        elif waits.get(team, 0):
            assert held > 0
            assert held + of_team[team][0].slots > quotas[team]


@dataclass
class Pool:
    """A pool's slots and its queue, served first in, first out; the outbox feeds it in turns."""

    slots: int
    per_slot: float = 2.0

    def run(
        self, fair: FairShares | None, of_team: dict[str, list[Item]], seconds: int
    ) -> tuple[dict[Item, int], int]:
        """Return when each item started, in seconds, and how many slot-seconds were used; every task takes one second."""
        waiting = {team: deque(items) for team, items in of_team.items()}
        queue: deque[Item] = deque()
        started: dict[Item, int] = {}
        for now in range(seconds):
            free = max(0, int(self.slots * self.per_slot) - len(queue))
            queue.extend(self._next(fair, waiting, queue, free))
            for _ in range(min(self.slots, len(queue))):
                started[queue.popleft()] = now
        return started, len(started)

    @staticmethod
    def _next(
        fair: FairShares | None, waiting: dict[str, deque[Item]], queue: deque[Item], free: int
    ) -> list[Item]:
        if fair is None:
            first = [item for items in waiting.values() for item in items][:free]
        else:
            loads = {team: TeamLoad(sent=sum(item.team == team for item in queue)) for team in waiting}
            of_team = {team: list(items)[:free] for team, items in waiting.items()}
            first = fair.in_turn(POOL, of_team, loads, free)
        for item in first:
            waiting[item.team].popleft()
        return first


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 16), st.integers(200, 600), st.integers(1, 10))
def test_small_team_waits_two_task_times_beside_a_large_one(slots: int, large: int, small: int) -> None:
    """A team's few tasks begin within two task times of a turn of its own; the pool is never idle for it."""
    of_team = {"a": [Item("a", n, 1) for n in range(large)], "b": [Item("b", n, 1) for n in range(small)]}
    pool = Pool(slots)
    started, used = pool.run(shares({"a": 1.0, "b": 1.0}), of_team, 60)
    _, used_without = pool.run(None, of_team, 60)
    assert used == used_without
    for number in range(small):
        # Its share is half of the slots.
        assert started[Item("b", number, 1)] <= 2 + 2 * number / slots


@pytest.mark.parametrize(
    ("load", "slots", "quota"),
    [
        (TeamLoad(claimed=3, waiting=1), 1, None),
        (TeamLoad(claimed=4, waiting=1), 1, 4),
        (TeamLoad(claimed=3, sent=1, waiting=1), 1, 4),
        (TeamLoad(claimed=3, waiting=1), 2, 4),
        # Nothing of the team runs: it waits for workers.
        (TeamLoad(sent=4, waiting=1), 1, None),
        (TeamLoad(waiting=1), 8, None),
    ],
)
def test_reached_quota(load: TeamLoad, slots: int, quota: int | None) -> None:
    """A quota is reached if the team's running and queued work leaves no room for its next task."""
    limited = shares({"a": 1.0, "b": 1.0}, {"a": 4})
    assert limited.reached(POOL, "a", load, slots) == quota
    assert limited.reached(POOL, "b", load, slots) is None
