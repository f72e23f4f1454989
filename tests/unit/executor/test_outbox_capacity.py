"""The number of items that a queue may hold, and the delays of a failing loop."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.executor.catalogues import catalogue
from tests.unit.executor.test_placement import SETTINGS

from airbridge.core.backoff import Backoff
from airbridge.executor.dispatch.outbox import capacity
from airbridge.executor.ledger.backlogs import Backlog

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
def test_queue_capacity_follows_live_slots(backlog: Backlog, free: int) -> None:
    """Capacity grows with live slots, counts unclaimed items only, and has a minimum for pools without
    workers.
    """
    assert capacity({("eu-west-1", "gpu"): backlog}, EUROPE, TIGHT)["eu-west-1", "gpu"] == free


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
def test_queue_is_refilled_in_batches(backlog: Backlog, free: int) -> None:
    """A queue is refilled once half of it is free, or as much as one call to the queue takes."""
    assert capacity({("eu-west-1", "gpu"): backlog}, EUROPE, TIGHT)["eu-west-1", "gpu"] == free


def test_capacity_is_per_pool() -> None:
    """A backlog in one pool takes no capacity from another."""
    free = capacity({("eu-west-1", "gpu"): Backlog(sent=99)}, EUROPE, TIGHT)
    assert free == {("eu-west-1", "gpu"): 0, ("eu-west-1", "default"): 3}


def test_backoff_doubles_up_to_its_limit() -> None:
    """The bound doubles with each failure, and starts again after a success."""
    backoff = Backoff(0.5, 3.0, lambda: 1.0)
    assert [backoff.failed() for _ in range(5)] == [0.5, 1.0, 2.0, 3.0, 3.0]
    backoff.succeeded()
    assert backoff.failed() == 0.5


def test_backoff_has_full_jitter() -> None:
    """Delays are drawn from the whole range between zero and the bound."""
    assert Backoff(8.0, 60.0, lambda: 0.0).failed() == 0.0
    assert Backoff(8.0, 60.0, lambda: 0.25).failed() == 2.0


def test_backoff_survives_very_many_failures() -> None:
    """A region that is away for weeks overflows nothing."""
    backoff = Backoff(0.5, 60.0, lambda: 1.0)
    assert [backoff.failed() for _ in range(3000)][-1] == 60.0
