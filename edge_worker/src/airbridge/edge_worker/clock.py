"""Time, handed in: what the worker measures durations and stamps records with."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from typing import Protocol


class Clock(Protocol):
    """Two kinds of time: `elapsed` only goes forward and is for durations; `now` is for people."""

    def elapsed(self) -> float:
        """Return seconds since some fixed point; never set back, and counts while the machine is suspended."""

    def now(self) -> datetime:
        """Return the host's idea of the time, aware, UTC. It may be wrong by minutes."""


class SystemClock:
    """The machine's clocks."""

    def elapsed(self) -> float:
        """See `Clock.elapsed`. CLOCK_MONOTONIC stands still while a machine sleeps; a lease does not."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def now(self) -> datetime:
        """See `Clock.now`."""
        return datetime.now(UTC)
