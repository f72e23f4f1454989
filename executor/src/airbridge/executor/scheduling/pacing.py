"""Pacing of repeated steps: each at most once an interval, unless something makes it due before."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable


class Pacing:
    """Times at which named steps are due. A step that has not run yet is due."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._due_at: dict[str, float] = {}
        self._early: set[str] = set()

    def take(self, step: str, interval_seconds: float) -> bool:
        """Return whether a step is due; if so, it is due again after the interval."""
        now = self._monotonic()
        if step not in self._early and now < self._due_at.get(step, -math.inf):
            return False
        self._early.discard(step)
        self._due_at[step] = now + interval_seconds
        return True

    def make_due(self, steps: Iterable[str]) -> None:
        """Make steps due before their interval is over."""
        self._early.update(steps)

    def remaining(self, steps: Iterable[str]) -> float:
        """Return the seconds until the intervals of all of the steps are over: 0 if they are, infinity if none of them has run.

        Steps run one after the other. An iteration at the end of the first one's interval would come too early for the next.
        A step that was made due before does not count: one that makes itself due, and fails, would keep its loop from ever sleeping.
        """
        due_at = max((self._due_at[step] for step in steps if step in self._due_at), default=math.inf)
        return max(0.0, due_at - self._monotonic())
