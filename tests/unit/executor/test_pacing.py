"""Pacing of repeated steps."""

from __future__ import annotations

import math

from airbridge.executor.scheduling.pacing import Pacing


class Clock:
    """A monotonic clock that stands still until a test moves it."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_step_is_due_once_an_interval() -> None:
    """A step is due at first and after its interval; each step has an interval of its own."""
    clock = Clock()
    pacing = Pacing(clock)
    assert [pacing.take("a", 1.0), pacing.take("a", 1.0), pacing.take("b", 1.0)] == [True, False, True]
    clock.now += 1.0
    assert [pacing.take("a", 1.0), pacing.take("a", 1.0)] == [True, False]


def test_step_is_made_due_once() -> None:
    """A step that is made due runs once before its interval is over, which begins anew."""
    clock = Clock()
    pacing = Pacing(clock)
    pacing.take("a", 1.0)
    clock.now += 0.5
    pacing.make_due(["a"])
    assert [pacing.take("a", 1.0), pacing.take("a", 1.0)] == [True, False]


def test_remaining_is_of_skipped_steps() -> None:
    """The rest of an interval is that of the last of the steps that were skipped, so that one iteration runs all of them."""
    clock = Clock()
    pacing = Pacing(clock)
    assert [pacing.take("a", 1.0), pacing.take("b", 2.0), pacing.take("a", 1.0)] == [True, True, False]
    assert pacing.remaining(["a", "b"]) == 1.0
    assert not pacing.take("b", 2.0)
    assert pacing.remaining(["a", "b"]) == 2.0
    clock.now += 5.0
    assert pacing.remaining(["a", "b"]) == 0.0


def test_steps_that_ran_shorten_no_sleep() -> None:
    """A loop whose iterations last as long as the interval runs its steps in each, and sleeps all the same."""
    clock = Clock()
    pacing = Pacing(clock)
    for _ in range(2):
        assert pacing.take("a", 0.2)
        clock.now += 0.25
        assert pacing.remaining(["a"]) == math.inf


def test_remaining_ignores_unused_steps() -> None:
    """A step that never runs, as creating runs with `use_job_schedule = False`, bounds no sleep, nor does one that was made due."""
    pacing = Pacing(Clock())
    assert pacing.remaining(["a", "b"]) == math.inf
    pacing.take("a", 1.0)
    pacing.make_due(["a"])
    assert pacing.take("a", 1.0)
    assert pacing.remaining(["a", "b"]) == math.inf
