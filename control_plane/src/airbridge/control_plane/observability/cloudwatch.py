"""Definition of the stacks' CloudWatch alarms and dashboard: `infra/src/airbridge/infra/observability.json`.

Values of a stack (a queue's name, a region) are placeholders in braces. The infrastructure does not import the control
plane, and reads the file instead.
"""

from __future__ import annotations

from itertools import product
from typing import Any, Final

from airbridge.control_plane.observability.alarms import (
    ALERTS,
    AWS_ALARMS,
    NAMESPACE,
    Alert,
    AwsAlarm,
    Bound,
    dimension_sets,
)
from airbridge.control_plane.observability.panels import AWS_PANELS, PANELS, AwsPanel, Panel
from airbridge.core import metrics
from airbridge.core.metrics import Kind, Metric, Source

_COMPARISONS: Final = {Bound.ABOVE: "GreaterThanThreshold", Bound.BELOW: "LessThanThreshold"}


def runbook(alarm: str) -> str:
    """Return the link to an alarm's section of the runbooks."""
    return f"docs/how-to/runbooks.md#{alarm.lower()}"


def published() -> tuple[Metric, ...]:
    """Return the metrics that are published to CloudWatch: all of the gateway's."""
    return tuple(metric for metric in metrics.ALL if metric.source is Source.GATEWAY)


def definition() -> dict[str, Any]:
    """Return the content of observability.json."""
    return {
        "made_by": "make dashboards, from airbridge.control_plane.observability.alarms and .panels",
        "namespace": NAMESPACE,
        "published": {metric.name: [list(each) for each in dimension_sets(metric)] for metric in published()},
        "alarms": [*map(_alert, ALERTS), *map(_aws_alarm, AWS_ALARMS)],
        "panels": [
            *(_panel(panel) for panel in PANELS if panel.metric in published()),
            *map(_aws_panel, AWS_PANELS),
        ],
    }


def _alert(alert: Alert) -> dict[str, Any]:
    """Return an alert as an alarm: with one period for a counter or histogram, and one per minute for a gauge."""
    gauge = alert.metric.kind is Kind.GAUGE
    chosen = [dict(zip(alert.where, values, strict=True)) for values in product(*alert.where.values())]
    return {
        "name": alert.name,
        "description": _description(alert),
        "scope": alert.scope,
        "namespace": NAMESPACE,
        "metric": alert.metric.name,
        # The alarm watches the sum of several series.
        "series": [{label: one.get(label, f"{{{label}}}") for label in alert.dimensions} for one in chosen],
        "statistic": _statistic(alert),
        "comparison": _COMPARISONS[alert.bound],
        "threshold": alert.threshold,
        "period_seconds": 60 if gauge else 60 * alert.minutes,
        "periods": alert.minutes if gauge else 1,
        "missing": _missing(alert),
    }


def _aws_alarm(alarm: AwsAlarm) -> dict[str, Any]:
    return {
        "name": alarm.name,
        "description": _description(alarm),
        "scope": alarm.scope,
        "namespace": alarm.namespace,
        "metric": alarm.metric,
        "series": [dict(alarm.dimensions)],
        "statistic": alarm.statistic,
        "comparison": _COMPARISONS[alarm.bound],
        "threshold": alarm.threshold,
        "period_seconds": 60,
        "periods": alarm.minutes,
        "missing": _missing(alarm),
    }


def _description(alarm: Alert | AwsAlarm) -> str:
    return f"{alarm.summary} ({alarm.severity}). {runbook(alarm.name)}"


def _missing(alarm: Alert | AwsAlarm) -> str:
    return "breaching" if alarm.silence_is_wrong else "notBreaching"


def _statistic(alert: Alert) -> str:
    if alert.metric.kind is Kind.GAUGE:
        return "Maximum" if alert.bound is Bound.ABOVE else "Minimum"
    return "Sum" if alert.metric.kind is Kind.COUNTER else "p95"


def _panel(panel: Panel) -> dict[str, Any]:
    """Return a panel with every series of the metric, in any region."""
    schema = ",".join([NAMESPACE, *panel.metric.labels])
    search = f"SEARCH('{{{schema}}} MetricName=\"{panel.metric.name}\"', '{panel.statistic}', 60)"
    return {"title": panel.title, "each": "", "lines": [{"expression": search}]}


def _aws_panel(panel: AwsPanel) -> dict[str, Any]:
    lines = [
        {"namespace": line.namespace, "metric": line.metric, "dimensions": dict(line.dimensions)}
        for line in panel.lines
    ]
    return {"title": panel.title, "each": panel.each, "lines": lines}
