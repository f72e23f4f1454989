"""Exponential backoff with full jitter.

After M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015: each delay is uniform between
zero and the exponential bound, so that clients that failed together do not come back together.
"""

from __future__ import annotations

from collections.abc import Callable


class Backoff:
    """Delays between the attempts of one operation. `random` returns numbers from 0 up to 1."""

    def __init__(self, base_seconds: float, limit_seconds: float, random: Callable[[], float]) -> None:
        self._base = base_seconds
        self._limit = limit_seconds
        self._random = random
        self._failures = 0

    @property
    def failures(self) -> int:
        """Number of failures since the last success."""
        return self._failures

    def failed(self, minimum_seconds: float = 0.0) -> float:
        """Count a failure and return the seconds to wait: `minimum_seconds` (a Retry-After) plus the jitter."""
        # 2 ** 32 is beyond any limit; the exponent is bounded so that it cannot overflow a float.
        bound: float = min(self._limit, self._base * 2 ** min(self._failures, 32))
        self._failures += 1
        # The jitter comes on top of the minimum: all clients that were shed together got the same Retry-After.
        return minimum_seconds + bound * self._random()

    def succeeded(self) -> None:
        """Reset the failures: the next delay is within `base_seconds` again."""
        self._failures = 0
