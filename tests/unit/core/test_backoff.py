"""Exponential backoff with full jitter."""

from __future__ import annotations

import random

from airbridge.core.backoff import Backoff


def delays(failures: int) -> list[float]:
    """Return the delay after so many failures, for many generators."""
    found = []
    for seed in range(500):
        backoff = Backoff(1.0, 8.0, random.Random(seed).random)
        for _ in range(failures):
            backoff.failed()
        found.append(backoff.failed())
    return found


def test_delays_have_full_jitter() -> None:
    """Delays are spread from zero to a bound, which doubles with each failure up to the limit."""
    for failures in range(6):
        found, bound = delays(failures), min(8.0, 2.0**failures)
        assert 0 <= min(found) < bound * 0.1
        assert bound * 0.9 < max(found) <= bound


def test_minimum_comes_before_jitter() -> None:
    """A minimum (Retry-After) is a floor with the jitter on top, so that clients with the same one are spread."""
    found = {Backoff(1.0, 8.0, random.Random(seed).random).failed(30.0) for seed in range(20)}
    assert min(found) >= 30.0
    assert len(found) == 20


def test_success_resets_the_bound() -> None:
    """After a success the next delay is within the base again."""
    backoff = Backoff(1.0, 1000.0, random.Random(1).random)
    for _ in range(50):
        backoff.failed()
    assert backoff.failures == 50
    backoff.succeeded()
    assert backoff.failed() <= 1.0


def test_many_failures_do_not_overflow() -> None:
    """The exponent is bounded: a thousand failures still give a delay within the limit."""
    backoff = Backoff(1.0, 60.0, lambda: 1.0)
    assert [backoff.failed() for _ in range(1100)][-1] == 60.0
