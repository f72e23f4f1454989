"""Metrics of the gateway, in Prometheus' text format at ``/operator/v1/metrics`` (scope ``metrics:read``).

Counters are this process's own. Gauges of regions and workers come from the database and are the same from every gateway:
aggregate them with ``max``, not ``sum``. They are read on a scrape, at most once every few seconds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import product
from typing import Any, Final

import structlog
from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import exc as sql
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airbridge.control_plane import _airflow
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.identity import generations
from airbridge.control_plane.observability.alarms import ALERTS
from airbridge.control_plane.read_model import fleet, overview, regions
from airbridge.control_plane.read_model.platform import Platform
from airbridge.control_plane.read_model.regions import PoolView
from airbridge.core import metrics
from airbridge.core.metrics import Metric as Spec
from airbridge.executor.ledger import audit, clock
from airbridge.executor.ledger.sharing import fair_shares

log = structlog.get_logger()

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"
FRESH_SECONDS: Final = 5.0
ALARMING: Final = (generations.FORKED, generations.TWO_ADDRESSES)
ALARM_WINDOW: Final = timedelta(minutes=15)


class Metrics:
    """Metrics of one gateway, in a registry of their own. Thread-safe."""

    def __init__(
        self, platform: Platform | None = None, endpoints: Iterable[str] = (), *collectors: Collector
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call] # a second series per counter that no panel or alarm uses
        self._registry = CollectorRegistry()
        self._families: dict[str, Counter | Histogram] = {}
        self._requests = self._counter(metrics.REQUESTS)
        self._seconds = self._histogram(metrics.REQUEST_SECONDS, metrics.BUCKETS)
        self._claims = self._counter(metrics.CLAIMS)
        self._refusals = self._counter(metrics.REFUSALS)
        self._delay = self._histogram(metrics.REPORT_DELAY, metrics.DELAY_BUCKETS)
        self._events = self._counter(metrics.EDGE_EVENTS)
        self._moved = self._counter(metrics.MOVED)
        self._joins = self._counter(metrics.JOINS_REFUSED)
        self._audit_faults = self._counter(metrics.AUDIT_FAULTS)
        self._break_glass = self._counter(metrics.BREAK_GLASS)
        regions = [region.name for region in platform.catalogue.regions] if platform is not None else []
        self._begin(
            {
                "region": (*regions, metrics.OTHER),
                "endpoint": (*endpoints, metrics.OTHER),
                "operation": metrics.OPERATIONS,
            }
        )
        if platform is not None:
            self._registry.register(DatabaseGauges(platform))
        for collector in collectors:
            self._registry.register(collector)

    def _begin(self, values: dict[str, Sequence[str]]) -> None:
        """Create every series that an alarm is about: Prometheus sees no increase in one that begins with its first value."""
        for alert in ALERTS:
            family = self._families.get(alert.metric.name)
            if family is not None:
                of_labels = [alert.where.get(label) or values[label] for label in alert.metric.labels]
                for chosen in product(*of_labels):
                    family.labels(*chosen)

    def _counter(self, spec: Spec) -> Counter:
        family = Counter(spec.name.removesuffix("_total"), spec.meaning, spec.labels, registry=self._registry)
        self._families[spec.name] = family
        return family

    def _histogram(self, spec: Spec, buckets: tuple[float, ...]) -> Histogram:
        family = Histogram(spec.name, spec.meaning, spec.labels, buckets=buckets, registry=self._registry)
        self._families[spec.name] = family
        return family

    def answered(self, endpoint: str, status: int, seconds: float) -> None:
        """Count one request."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def granted(self, region: str, pool: str, count: int = 1) -> None:
        """Count granted work items."""
        self._claims.labels(region, pool).inc(count)
        _airflow.stats_incr("airbridge.claims", count, {"region": region, "pool": pool})

    def refused(self, region: str, operation: str, reason: str, count: int = 1) -> None:
        """Count refused claims or reports; `operation` is one of `metrics.OPERATIONS`."""
        self._refusals.labels(region, operation, reason).inc(count)
        _airflow.stats_incr(
            "airbridge.refusals", count, {"region": region, "operation": operation, "reason": reason}
        )

    def reported(self, region: str, delay_seconds: float) -> None:
        """Count one applied write of a task, with the seconds since it was journalled."""
        self._delay.labels(region).observe(max(0.0, delay_seconds))

    def events_received(self, region: str, count: int) -> None:
        """Count events received from a worker."""
        self._events.labels(region).inc(count)

    def moved(self, region: str, pool: str, kind: str, count: int) -> None:
        """Count bytes that a pool's tasks moved: of XComs, logs or code."""
        self._moved.labels(region, pool, kind).inc(count)

    def join_refused(self, region: str, reason: str) -> None:
        """Count an enrolment that was refused."""
        self._joins.labels(region, reason).inc()

    def audit_fault(self, fault: str) -> None:
        """Count a fault of the audit trail."""
        self._audit_faults.labels(fault).inc()

    def break_glass(self, action: str) -> None:
        """Count an action that one person did where two are required."""
        self._break_glass.labels(action).inc()

    def families(self) -> list[Metric]:
        """Return all metric families with current values. Reads the database."""
        return list(self._registry.collect())

    def render(self) -> bytes:
        """Return all metrics in Prometheus' text format. Reads the database."""
        return generate_latest(self._registry)


class DatabaseGauges(Collector):
    """Gauges of regions and workers, read from the database at most once every `FRESH_SECONDS`."""

    def __init__(self, platform: Platform, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._platform = platform
        self._monotonic = monotonic
        self._read_at = float("-inf")
        self._families: list[Metric] = []

    def describe(self) -> list[Metric]:
        """Return nothing: registering the collector must not read the database."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges; the last known values while the database is down."""
        now = self._monotonic()
        if now - self._read_at > FRESH_SECONDS:
            try:
                with unit() as work:
                    self._families = self._read(work.session)
                self._read_at = now
            except sql.SQLAlchemyError as error:
                log.warning("metrics.read_failed", exc_info=error)
        yield from self._families

    def _read(self, session: Any) -> list[Metric]:
        now = clock.now(session)
        pools = [pool for region in regions.listing(session, self._platform) for pool in region.pools]
        places = sorted({pool.region for pool in pools})
        return [
            *_of_pools(pools, now),
            *_of_teams(session),
            *_of_limits(session, self._platform),
            *_of_workers(session, self._platform),
            _of_identities(session, places, now),
        ]


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
        since = pool.oldest_ready_since
        age.add_metric(place, (now - since).total_seconds() if since else 0.0)
        per_slot = pool.backlog_per_slot
        backlog.add_metric(place, per_slot if per_slot is not None else pool.waiting)
        unserved.add_metric(place, 0 if pool.slots else pool.waiting)
        slots.add_metric(place, pool.slots)
        used.add_metric(place, pool.slots_used)
        for standing, count in pool.workers.items():
            workers.add_metric([*place, str(standing)], count)
    return [items, age, backlog, unserved, slots, used, workers]


def _of_teams(session: Any) -> list[Metric]:
    slots, waiting = _family(metrics.TEAM_SLOTS), _family(metrics.TEAM_WAITING)
    for (region, pool), teams in fair_shares.loads(session).items():
        for team, load in teams.items():
            slots.add_metric([team, region, pool, "sent"], load.sent)
            slots.add_metric([team, region, pool, "claimed"], load.claimed)
            waiting.add_metric([team, region, pool], load.waiting)
    return [slots, waiting]


def _of_limits(session: Any, platform: Platform) -> list[Metric]:
    running, most = _family(metrics.LIMIT_RUNNING), _family(metrics.LIMIT_MAX)
    starts, waiting = _family(metrics.LIMIT_STARTS), _family(metrics.LIMIT_WAITING)
    for limit in overview.limits(session, platform):
        running.add_metric([limit.name], limit.running)
        waiting.add_metric([limit.name], limit.waiting)
        if limit.max_running is not None:
            most.add_metric([limit.name], limit.max_running)
        if limit.starts_per_minute is not None:
            starts.add_metric([limit.name], limit.starts)
    return [running, most, starts, waiting]


def _of_workers(session: Any, platform: Platform) -> list[Metric]:
    left, left_ratio = _family(metrics.CERTIFICATE_LEFT), _family(metrics.CERTIFICATE_LEFT_RATIO)
    journals, skew = _family(metrics.JOURNALS), _family(metrics.CLOCK_SKEW)
    for (region, pool), found in fleet.extremes(session, platform).items():
        if found.certificate_left is not None:
            left.add_metric([region, pool], found.certificate_left)
        if found.certificate_left_ratio is not None:
            left_ratio.add_metric([region, pool], found.certificate_left_ratio)
        journals.add_metric([region, pool], found.journal_records)
        skew.add_metric([region, pool], found.skew_seconds)
    versions = _family(metrics.VERSIONS)
    for (airbridge, verdict), count in fleet.versions(session, platform).items():
        versions.add_metric([airbridge, verdict], count)
    return [left, left_ratio, journals, skew, versions]


def _of_identities(session: Any, places: Sequence[str], now: datetime) -> Metric:
    family = _family(metrics.IDENTITY_ALARMS)
    counts = audit.count_workers(session, ALARMING, now - ALARM_WINDOW)
    for region in places:
        for event in ALARMING:
            family.add_metric([region, event.partition(".")[2]], counts.get((region, event), 0))
    return family


class Counted:
    """ASGI wrapper that counts responses by endpoint. Unknown paths are counted as `metrics.OTHER`."""

    def __init__(self, app: ASGIApp, metrics: Metrics, endpoints: dict[str, str]) -> None:
        self._app = app
        self._metrics = metrics
        self._endpoints = endpoints

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        endpoint = self._endpoints.get(scope["path"], metrics.OTHER)
        began = time.perf_counter()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._metrics.answered(endpoint, message["status"], time.perf_counter() - began)
            await send(message)

        await self._app(scope, receive, counting)
