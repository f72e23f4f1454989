"""Pace of heartbeats: a gateway that falls behind tells its workers to send fewer.

A heartbeat that is shed costs as much as one that is answered, and comes again soon: beyond its capacity a gateway would
shed more with each round. So the interval it hands out grows while heartbeats wait long for their answers, up to what
leases and lists of workers allow, and shrinks again, slowly, once they do not.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Final, Self

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from airbridge.control_plane.read_model.platform import Platform
from airbridge.core import metrics

log = structlog.get_logger()

# Seconds that a heartbeat waits for its answer, from which the interval grows, and below which it shrinks.
LONG_WAIT: Final = 0.4
SHORT_WAIT: Final = 0.15
# Factors of one change. Growth comes at once: the queue of heartbeats fills within seconds. Shrinking is slow, because a worker
# learns of it with its next heartbeat.
GROWTH: Final = 1.2
SHRINKAGE: Final = 0.95
# Seconds from one change to the next.
GROWTH_SECONDS: Final = 1.0
SHRINKAGE_SECONDS: Final = 10.0
# Share of the time after which a worker counts as stale that its longest interval takes: an interval has a jitter of a tenth.
SHARE_OF_STALE: Final = 0.8
# Heartbeats in the length of a lease, at least.
IN_A_LEASE: Final = 3


class Pace(Collector):
    """Interval of the heartbeats of one gateway's workers, and its gauge. For use in the event loop."""

    def __init__(
        self, least_seconds: float, most_seconds: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._least = least_seconds
        self._most = max(least_seconds, most_seconds)
        self._interval = least_seconds
        self._monotonic = monotonic
        self._changed_at = monotonic()

    @classmethod
    def of(cls, platform: Platform, monotonic: Callable[[], float] = time.monotonic) -> Self:
        """Return the pace that a platform's settings allow, at its fastest."""
        most: timedelta = min(platform.stale_after * SHARE_OF_STALE, platform.lease / IN_A_LEASE)
        return cls(platform.heartbeat_interval.total_seconds(), most.total_seconds(), monotonic)

    @property
    def interval_seconds(self) -> float:
        """Interval of a worker's heartbeats, from now."""
        return self._interval

    def record(self, waited_seconds: float) -> None:
        """Take into account how long the longest-waiting heartbeat of a batch waited for its answer."""
        if waited_seconds > LONG_WAIT:
            self._change(GROWTH, GROWTH_SECONDS)
        elif waited_seconds < SHORT_WAIT:
            self._change(SHRINKAGE, SHRINKAGE_SECONDS)

    def _change(self, factor: float, after_seconds: float) -> None:
        now = self._monotonic()
        interval = min(self._most, max(self._least, self._interval * factor))
        if interval == self._interval or now - self._changed_at < after_seconds:
            return
        if self._least in {self._interval, interval}:
            log.warning("heartbeats.pace", interval_seconds=round(interval, 1), usual=self._least)
        self._interval, self._changed_at = interval, now

    def describe(self) -> list[Metric]:
        """Return nothing: its name is known without a scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the gauge, in seconds."""
        spec = metrics.HEARTBEAT_INTERVAL
        family = GaugeMetricFamily(spec.name, spec.meaning, labels=spec.labels)
        family.add_metric([], self._interval)
        yield family
