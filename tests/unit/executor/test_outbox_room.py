"""How much a queue may hold, and how long a failing loop waits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.executor.catalogues import catalogue
from tests.unit.executor.test_placement import SETTINGS

from airbridge.executor.backoff import Backoff
from airbridge.executor.ledger.backlogs import Backlog
from airbridge.executor.outbox import room

EUROPE = catalogue().regions[1]
TIGHT = replace(SETTINGS, outbox_floor=3, outbox_per_slot=2.0)


@pytest.mark.parametrize(
    ("backlog", "free"),
    [
        (Backlog(), 3),
        (Backlog(sent=1), 2),
        (Backlog(sent=9), 0),
        (Backlog(slots=4, workers_alive=1), 8),
        (Backlog(slots=4, workers_alive=1, sent=3, claimed=4), 5),
        (Backlog(slots=1, workers_alive=1), 3),
    ],
)
def test_a_queue_holds_what_is_soon_taken(backlog: Backlog, free: int) -> None:
    """Room grows with live slots, counts what is unclaimed only, and has a floor for pools without workers."""
    assert room({("eu-west-1", "gpu"): backlog}, EUROPE, TIGHT)["eu-west-1", "gpu"] == free


@pytest.mark.parametrize(
    ("backlog", "free"),
    [
        (Backlog(sent=2), 0),
        (Backlog(slots=4, workers_alive=1, sent=5), 0),
        (Backlog(slots=4, workers_alive=1, sent=4), 4),
        (Backlog(slots=100, workers_alive=10, sent=191), 0),
        (Backlog(slots=100, workers_alive=10, sent=190), 10),
    ],
)
def test_a_queue_is_filled_up_by_batches(backlog: Backlog, free: int) -> None:
    """There is room again when half is gone, or as much as one call to the queue takes."""
    assert room({("eu-west-1", "gpu"): backlog}, EUROPE, TIGHT)["eu-west-1", "gpu"] == free


def test_every_pool_has_room_of_its_own() -> None:
    """A backlog in one pool takes no room from another."""
    free = room({("eu-west-1", "gpu"): Backlog(sent=99)}, EUROPE, TIGHT)
    assert free == {("eu-west-1", "gpu"): 0, ("eu-west-1", "default"): 3}


def test_backoff_doubles_up_to_its_limit() -> None:
    """The bound doubles with each failure, and starts again after a success."""
    backoff = Backoff(0.5, 3.0, lambda: 1.0)
    assert [backoff.failed() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.succeeded()
    assert backoff.failed() == 0.5


def test_backoff_has_full_jitter() -> None:
    """Delays lie anywhere between nothing and the bound."""
    assert Backoff(8.0, 60.0, lambda: 0.0).failed() == 0.0
    assert Backoff(8.0, 60.0, lambda: 0.25).failed() == 2.0


def test_backoff_survives_very_many_failures() -> None:
    """A region that is away for weeks overflows nothing."""
    backoff = Backoff(0.5, 60.0, lambda: 1.0)
    assert [backoff.failed() for _ in range(3000)][-1] == 60.0
