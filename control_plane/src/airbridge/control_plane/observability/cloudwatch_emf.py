"""Metrics of a gateway in CloudWatch, without an agent: log lines in the embedded metric format.

CloudWatch Logs extracts metrics from such lines
(https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html), so
that a gateway needs no other permission, image or endpoint. A line has the metrics that share their labels. Gauges are
absolute; counters and histograms have the increase since the last line, so that sums over all gateways are correct.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Final

import structlog
from prometheus_client.core import Metric

from airbridge.control_plane.gateway.background.metrics import Metrics
from airbridge.control_plane.observability.alarms import dimension_sets
from airbridge.core import metrics

log = structlog.get_logger()

# CloudWatch's standard resolution.
EVERY_SECONDS: Final = 60.0
EVENT: Final = "metrics.published"
# Maximum values of one metric in one line, by the specification.
LONGEST_ARRAY: Final = 100

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]
Value = float | list[float]

_SPECS: Final = {spec.name: spec for spec in metrics.ALL}


class CloudWatchEmf:
    """Emits a gateway's metrics once a minute through `emit`, as structlog events."""

    def __init__(
        self,
        registry: Metrics,
        namespace: str,
        clock: Callable[[], datetime],
        emit: Callable[..., Any] | None = None,
    ) -> None:
        self._metrics = registry
        self._namespace = namespace
        self._clock = clock
        self._emit = emit or log.info
        self._published: dict[Key, float] = {}

    async def run(self) -> None:
        """Publish every minute, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.close()

    async def close(self) -> None:
        """Publish the values since the last line."""
        try:
            await asyncio.to_thread(self.publish)
        except Exception:
            log.exception("metrics.publish_failed")

    def publish(self) -> None:
        """Emit all metrics with current values. Reads the database."""
        for line in self.lines():
            self._emit(EVENT, **line)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the fields of each line: current gauges, and the increase of counters and histograms."""
        by_labels: defaultdict[Labels, dict[str, Value]] = defaultdict(dict)
        for family in self._metrics.families():
            for (name, labels), value in self._values(family):
                by_labels[labels][name] = value
        for labels, values in by_labels.items():
            yield {**dict(labels), **values, "_aws": self._declared(values)}

    def _declared(self, values: Iterable[str]) -> dict[str, Any]:
        """Return the ``_aws`` object of a line: its metrics by sets of dimensions."""
        by_dimensions: defaultdict[tuple[tuple[str, ...], ...], list[str]] = defaultdict(list)
        for name in values:
            by_dimensions[dimension_sets(_SPECS[name])].append(name)
        return {
            "Timestamp": int(self._clock().timestamp() * 1000),
            "CloudWatchMetrics": [
                {
                    "Namespace": self._namespace,
                    "Dimensions": [list(one) for one in sets],
                    "Metrics": [{"Name": name, "Unit": _unit(name)} for name in names],
                }
                for sets, names in by_dimensions.items()
            ],
        }

    def _values(self, family: Metric) -> Iterator[tuple[Key, Value]]:
        if family.type == "gauge":
            yield from (((each.name, _labels(each.labels)), each.value) for each in family.samples)
        elif family.type == "counter":
            yield from self._counted(family)
        else:
            yield from self._distributed(family)

    def _counted(self, family: Metric) -> Iterator[tuple[Key, Value]]:
        for sample in family.samples:
            key = (sample.name, _labels(sample.labels))
            if more := self._since(key, sample.value):
                yield key, more

    def _distributed(self, family: Metric) -> Iterator[tuple[Key, Value]]:
        """Yield a histogram as the upper bounds of the buckets of its new values."""
        buckets: defaultdict[Labels, dict[float, float]] = defaultdict(dict)
        for sample in family.samples:
            if sample.name.endswith("_bucket"):
                others = _labels({name: value for name, value in sample.labels.items() if name != "le"})
                more = self._since((sample.name, _labels(sample.labels)), sample.value)
                buckets[others][float(sample.labels["le"])] = more
        for labels, cumulative in buckets.items():
            if values := representatives(cumulative):
                yield (family.name, labels), values

    def _since(self, key: Key, value: float) -> float:
        more = value - self._published.get(key, 0.0)
        self._published[key] = value
        return more


def representatives(cumulative: dict[float, float]) -> list[float]:
    """Return for each counted value its bucket's upper bound, or the highest finite one; at most 100.

    Above 100, each bucket keeps its share, which preserves percentiles.
    """
    bounds = sorted(cumulative)
    total = cumulative[bounds[-1]]
    share = min(1.0, LONGEST_ARRAY / total) if total else 0.0
    values: list[float] = []
    for bound in bounds:
        values += [min(bound, bounds[-2])] * (round(cumulative[bound] * share) - len(values))
    return values


def _labels(labels: dict[str, str]) -> Labels:
    return tuple(sorted(labels.items()))


def _unit(name: str) -> str:
    """Return CloudWatch's name of a metric's unit."""
    if _SPECS[name].unit == "seconds":
        return "Seconds"
    return "Bytes" if _SPECS[name].unit == "bytes" else "Count"
