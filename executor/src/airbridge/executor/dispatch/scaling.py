"""Scaling signal: the backlog of each pool, published to CloudWatch in the pool's own region.

An autoscaling group's alarms see only metrics of their region, so each region has a loop and a client of its own, and one
that cannot be reached delays no other. A failed publication is not repeated: the next one is due soon and is newer.
Two schedulers publish the same values; the alarms take the maximum.

The metrics, each with the dimensions Region and Pool:

- `BacklogPerSlot`: unclaimed work items, divided by the slots alive, or by one instance's slots while there
  are none (the catalogue's `slots`).
- `WorkPerSlot`: the same with the work items that run: a pool with spare slots may shrink.
- `PoolWithoutHeartbeat`: 1 while there is open work and no live worker, else 0.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from airbridge.core.exceptions import ScalingError
from airbridge.core.regions import Pool, Region
from airbridge.executor.background_loop import BackgroundLoop, Pause, stop_all
from airbridge.executor.ledger import backlogs
from airbridge.executor.ledger.backlogs import Backlog, PoolRef

log = structlog.get_logger(__name__)

BACKLOG_PER_SLOT = "BacklogPerSlot"
WORK_PER_SLOT = "WorkPerSlot"
WITHOUT_HEARTBEAT = "PoolWithoutHeartbeat"
# Storage resolution. CloudWatch evaluates alarms over periods of ten seconds on high-resolution metrics only.
RESOLUTION_SECONDS = 1
# Shortest interval between two publications: new work is published at once, but no more often than this.
WAKE_SECONDS = 1.0
_TIMEOUT_SECONDS = 5.0

# Function from a region's name to the backlog of its pools.
BacklogReader = Callable[[str], Mapping[PoolRef, Backlog]]


def ledger_backlogs(
    new_session: Callable[[], AbstractContextManager[Any]], alive_seconds: float
) -> BacklogReader:
    """Return a reader of the ledger."""

    def read(region: str) -> Mapping[PoolRef, Backlog]:
        with new_session() as session:
            return backlogs.backlog(session, region=region, alive_seconds=alive_seconds)

    return read


@dataclass(frozen=True, slots=True)
class Signal:
    """Values that one pool's alarms evaluate."""

    region: str
    pool: str
    backlog_per_slot: float
    work_per_slot: float
    without_heartbeat: bool

    @classmethod
    def of(cls, region: str, pool: Pool, now: Backlog) -> Signal:
        """Return the signal of a pool with this backlog."""
        waiting, slots = now.placed + now.sent, now.slots or pool.slots
        work = waiting + now.claimed
        if now.triggers and not work:
            # Triggers take no slots, but one worker: a pool that has any does not scale to zero.
            work, waiting = 1, waiting if now.workers_alive else 1
        return cls(
            region=region,
            pool=pool.name,
            backlog_per_slot=waiting / slots,
            work_per_slot=work / slots,
            without_heartbeat=work > 0 and now.workers_alive == 0,
        )


class Metrics(Protocol):
    """Destination of signals. Raises `ScalingError`."""

    def publish(self, signals: Sequence[Signal]) -> None:
        """Publish the signals of all pools of a region."""


class CloudWatch:
    """CloudWatch in one region, or an emulator of it, over a boto3 client."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client = client
        self._namespace = namespace

    def publish(self, signals: Sequence[Signal]) -> None:
        """See `Metrics.publish`."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            self._client.put_metric_data(Namespace=self._namespace, MetricData=[*_data(signals)])
        except (BotoCoreError, ClientError) as error:
            raise ScalingError(f"{self._namespace}: {error}") from error


def _data(signals: Iterable[Signal]) -> Iterable[dict[str, Any]]:
    for signal in signals:
        values = {
            BACKLOG_PER_SLOT: signal.backlog_per_slot,
            WORK_PER_SLOT: signal.work_per_slot,
            WITHOUT_HEARTBEAT: float(signal.without_heartbeat),
        }
        for name, value in values.items():
            yield {
                "MetricName": name,
                "Dimensions": [
                    {"Name": "Region", "Value": signal.region},
                    {"Name": "Pool", "Value": signal.pool},
                ],
                "Value": value,
                "StorageResolution": RESOLUTION_SECONDS,
            }


def cloudwatch(region: Region, namespace: str) -> CloudWatch:
    """Return a region's CloudWatch; it fails fast. Credentials come from boto3's default chain."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=_TIMEOUT_SECONDS, read_timeout=_TIMEOUT_SECONDS, retries={"total_max_attempts": 1}
    )
    client = boto3.session.Session().client(
        "cloudwatch", region_name=region.aws, endpoint_url=region.endpoint_url, config=config
    )
    return CloudWatch(client, namespace)


class RegionSignal:
    """Loop of one region."""

    def __init__(
        self,
        region: Region,
        *,
        interval_seconds: float,
        backlog_of: BacklogReader,
        metrics: Metrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._region = region
        self._interval = interval_seconds
        self._backlog_of = backlog_of
        self._metrics = metrics
        self._monotonic = monotonic
        self._failing = False
        self.loop = BackgroundLoop(
            f"scaling-{region.name}", self._timed_turn, on_error_seconds=interval_seconds
        )

    def _timed_turn(self) -> Pause:
        began = self._monotonic()
        self.turn()
        left = self._interval - (self._monotonic() - began)
        return Pause(max(WAKE_SECONDS, left), least_seconds=WAKE_SECONDS)

    def turn(self) -> None:
        """Publish once; a failure is logged when it begins and when it is over."""
        try:
            self._publish()
        except ScalingError as error:
            self._failed(str(error))
        except Exception:
            log.exception("scaling.failed", region=self._region.name)
        else:
            self._succeeded()

    def signals(self) -> list[Signal]:
        """Return the signal of each pool of the region, idle ones included."""
        now = self._backlog_of(self._region.name)
        return [
            Signal.of(self._region.name, pool, now.get((self._region.name, pool.name), Backlog()))
            for pool in self._region.pools
        ]

    def _publish(self) -> None:
        self._metrics.publish(self.signals())

    def _failed(self, error: str) -> None:
        if not self._failing:
            log.warning("scaling.unpublished", region=self._region.name, error=error)
        self._failing = True

    def _succeeded(self) -> None:
        if self._failing:
            log.info("scaling.published_again", region=self._region.name)
        self._failing = False


class Scaling:
    """Scaling signals of all regions: one loop each."""

    def __init__(self, regions: Mapping[str, RegionSignal]) -> None:
        self._regions = regions

    def start(self) -> None:
        """Start a thread for each region."""
        for region in self._regions.values():
            region.loop.start()

    def wake(self, region: str) -> None:
        """Publish a region's signal now: it has new work."""
        if region in self._regions:
            self._regions[region].loop.wake()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """Stop the loops after their turn."""
        stop_all((region.loop for region in self._regions.values()), timeout_seconds)
