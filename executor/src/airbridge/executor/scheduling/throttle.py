"""Throttle of the scheduler's loop: a pause between two turns while the workers have more work than they can take.

A turn of Airflow's loop reads every task instance of the runs that it examines, so a turn is expensive under a backlog, and useless:
what it queues only waits longer in the ledger. Without a pause the scheduler's share of the machine grows with the backlog. The
throttle pauses in proportion to the CPU time of the turns, which holds that share constant. A notification that a pool has
run out of work ends the pause.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from typing import Protocol

from airbridge.executor.ledger.backlogs import PoolRef

# Sleep-to-CPU ratio; 9 caps the scheduler at 10 % of a core.
SLEEP_TO_CPU_RATIO = 9.0
# The same after a notification: a task that has ended elsewhere may have made others ready.
LEAST_SLEEP_TO_CPU_RATIO = 0.25
# Longest pause: the additional delay of a new run whose tasks would have to wait for workers anyway.
LONGEST_SECONDS = 2.0
# Longest pause after a turn that placed work in a pool with free capacity: its workers may be waiting for the
# result.
SHORT_SECONDS = 0.2


class SleepsUntilNotified(Protocol):
    """Sleep that a notification ends: `NotificationListener`."""

    def rest(self, seconds: float, least: float) -> None:
        """Sleep for `seconds`, and after a notification for `least` at least. Return at once if none can arrive."""


class Throttle:
    """Throttle of one scheduler; only its loop's thread uses it.

    `full` returns the pools whose queue is at its limit. `batch` is how many task instances one query of the scheduler queues at
    most (0: no limit): after a whole batch more may be ready at once.
    """

    def __init__(
        self,
        listener: SleepsUntilNotified,
        full: Callable[[], Collection[PoolRef]],
        batch: int,
        cpu_seconds: Callable[[], float] = time.thread_time,
    ) -> None:
        self._listener = listener
        self._full = full
        self._batch = batch
        self._cpu_seconds = cpu_seconds
        self._cpu_before: float | None = None
        self._longest = LONGEST_SECONDS

    def placed(self, pools: Collection[PoolRef]) -> None:
        """Record the pools in which a turn has placed work, one entry for each item, before the outbox sends it."""
        full = self._full()
        whole_batch = 0 < self._batch <= len(pools)
        has_capacity = any(pool not in full for pool in pools)
        self._longest = 0.0 if whole_batch else SHORT_SECONDS if has_capacity else LONGEST_SECONDS

    def rest(self) -> None:
        """Pause after a turn, if the queue of some pool is full."""
        used = self._cpu_seconds()
        spent = used - (used if self._cpu_before is None else self._cpu_before)
        if self._longest and self._full():
            longest = min(spent * SLEEP_TO_CPU_RATIO, self._longest)
            self._listener.rest(longest, min(spent * LEAST_SLEEP_TO_CPU_RATIO, longest))
        self._longest = LONGEST_SECONDS
        self._cpu_before = self._cpu_seconds()
