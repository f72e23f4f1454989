"""Exponential backoff with full jitter.

After M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015: each delay is uniform between
nothing and the exponential bound, so that those who failed together do not come back together.
"""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays of one thing that is tried again and again. `random` gives numbers from 0 up to 1."""

    def __init__(self, base_seconds: float, limit_seconds: float, random: Callable[[], float]) -> None:
        self._base = base_seconds
        self._limit = limit_seconds
        self._random = random
        self._failures = 0

    @property
    def failures(self) -> int:
        """How many failures there have been since the last success."""
        return self._failures

    def failed(self) -> float:
        """Count a failure and return how many seconds to wait."""
        bound: float = min(self._limit, self._base * 2 ** min(self._failures, 32))
        self._failures += 1
        return bound * self._random()

    def succeeded(self) -> None:
        """Forget the failures."""
        self._failures = 0
