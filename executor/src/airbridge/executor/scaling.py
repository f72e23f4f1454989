"""The scaling signal: how much waits for each pool, published to CloudWatch in the pool's own region.

An autoscaling group's alarms see only metrics of their region, so each region has a loop and a client of its own, and one
that is out of reach delays no other. A failed publication is not repeated: the next one is due soon and says more.
Two schedulers publish the same values; the alarms take the maximum.

The metrics, each with the dimensions Region and Pool:

- `BacklogPerSlot`: work items that nobody has claimed, divided by the slots alive, or by one instance's slots while there
  are none (the catalogue's `slots`).
- `WorkPerSlot`: the same with the work items that run: a pool with spare slots may shrink.
- `PoolWithoutHeartbeat`: 1 while there is open work and no live worker, else 0.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import structlog

from airbridge.executor.exceptions import ScalingError
from airbridge.executor.ledger import items
from airbridge.executor.ledger.items import Backlog, Place
from airbridge.executor.regions import Pool, Region

log = structlog.get_logger(__name__)

BACKLOG_PER_SLOT = "BacklogPerSlot"
WORK_PER_SLOT = "WorkPerSlot"
WITHOUT_HEARTBEAT = "PoolWithoutHeartbeat"
RESOLUTION_SECONDS = 1
"""What makes a metric a high-resolution one: only of those can an alarm look at periods of ten seconds."""
WAKE_SECONDS = 1.0
"""New work is told at once, but not more often than this."""
_TIMEOUT_SECONDS = 5.0

BacklogReader = Callable[[str], Mapping[Place, Backlog]]
"""Gives the backlog of a region's pools."""


def ledger_backlogs(
    new_session: Callable[[], AbstractContextManager[Any]], alive_seconds: float
) -> BacklogReader:
    """Return a reader of the ledger."""

    def read(region: str) -> Mapping[Place, Backlog]:
        with new_session() as session:
            return items.backlog(session, region=region, alive_seconds=alive_seconds)

    return read


@dataclass(frozen=True, slots=True)
class Signal:
    """What one pool's alarms are told."""

    region: str
    pool: str
    backlog_per_slot: float
    work_per_slot: float
    without_heartbeat: bool

    @classmethod
    def of(cls, region: str, pool: Pool, now: Backlog) -> Signal:
        """Return the signal of a pool with this backlog."""
        waiting, slots = now.placed + now.sent, now.slots or pool.slots
        return cls(
            region=region,
            pool=pool.name,
            backlog_per_slot=waiting / slots,
            work_per_slot=(waiting + now.claimed) / slots,
            without_heartbeat=waiting + now.claimed > 0 and now.workers_alive == 0,
        )


class Metrics(Protocol):
    """Where signals go. Raises `ScalingError`."""

    def publish(self, signals: Sequence[Signal]) -> None:
        """Publish what all pools of a region are told."""


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
        "cloudwatch", region_name=region.name, endpoint_url=region.endpoint_url, config=config
    )
    return CloudWatch(client, namespace)


class RegionSignal:
    """The loop of one region."""

    def __init__(
        self,
        region: Region,
        *,
        interval_seconds: float,
        backlog_of: BacklogReader,
        metrics_of: Callable[[Region], Metrics],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._region = region
        self._interval = interval_seconds
        self._backlog_of = backlog_of
        self._metrics_of = metrics_of
        self._monotonic = monotonic
        self._metrics: Metrics | None = None
        self._failing = False
        self._woken = threading.Event()
        self._stopping = threading.Event()

    def run(self) -> None:
        """Publish until stopped. Nothing that happens here ends the loop."""
        log.info("scaling.started", region=self._region.name, interval_seconds=self._interval)
        while not self._stopping.is_set():
            begun = self._monotonic()
            self._woken.clear()
            self.turn()
            self._stopping.wait(WAKE_SECONDS)
            self._woken.wait(max(0.0, begun + self._interval - self._monotonic()))
        log.info("scaling.stopped", region=self._region.name)

    def wake(self) -> None:
        """Publish now: there is new work."""
        self._woken.set()

    def stop(self) -> None:
        """End the loop after its turn."""
        self._stopping.set()
        self._woken.set()

    def turn(self) -> None:
        """Publish once; a failure is told when it begins and when it is over."""
        try:
            self._publish()
        except ScalingError as error:
            self._failed(str(error))
        except Exception:
            log.exception("scaling.failed", region=self._region.name)
        else:
            self._succeeded()

    def signals(self) -> list[Signal]:
        """Return what each pool of the region is to be told now: also those with nothing to do."""
        now = self._backlog_of(self._region.name)
        return [
            Signal.of(self._region.name, pool, now.get((self._region.name, pool.name), Backlog()))
            for pool in self._region.pools
        ]

    def _publish(self) -> None:
        if self._metrics is None:
            self._metrics = self._metrics_of(self._region)
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
    """Every region's loop, each in a thread."""

    def __init__(self, loops: Mapping[str, RegionSignal]) -> None:
        self._loops = loops
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Start the loops."""
        for name, loop in self._loops.items():
            thread = threading.Thread(target=loop.run, name=f"airbridge-scaling-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def wake(self, region: str) -> None:
        """Publish a region's signal now: it has new work."""
        if region in self._loops:
            self._loops[region].wake()

    def stop(self, timeout_seconds: float = 5.0) -> None:
        """End the loops after their turn."""
        for loop in self._loops.values():
            loop.stop()
        deadline = time.monotonic() + timeout_seconds
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._threads.clear()
