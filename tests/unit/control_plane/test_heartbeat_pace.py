"""The pace of heartbeats: when the interval grows, how far, and when it shrinks."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest
from tests.unit.executor.catalogues import catalogue

from airbridge.control_plane.gateway.heartbeat.pace import Pace
from airbridge.control_plane.parity import Parity
from airbridge.control_plane.read_model.platform import Platform

BEHIND, CALM = 1_000, 50
JITTER = 1.1


class Time:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def record(pace: Pace, time: Time, under_way: int, seconds: float) -> None:
    """Record that so many heartbeats are under way, ten times a second for so long."""
    for _ in range(round(seconds * 10)):
        time.seconds += 0.1
        pace.record(under_way)


def platform(**changes: float) -> Platform:
    """The platform of the default settings, with these seconds changed."""
    times = {name: timedelta(seconds=value) for name, value in changes.items()}
    return replace(Platform(catalogue(), Parity.load(None)), **times)  # type: ignore[arg-type] # times only


def test_backlog_lengthens_interval_within_seconds() -> None:
    """An overloaded gateway has its longest interval before its queue of heartbeats is full."""
    time = Time()
    pace = Pace(10.0, 15.4, time)
    record(pace, time, BEHIND, 5)
    assert pace.interval_seconds == 15.4
    record(pace, time, BEHIND, 100)
    assert pace.interval_seconds == 15.4


def test_interval_returns_within_a_minute() -> None:
    """After a backlog the interval shrinks to the usual one, step by step."""
    time = Time()
    pace = Pace(10.0, 15.4, time)
    record(pace, time, BEHIND, 5)
    record(pace, time, CALM, 11)
    assert 13.0 < pace.interval_seconds < 15.0
    record(pace, time, CALM, 50)
    assert pace.interval_seconds == 10.0


def test_crowd_that_comes_back_together_is_no_overload() -> None:
    """A thousand heartbeats at once, each half a minute, are answered within a second: nothing changes."""
    time = Time()
    pace = Pace(10.0, 15.4, time)
    for _ in range(20):
        record(pace, time, BEHIND, 0.9)
        record(pace, time, CALM, 30)
    assert pace.interval_seconds == 10.0


def test_bursts_do_not_keep_interval_long() -> None:
    """Three seconds of backlog in each minute lengthen the interval, and it has returned before the next."""
    time = Time()
    pace = Pace(10.0, 15.4, time)
    for _ in range(20):
        record(pace, time, BEHIND, 3)
        assert pace.interval_seconds > 12.0
        record(pace, time, CALM, 57)
        assert pace.interval_seconds == 10.0


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"heartbeat_interval": 1.0, "lease": 6.6},
        {"heartbeat_interval": 30.0, "lease": 120.0},
        {"heartbeat_interval": 30.0, "alive_after": 40.0},
        {"heartbeat_interval": 50.0},
        {"lease": 40.0},
    ],
)
def test_longest_interval_keeps_leases_and_standing(changes: dict[str, float]) -> None:
    """The longest interval lets no lease expire and makes no worker stale, with jitter and a slow answer, unless the usual one does."""
    time = Time()
    known = platform(**changes)
    pace = Pace.of(known, time)
    usual = known.heartbeat_interval.total_seconds()
    assert pace.interval_seconds == usual
    record(pace, time, BEHIND, 60)
    longest = pace.interval_seconds
    assert longest >= usual
    if longest > usual:
        slow = known.stale_after * 0.2
        assert timedelta(seconds=longest * JITTER) + slow < known.stale_after
        assert timedelta(seconds=longest * JITTER * 3) <= known.lease


def test_defaults_give_room() -> None:
    """By default an overloaded gateway gets at least a third fewer heartbeats."""
    time = Time()
    pace = Pace.of(platform(), time)
    record(pace, time, BEHIND, 60)
    assert pace.interval_seconds >= 15.0


def test_gauge_is_exposed() -> None:
    """The gauge has the interval that workers are told now."""
    time = Time()
    pace = Pace(10.0, 15.4, time)
    record(pace, time, BEHIND, 5)
    (family,) = pace.collect()
    assert [(each.name, each.value) for each in family.samples] == [
        ("airbridge_gateway_heartbeat_interval_seconds", 15.4)
    ]
