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
        self._skipped: set[str] = set()

    def take(self, step: str, interval_seconds: float) -> bool:
        """Return whether a step is due; if so, it is due again after the interval."""
        now = self._monotonic()
        if step not in self._early and now < self._due_at.get(step, -math.inf):
            self._skipped.add(step)
            return False
        self._skipped.discard(step)
        self._early.discard(step)
        self._due_at[step] = now + interval_seconds
        return True

    def make_due(self, steps: Iterable[str]) -> None:
        """Make steps due before their interval is over."""
        self._early.update(steps)

    def remaining(self, steps: Iterable[str]) -> float:
        """Return the seconds until the intervals of those steps are over that were skipped at their last turn; infinity if none was.

        A loop that sleeps no longer runs them when they are due. Of several the last counts: steps run one after the other, and an iteration at
        the end of the first one's interval would come too early for the next.
        """
        due_at = max((self._due_at[step] for step in steps if step in self._skipped), default=math.inf)
        return max(0.0, due_at - self._monotonic())
