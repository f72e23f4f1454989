"""The scheduler's pace: how long it rests between two turns of its loop while the workers have more than they can take.

A turn of Airflow's loop reads every task instance of the runs that it looks at, so with a backlog a turn costs much, and
brings little: what it queues then only waits longer in the ledger. Without a rest the scheduler takes the more of the
machine the more is waiting. So it rests in proportion to what its turns cost, and takes the same share of a core
whatever the backlog. A pool that runs dry rings the bell, which cuts the rest short.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Protocol

from airbridge.executor.ledger.items import Place

RESTS_PER_TURN = 9.0
"""How many times as long as a turn has worked (CPU time) the scheduler rests: nine makes it a tenth of a core."""
LEAST_RESTS_PER_TURN = 0.25
"""The same, when the bell is rung: a task that has ended elsewhere may have made others ready."""
LONGEST_SECONDS = 2.0
"""What a run that has just been triggered may have to wait at most, where it would have to wait for workers anyway."""

SHORT_SECONDS = 0.2
"""The same, after a turn that has placed work in a pool with room: workers may be waiting for the end of it."""


class Rests(Protocol):
    """Something to rest with: the bell."""

    def rest(self, seconds: float, least: float) -> None:
        """Rest for `seconds`; for no less than `least` if there is news. Not at all if there could be no news."""


class Pace:
    """The pace of one scheduler; only its loop's thread uses it.

    `full` gives the places in which work waits for room on a queue. `batch` is how many task instances one query of
    the scheduler queues at most (0: no limit): after as many there may be more that could be queued at once.
    """

    def __init__(
        self,
        bell: Rests,
        full: Callable[[], Collection[Place]],
        batch: int,
        cpu_seconds: Callable[[], float] = time.thread_time,
    ) -> None:
        self._bell = bell
        self._full = full
        self._batch = batch
        self._cpu_seconds = cpu_seconds
        self._worked_before: float | None = None
        self._longest = LONGEST_SECONDS

    def placed(self, places: Collection[Place]) -> None:
        """Note where a turn has placed work, one entry for each item, before the outbox has seen it."""
        full = self._full()
        whole_batch = 0 < self._batch <= len(places)
        has_room = any(place not in full for place in places)
        self._longest = 0.0 if whole_batch else SHORT_SECONDS if has_room else LONGEST_SECONDS

    def rest(self) -> None:
        """Rest after a turn, if some workers have more than they can take."""
        worked = self._cpu_seconds()
        spent = worked - (worked if self._worked_before is None else self._worked_before)
        if self._longest and self._full():
            longest = min(spent * RESTS_PER_TURN, self._longest)
            self._bell.rest(longest, min(spent * LEAST_RESTS_PER_TURN, longest))
        self._longest = LONGEST_SECONDS
        self._worked_before = self._cpu_seconds()
