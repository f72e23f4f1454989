"""How long the scheduler rests between its turns."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from airbridge.executor.ledger.items import Place
from airbridge.executor.pace import LONGEST_SECONDS, SHORT_SECONDS, Pace

EUROPE: Place = ("eu-west-1", "default")
US: Place = ("us-east-1", "default")


class Turns:
    """A scheduler's turns played by hand: what each costs, where it places work, and how it rests."""

    def __init__(self, full: Collection[Place] = (EUROPE,), batch: int = 4) -> None:
        self.full = full
        self.rests: list[tuple[float, float]] = []
        self._worked = 100.0
        self._pace = Pace(self, lambda: self.full, batch, cpu_seconds=lambda: self._worked)
        self.turn(0.0)
        self.rests.clear()

    def rest(self, seconds: float, least: float) -> None:
        self.rests.append((round(seconds, 3), round(least, 3)))

    def turn(self, cost: float, *places: Place) -> None:
        self._worked += cost
        if places:
            self._pace.placed(places)
        self._pace.rest()


def test_a_turn_is_rested_from_by_what_it_cost() -> None:
    """With a backlog a turn takes a tenth of the time; when the bell rings, the rest is a quarter of the turn."""
    turns = Turns()
    turns.turn(0.02)
    turns.turn(0.1)
    assert turns.rests == [(0.18, 0.005), (0.9, 0.025)]


def test_no_rest_is_long() -> None:
    """However much a turn has cost, the next begins soon."""
    turns = Turns()
    turns.turn(5.0)
    assert turns.rests == [(LONGEST_SECONDS, 1.25)]


def test_without_a_backlog_there_is_no_rest() -> None:
    """What is not waiting for room is not held up: Airflow's own idle sleep is all there is."""
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
def test_work_for_idle_workers_and_whole_batches_are_gone_on_with(
    places: list[Place], rests: list[float]
) -> None:
    """After a turn that fed a pool with room the rest is short, and after one that queued all that one query may there is none."""
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
    """What the process worked before its loop began counts for nothing."""
    rests: list[float] = []

    class Bell:
        def rest(self, seconds: float, least: float) -> None:
            rests.append(seconds)

    Pace(Bell(), lambda: [EUROPE], 4, cpu_seconds=lambda: 60.0).rest()
    assert rests == [0.0]
