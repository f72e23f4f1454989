"""The scaling signal: the values published for a pool, and the loop's survival of errors."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
from tests.unit.executor.catalogues import catalogue

from airbridge.core.exceptions import ScalingError
from airbridge.core.regions import Pool, Region
from airbridge.executor.dispatch.scaling import RegionSignal, Scaling, Signal
from airbridge.executor.ledger.backlogs import Backlog

POOL = Pool(name="default", queue_url="http://queue", slots=4)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (Backlog(), Signal("r", "default", 0.0, 0.0, False)),
        (Backlog(placed=490, sent=10), Signal("r", "default", 125.0, 125.0, True)),
        (Backlog(placed=6, sent=2, slots=16, workers_alive=2), Signal("r", "default", 0.5, 0.5, False)),
        (Backlog(sent=4, claimed=16, slots=16, workers_alive=2), Signal("r", "default", 0.25, 1.25, False)),
        (Backlog(claimed=3), Signal("r", "default", 0.0, 0.75, True)),
        # Triggers take no slots: one worker is enough for them, and a pool with any does not go down to none.
        (Backlog(triggers=900), Signal("r", "default", 0.25, 0.25, True)),
        (Backlog(triggers=900, slots=4, workers_alive=1), Signal("r", "default", 0.0, 0.25, False)),
        (
            Backlog(triggers=900, sent=4, slots=4, workers_alive=1),
            Signal("r", "default", 1.0, 1.0, False),
        ),
    ],
)
def test_backlog_is_per_slot(now: Backlog, expected: Signal) -> None:
    """A claimed item does not wait, but counts as work; a pool with open work and no live worker is
    measured by one worker's slots.
    """
    assert expected == Signal.of("r", POOL, now)


class Metrics:
    """Keeps what is published; refuses while `refuses`."""

    def __init__(self) -> None:
        self.published: list[list[Signal]] = []
        self.heard = threading.Event()
        self.refuses = False

    def publish(self, signals: Sequence[Signal]) -> None:
        if self.refuses:
            raise ScalingError("throttled")
        self.published.append(list(signals))
        self.heard.set()


def loop(metrics: Metrics, region: Region) -> RegionSignal:
    return RegionSignal(
        region,
        interval_seconds=10,
        backlog_of=lambda _region: {},
        metrics=metrics,
    )


def test_idle_pool_publishes_zero() -> None:
    """A zero is published for an idle pool: an alarm without data would not scale in."""
    metrics, region = Metrics(), catalogue().home
    loop(metrics, region).turn()
    assert [[(pool.name, 0.0) for pool in region.pools]] == [
        [(signal.pool, signal.backlog_per_slot) for signal in told] for told in metrics.published
    ]


def test_failed_publication_is_not_repeated() -> None:
    """A refused call ends nothing, and the next turn publishes the then current state."""
    metrics = Metrics()
    turned = loop(metrics, catalogue().home)
    metrics.refuses = True
    turned.turn()
    metrics.refuses = False
    turned.turn()
    assert len(metrics.published) == 1


def test_loops_start_wake_and_end() -> None:
    """Each region has a thread; a region that has none is not woken."""
    metrics = Metrics()
    scaling = Scaling({"here": loop(metrics, catalogue().home)})
    scaling.start()
    scaling.wake("here")
    scaling.wake("elsewhere")
    assert metrics.heard.wait(30)
    scaling.stop()
    assert not [each for each in threading.enumerate() if each.name.startswith("airbridge-scaling")]
