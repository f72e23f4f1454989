"""Pace of heartbeats: a gateway that falls behind has its workers send fewer.

A heartbeat that is shed costs nearly as much as one that is answered, and comes again soon: beyond its capacity a gateway would
shed more with each round. So the interval it hands out grows while many heartbeats wait for their answers, up to what
leases and lists of workers allow, and shrinks again once they do not.

The number of waiting heartbeats decides, not how long one waits: a slow statement or a locked row delays a heartbeat of a small
fleet as well, and fewer heartbeats would help neither.
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

# Heartbeats under way that are a backlog: two full batches.
BACKLOG: Final = 400
# Seconds for which there must have been a backlog without a pause: workers that come back together are none.
SUSTAINED_SECONDS: Final = 1.0
GROWTH: Final = 1.2
# Each so many seconds without a sustained backlog the interval shrinks, within a minute to the usual one.
CALM_SECONDS: Final = 10.0
SHRINKAGE: Final = 0.9
# Share of the time after which a worker counts as stale that its longest interval takes. By default that leaves 5 s, beside the
# interval's jitter of a tenth, for the heartbeat's wait, or for a second one after the first was shed.
SHARE_OF_STALE: Final = 0.7
# Heartbeats in the length of a lease, each up to a tenth late, unless the usual interval allows fewer.
IN_A_LEASE: Final = 3 * 1.1


class Pace(Collector):
    """Interval of the heartbeats of one gateway's workers, and its gauge. For use in the event loop."""

    def __init__(
        self, least_seconds: float, most_seconds: float, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._least = least_seconds
        self._most = max(least_seconds, most_seconds)
        self._interval = least_seconds
        self._monotonic = monotonic
        # Since when there has been a backlog at each look; None: at the last there was none.
        self._behind_since: float | None = None
        # Of the last change, or of the last sustained backlog.
        self._calm_since = monotonic()

    @classmethod
    def of(cls, platform: Platform, monotonic: Callable[[], float] = time.monotonic) -> Self:
        """Return the pace that a platform's settings allow, at its fastest."""
        most: timedelta = min(platform.stale_after * SHARE_OF_STALE, platform.lease / IN_A_LEASE)
        return cls(platform.heartbeat_interval.total_seconds(), most.total_seconds(), monotonic)

    @property
    def interval_seconds(self) -> float:
        """Interval of a worker's heartbeats, from now."""
        return self._interval

    def record(self, under_way: int) -> None:
        """Take into account how many heartbeats have been received and not answered. Called several times a second under load."""
        now = self._monotonic()
        if under_way < BACKLOG:
            self._behind_since = None
        elif self._behind_since is None:
            self._behind_since = now
        elif now - self._behind_since >= SUSTAINED_SECONDS:
            self._behind_since = self._calm_since = now
            self._change(GROWTH)
        if now - self._calm_since >= CALM_SECONDS:
            self._calm_since = now
            self._change(SHRINKAGE)

    def _change(self, factor: float) -> None:
        interval = min(self._most, max(self._least, self._interval * factor))
        if interval != self._interval and self._least in {self._interval, interval}:
            log.warning("heartbeats.pace", interval_seconds=round(interval, 1), usual=self._least)
        self._interval = interval

    def describe(self) -> list[Metric]:
        """Return nothing: its name is known without a scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the gauge, in seconds."""
        spec = metrics.HEARTBEAT_INTERVAL
        family = GaugeMetricFamily(spec.name, spec.meaning, labels=spec.labels)
        family.add_metric([], self._interval)
        yield family
