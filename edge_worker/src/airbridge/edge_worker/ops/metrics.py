"""Prometheus metrics of a worker, only if a port is set, and on loopback by default; most are counted from its events."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from typing import Any

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

from airbridge.core import metrics
from airbridge.core.protocol import EdgeEvent
from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.gateway_client.connectivity import Connectivity
from airbridge.edge_worker.gateway_client.heartbeat import HeartbeatLoop
from airbridge.edge_worker.journal.journal import Journal
from airbridge.edge_worker.ops.events import EventLog
from airbridge.edge_worker.storage.logs import LogShipper
from airbridge.edge_worker.work.attempts import Attempts

log = structlog.get_logger(__name__)


class WorkerMetrics(Collector):
    """One worker's metrics, in a registry of their own."""

    def __init__(
        self,
        *,
        port: int | None,
        host: str,
        attempts: Attempts,
        connectivity: Connectivity,
        journal: Journal,
        logs: LogShipper,
        events: EventLog,
        heartbeat: HeartbeatLoop,
    ) -> None:
        self._port = port
        self._host = host
        self._attempts = attempts
        self._connectivity = connectivity
        self._journal = journal
        self._logs = logs
        self._events = events
        self._heartbeat = heartbeat
        self._fetched: set[str] = set()
        # The `_created` series, one for each counter and histogram, have no use here.
        disable_created_metrics()  # type: ignore[no-untyped-call] # series without a use
        self.registry = CollectorRegistry()
        self._starts = self._counter(metrics.W_STARTS)
        self._lookups = self._counter(metrics.W_CACHE)
        spec = metrics.W_REPORT_DELAY
        self._delay = Histogram(
            spec.name, spec.meaning, buckets=metrics.DELAY_BUCKETS, registry=self.registry
        )
        self._cpu = self._counter(metrics.W_TASK_CPU)
        self._limits = self._counter(metrics.W_LIMITS)
        spec = metrics.W_TASK_MEMORY
        self._memory = Histogram(
            spec.name, spec.meaning, buckets=metrics.MEMORY_BUCKETS, registry=self.registry
        )
        self.registry.register(self)
        events.on_event = self.count

    def _counter(self, spec: metrics.Metric) -> Counter:
        return Counter(spec.name.removesuffix("_total"), spec.meaning, spec.labels, registry=self.registry)

    async def run(self) -> None:
        """Serve until cancelled; do nothing without a port. Raises `SettingsError` if the port cannot be had."""
        if self._port is None:
            return
        try:
            server, thread = start_http_server(self._port, self._host, self.registry)
        except OSError as error:
            raise SettingsError(
                f"metrics_port {self._port} of {self._host}: {error.strerror}; it must be a free port of an address of this host"
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
            case "task.ended":
                self._count_use(event.detail)
            case "report.delivered" if event.began_at is not None:
                self._delay.observe(max(0.0, (event.at - event.began_at).total_seconds()))

    def _count_use(self, detail: Mapping[str, Any]) -> None:
        """Take what an ended task has used into account, and the limit that it ran into."""
        if (seconds := detail.get("cpu_seconds")) is not None:
            self._cpu.inc(seconds)
        if (peak := detail.get("peak_memory_bytes")) is not None:
            self._memory.observe(peak)
        if (limit := detail.get("limit")) is not None:
            self._limits.labels(limit).inc()

    def describe(self) -> list[Metric]:
        """Return nothing: the names are known without looking."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield the gauges, as they are now."""
        for spec, value in (
            (metrics.W_SLOTS, self._attempts.slots),
            (metrics.W_SLOTS_USED, self._attempts.used),
            (metrics.W_LINK_UP, float(self._connectivity.up)),
            (metrics.W_LINK_SILENT, self._connectivity.silent_for()),
            (metrics.W_JOURNAL, self._journal.pending),
            (metrics.W_JOURNAL_BYTES, self._journal.bytes),
            (metrics.W_EVENTS, len(self._events)),
            (metrics.W_LOGS_BYTES, self._logs.bytes),
            (metrics.W_SKEW, self._heartbeat.skew_seconds),
        ):
            yield GaugeMetricFamily(spec.name, spec.meaning, value=value)
