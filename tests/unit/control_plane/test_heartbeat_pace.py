"""The pace of heartbeats: when the interval grows, how far, and when it shrinks."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.unit.executor.catalogues import catalogue

from airbridge.control_plane.gateway.heartbeat.pace import Pace
from airbridge.control_plane.parity import Parity
from airbridge.control_plane.read_model.platform import Platform

LONG, SHORT, BETWEEN = 5.0, 0.05, 0.3
JITTER = 1.1


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def record(pace: Pace, time: Time, waited: float, seconds: int) -> None:
    """Record a batch with this wait ten times a second for so long."""
    for _ in range(seconds * 10):
        time.seconds += 0.1
        pace.record(waited)


def platform(**changes: float) -> Platform:
    """The platform of the default settings, with these seconds changed."""
    times = {name: timedelta(seconds=value) for name, value in changes.items()}
    return replace(Platform(catalogue(), Parity.load(None)), **times)  # type: ignore[arg-type] # times only


def test_overload_lengthens_interval_within_seconds() -> None:
    """An overloaded gateway has its longest interval before the queue of heartbeats has filled."""
    time = Time()
    pace = Pace(10.0, 18.0, time)
    record(pace, time, LONG, 5)
    assert pace.interval_seconds == 18.0
    record(pace, time, LONG, 100)
    assert pace.interval_seconds == 18.0


def test_interval_returns_slowly() -> None:
    """After an overload the interval shrinks to the usual one, but not within the time in which workers learn of it."""
    time = Time()
    pace = Pace(10.0, 18.0, time)
    record(pace, time, LONG, 5)
    record(pace, time, BETWEEN, 600)
    assert pace.interval_seconds == 18.0
    record(pace, time, SHORT, 9)
    assert 17.0 < pace.interval_seconds < 18.0
    record(pace, time, SHORT, 600)
    assert pace.interval_seconds == 10.0


def test_single_long_wait_changes_little() -> None:
    """One slow transaction does not slow a fleet down."""
    time = Time()
    pace = Pace(10.0, 18.0, time)
    record(pace, time, SHORT, 60)
    pace.record(LONG)
    assert pace.interval_seconds == pytest.approx(12.0)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heartbeat_interval": 1.0, "lease": 6.0},
        {"heartbeat_interval": 30.0, "lease": 120.0},
        {"heartbeat_interval": 30.0, "alive_after": 40.0},
        {"heartbeat_interval": 50.0},
    ],
)
def test_longest_interval_keeps_leases_and_standing(changes: dict[str, float]) -> None:
    """The longest interval, jitter included, makes no worker stale and lets no lease expire, unless the usual one does."""
    time = Time()
    known = platform(**changes)
    pace = Pace.of(known, time)
    usual = known.heartbeat_interval.total_seconds()
    assert pace.interval_seconds == usual
    record(pace, time, LONG, 60)
    longest = pace.interval_seconds
    assert longest >= usual
    if longest > usual:
        assert timedelta(seconds=longest * JITTER) < known.stale_after
        assert timedelta(seconds=longest * 3) <= known.lease


def test_defaults_give_room() -> None:
    """By default an overloaded gateway gets at least a third fewer heartbeats."""
    time = Time()
    pace = Pace.of(platform(), time)
    record(pace, time, LONG, 60)
    assert pace.interval_seconds >= 15.0


def test_gauge_is_exposed() -> None:
    """The gauge has the interval that workers are told now."""
    time = Time()
    pace = Pace(10.0, 18.0, time)
    record(pace, time, LONG, 5)
    (family,) = pace.collect()
    assert [(each.name, each.value) for each in family.samples] == [
        ("airbridge_gateway_heartbeat_interval_seconds", 18.0)
    ]
