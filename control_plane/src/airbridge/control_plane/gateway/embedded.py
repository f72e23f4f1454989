"""A gateway's metrics in CloudWatch, without an agent: lines of its log in the embedded metric format.

CloudWatch Logs makes metrics of such lines by itself
(https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html), so
that a gateway needs no further right, image or address for it. A line has the metrics that share their labels. Gauges are as
they are; counters and histograms tell what came since the last line, so that the sums over all gateways are right.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from typing import Any, Final

import structlog
from prometheus_client.core import Metric

from airbridge.control_plane.alarms import dimension_sets
from airbridge.control_plane.gateway.metrics import Metrics
from airbridge.executor import metrics

log = structlog.get_logger()

EVERY_SECONDS: Final = 60.0
"""CloudWatch's own resolution, unless one pays for more."""
EVENT: Final = "metrics.published"
LONGEST_ARRAY: Final = 100
"""Values of one metric in one line, as the specification bounds them."""

Labels = tuple[tuple[str, str], ...]
Key = tuple[str, Labels]
Value = float | list[float]

_SPECS: Final = {spec.name: spec for spec in metrics.ALL}


class Embedded:
    """Says a gateway's metrics, once a minute, through `say` (a structlog event)."""

    def __init__(
        self,
        counted: Metrics,
        namespace: str,
        clock: Callable[[], datetime],
        say: Callable[..., Any] | None = None,
    ) -> None:
        self._counted_here = counted
        self._namespace = namespace
        self._clock = clock
        self._say = say or log.info
        self._told: dict[Key, float] = {}

    async def run(self) -> None:
        """Publish every minute, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            await self.close()

    async def close(self) -> None:
        """Publish what has not been told yet."""
        try:
            await asyncio.to_thread(self.publish)
        except Exception:
            log.exception("metrics.unpublished")

    def publish(self) -> None:
        """Say everything, as of now. Reads the database."""
        for line in self.lines():
            self._say(EVENT, **line)

    def lines(self) -> Iterator[dict[str, Any]]:
        """Yield the fields of each line: what is now, and what came since the last time."""
        together: defaultdict[Labels, dict[str, Value]] = defaultdict(dict)
        for family in self._counted_here.families():
            for (name, labels), value in self._values(family):
                together[labels][name] = value
        for labels, values in together.items():
            yield {**dict(labels), **values, "_aws": self._declared(values)}

    def _declared(self, values: Iterable[str]) -> dict[str, Any]:
        """What CloudWatch is to make of a line: by each set of dimensions, the metrics that are known by it."""
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
        """A histogram as the upper bounds of the buckets that its new values fell into."""
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
        more = value - self._told.get(key, 0.0)
        self._told[key] = value
        return more


def representatives(cumulative: dict[float, float]) -> list[float]:
    """Return a value for each that was counted: its bucket's upper bound, or the highest finite one; at most 100.

    Of more, each bucket has its share: percentiles stay what they are.
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
    """CloudWatch's word for the unit."""
    if _SPECS[name].unit == "seconds":
        return "Seconds"
    return "Bytes" if _SPECS[name].unit == "bytes" else "Count"
