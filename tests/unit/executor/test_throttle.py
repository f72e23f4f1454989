"""The throttle: the scheduler's rest between its turns."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from airbridge.executor.ledger.backlogs import PoolRef
from airbridge.executor.scheduling.throttle import LONGEST_SECONDS, SHORT_SECONDS, Throttle

EUROPE: PoolRef = ("eu-west-1", "default")
US: PoolRef = ("us-east-1", "default")


class Turns:
    """A scheduler's turns played by hand: what each costs, where it places work, and how it rests."""

    def __init__(self, full: Collection[PoolRef] = (EUROPE,), batch: int = 4) -> None:
        self.full = full
        self.rests: list[tuple[float, float]] = []
        self._worked = 100.0
        self._pace = Throttle(self, lambda: self.full, batch, cpu_seconds=lambda: self._worked)
        self.turn(0.0)
        self.rests.clear()

    def rest(self, seconds: float, least: float) -> None:
        self.rests.append((round(seconds, 3), round(least, 3)))

    def turn(self, cost: float, *places: PoolRef) -> None:
        self._worked += cost
        if places:
            self._pace.placed(places)
        self._pace.rest()


def test_pause_is_proportional_to_cost() -> None:
    """With a backlog a turn takes a tenth of the time; after a notification, the pause is a quarter of the
    turn.
    """
    turns = Turns()
    turns.turn(0.02)
    turns.turn(0.1)
    assert turns.rests == [(0.18, 0.005), (0.9, 0.025)]


def test_no_rest_is_long() -> None:
    """However much a turn has cost, the next begins soon."""
    turns = Turns()
    turns.turn(5.0)
    assert turns.rests == [(LONGEST_SECONDS, 1.25)]


def test_no_pause_without_backlog() -> None:
    """Work that does not wait for capacity is not delayed: Airflow's own idle sleep is all there is."""
    turns = Turns(full=())
    turns.turn(0.1)
    turns.turn(0.1, EUROPE)
    assert turns.rests == []


@pytest.mark.parametrize(
    ("places", "rests"),
    [
        ([EUROPE] * 3, [0.9]),
        ([EUROPE, US], [SHORT_SECONDS]),
        ([EUROPE] * 4, []),
    ],
)
def test_idle_workers_shorten_pause(places: list[PoolRef], rests: list[float]) -> None:
    """After a turn that fed a pool with capacity the pause is short, and after one that queued a full
    query's worth there is none.
    """
    turns = Turns()
    turns.turn(0.1, *places)
    assert [seconds for seconds, _least in turns.rests] == rests


def test_haste_is_for_one_turn() -> None:
    """The turn after one that was in a hurry is rested from, for what it cost itself."""
    turns = Turns()
    turns.turn(0.5, US)
    turns.turn(0.1)
    assert turns.rests == [(SHORT_SECONDS, 0.125), (0.9, 0.025)]


def test_the_first_turn_owes_nothing() -> None:
    """CPU time that the process used before its loop began does not count."""
    rests: list[float] = []

    class Recording:
        def rest(self, seconds: float, least: float) -> None:
            rests.append(seconds)

    Throttle(Recording(), lambda: [EUROPE], 4, cpu_seconds=lambda: 60.0).rest()
    assert rests == [0.0]
