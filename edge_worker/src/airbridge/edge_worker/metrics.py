"""What a worker exposes for Prometheus, on loopback and only if a port is set. Most of it is counted from its events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Final

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    start_http_server,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from airbridge.edge_worker.events import EventLog
from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.heart import Heart
from airbridge.edge_worker.holdings import Holdings
from airbridge.edge_worker.journal import Journal
from airbridge.edge_worker.link import Link
from airbridge.edge_worker.logs import LogShipper
from airbridge.executor import metrics
from airbridge.executor.protocol import EdgeEvent

log = structlog.get_logger(__name__)

LOOPBACK: Final = "127.0.0.1"


class WorkerMetrics(Collector):
    """One worker's metrics, in a registry of their own."""

    def __init__(
        self,
        *,
        port: int | None,
        holdings: Holdings,
        link: Link,
        journal: Journal,
        logs: LogShipper,
        events: EventLog,
        heart: Heart,
    ) -> None:
        self._port = port
        self._holdings = holdings
        self._link = link
        self._journal = journal
        self._logs = logs
        self._events = events
        self._heart = heart
        self._fetched: set[str] = set()
        disable_created_metrics()  # type: ignore[no-untyped-call] # a series that nobody asks for
        self.registry = CollectorRegistry()
        self._starts = self._counter(metrics.W_STARTS)
        self._lookups = self._counter(metrics.W_CACHE)
        spec = metrics.W_REPORT_DELAY
        self._delay = Histogram(
            spec.name, spec.meaning, buckets=metrics.DELAY_BUCKETS, registry=self.registry
        )
        self.registry.register(self)
        events.on_note = self.count

    def _counter(self, spec: metrics.Metric) -> Counter:
        return Counter(spec.name.removesuffix("_total"), spec.meaning, spec.labels, registry=self.registry)

    async def run(self) -> None:
        """Serve until cancelled; do nothing without a port. Raises `SettingsError` if the port cannot be had."""
        if self._port is None:
            return
        try:
            server, thread = start_http_server(self._port, LOOPBACK, self.registry)
        except OSError as error:
            raise SettingsError(
                f"metrics_port {self._port}: {error.strerror}; it must be a free port of this host"
            ) from error
        log.info("metrics.started", port=server.server_port)
        try:
            await asyncio.Event().wait()
        finally:
            server.shutdown()
            server.server_close()
            thread.join(1)

    def count(self, event: EdgeEvent) -> None:
        """Take an event into account."""
        match event.event:
            case "task.forked":
                self._starts.labels("warm" if event.detail.get("warm") else "cold").inc()
                if str(event.item_id) not in self._fetched:
                    self._lookups.labels("hit").inc()
                self._fetched.discard(str(event.item_id))
            case "bundle.fetched":
                self._lookups.labels("miss").inc()
                self._fetched.add(str(event.item_id))
            case "report.delivered" if event.began_at is not None:
                self._delay.observe(max(0.0, (event.at - event.began_at).total_seconds()))

    def describe(self) -> list[Metric]:
        """Return nothing: the names are known without looking."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, as they are now."""
        for spec, value in (
            (metrics.W_SLOTS, self._holdings.slots),
            (metrics.W_SLOTS_USED, self._holdings.used),
            (metrics.W_LINK_UP, float(self._link.up)),
            (metrics.W_LINK_SILENT, self._link.silent_for()),
            (metrics.W_JOURNAL, self._journal.pending),
            (metrics.W_JOURNAL_BYTES, self._journal.bytes),
            (metrics.W_EVENTS, len(self._events)),
            (metrics.W_LOGS_BYTES, self._logs.bytes),
            (metrics.W_SKEW, self._heart.skew_seconds),
        ):
            yield GaugeMetricFamily(spec.name, spec.meaning, value=value)
