"""What the gateway exposes, in Prometheus' text format at ``/operator/v1/metrics`` (scope ``metrics:read``).

Counters are this process's own. Gauges of regions and workers are the database's, the same from every gateway: aggregate
them with ``max``, not ``sum``. They are read when somebody asks, at most once every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import exc as sql
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airbridge.control_plane import _airflow
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.observe import fleet, regions
from airbridge.control_plane.observe.platform import Platform
from airbridge.control_plane.observe.regions import PoolView
from airbridge.executor import metrics
from airbridge.executor.ledger import clock
from airbridge.executor.metrics import Metric as Spec

log = structlog.get_logger()

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
FRESH_SECONDS: Final = 5.0


class Metrics:
    """One gateway's metrics, in a registry of their own. Safe for use by many threads."""

    def __init__(self, platform: Platform | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a series that nobody asks for
        self._registry = CollectorRegistry()
        self._requests = self._counter(metrics.REQUESTS)
        self._seconds = self._histogram(metrics.REQUEST_SECONDS, metrics.BUCKETS)
        self._claims = self._counter(metrics.CLAIMS)
        self._refusals = self._counter(metrics.REFUSALS)
        self._delay = self._histogram(metrics.REPORT_DELAY, metrics.DELAY_BUCKETS)
        self._events = self._counter(metrics.EDGE_EVENTS)
        if platform is not None:
            self._registry.register(DatabaseGauges(platform))

    def _counter(self, spec: Spec) -> Counter:
        return Counter(spec.name.removesuffix("_total"), spec.meaning, spec.labels, registry=self._registry)

    def _histogram(self, spec: Spec, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(spec.name, spec.meaning, spec.labels, buckets=buckets, registry=self._registry)

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def granted(self, region: str, pool: str, count: int = 1) -> None:
        """Count work items granted."""
        self._claims.labels(region, pool).inc(count)
        _airflow.stats_incr("airbridge.claims", count, {"region": region, "pool": pool})

    def refused(self, region: str, reason: str, count: int = 1) -> None:
        """Count claims or reports refused."""
        self._refusals.labels(region, reason).inc(count)
        _airflow.stats_incr("airbridge.refusals", count, {"region": region, "reason": reason})

    def reported(self, region: str, delay_seconds: float) -> None:
        """Count one write of a task that was applied, so long after it was journalled."""
        self._delay.labels(region).observe(max(0.0, delay_seconds))

    def told(self, region: str, count: int) -> None:
        """Count events taken from a worker."""
        self._events.labels(region).inc(count)

    def families(self) -> list[Metric]:
        """Return everything, as of now. Reads the database."""
        return list(self._registry.collect())

    def render(self) -> bytes:
        """Return everything in Prometheus' text format, as of now. Reads the database."""
        return generate_latest(self._registry)


class DatabaseGauges(Collector):
    """Regions and workers, read from the database when somebody asks and the last answer is not fresh."""

    def __init__(self, platform: Platform, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._platform = platform
        self._monotonic = monotonic
        self._read_at = float("-inf")
        self._kept: list[Metric] = []

    def describe(self) -> list[Metric]:
        """Return nothing: asking for the names must not read the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges; the last ones while the database is away."""
        now = self._monotonic()
        if now - self._read_at > FRESH_SECONDS:
            try:
                with unit() as work:
                    self._kept = self._read(work.session)
                self._read_at = now
            except sql.SQLAlchemyError as error:
                log.warning("metrics.unread", exc_info=error)
        yield from self._kept

    def _read(self, session: Any) -> list[Metric]:
        now = clock.now(session)
        pools = [pool for region in regions.listing(session, self._platform) for pool in region.pools]
        return [*_of_pools(pools, now), *_of_workers(session, self._platform)]


def _family(spec: Spec) -> GaugeMetricFamily:
    return GaugeMetricFamily(spec.name, spec.meaning, labels=spec.labels)


def _of_pools(pools: list[PoolView], now: Any) -> list[Metric]:
    items, age = _family(metrics.ITEMS), _family(metrics.QUEUE_AGE)
    backlog, unserved = _family(metrics.BACKLOG_PER_SLOT), _family(metrics.UNSERVED)
    slots, used, workers = _family(metrics.SLOTS), _family(metrics.SLOTS_USED), _family(metrics.WORKERS)
    for pool in pools:
        place = [pool.region, pool.pool]
        for state, count in (("placed", pool.placed), ("sent", pool.sent), ("claimed", pool.running)):
            items.add_metric([*place, state], count)
        since = pool.oldest_waiting_since
        age.add_metric(place, (now - since).total_seconds() if since else 0.0)
        per_slot = pool.backlog_per_slot
        backlog.add_metric(place, per_slot if per_slot is not None else pool.waiting)
        unserved.add_metric(place, 0 if pool.slots else pool.waiting)
        slots.add_metric(place, pool.slots)
        used.add_metric(place, pool.slots_used)
        for standing, count in pool.workers.items():
            workers.add_metric([*place, str(standing)], count)
    return [items, age, backlog, unserved, slots, used, workers]


def _of_workers(session: Any, platform: Platform) -> list[Metric]:
    left, journals, skew = (
        _family(metrics.CERTIFICATE_LEFT),
        _family(metrics.JOURNALS),
        _family(metrics.CLOCK_SKEW),
    )
    for (region, pool), found in fleet.extremes(session, platform).items():
        if found.certificate_left is not None:
            left.add_metric([region, pool], found.certificate_left)
        journals.add_metric([region, pool], found.journal_records)
        skew.add_metric([region, pool], found.skew_seconds)
    versions = _family(metrics.VERSIONS)
    for (airbridge, verdict), count in fleet.versions(session, platform).items():
        versions.add_metric([airbridge, verdict], count)
    return [left, journals, skew, versions]


class Counted:
    """An ASGI application that counts what it answers. Paths it does not know are counted together, as ``other``."""

    def __init__(self, app: ASGIApp, metrics: Metrics, endpoints: dict[str, str]) -> None:
        self._app = app
        self._metrics = metrics
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = self._endpoints.get(scope["path"], "other")
        began = time.perf_counter()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(endpoint, message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counting)
