"""Dashboards and alarms, made from one definition: Grafana, Prometheus rules, CloudWatch, and the table in docs/metrics.md.

``python -m airbridge.control_plane.dashboards docs`` writes them; a test holds what is written to what is defined, and every
expression to metrics that exist.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from airbridge.executor import metrics
from airbridge.executor.metrics import Metric

NAMESPACE: Final = "AirBridge"
"""Of CloudWatch: where its agent puts what it scrapes."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One chart. `expression` is PromQL; `metric` and `statistic` are what CloudWatch draws of it."""

    title: str
    expression: str
    legend: str
    unit: str
    metric: Metric
    statistic: str = "Maximum"


@dataclass(frozen=True, slots=True)
class Alert:
    """One alarm, and the runbook's answer to it: docs/runbooks.md has a section of this name."""

    name: str
    expression: str
    minutes: int
    severity: str
    summary: str
    metric: Metric
    threshold: float
    comparison: str = "GreaterThanThreshold"
    statistic: str = "Maximum"


_M = metrics
PANELS: Final = (
    Panel(
        "Backlog per slot",
        f"max by (region, pool) ({_M.BACKLOG_PER_SLOT.name})",
        "{{region}} {{pool}}",
        "short",
        _M.BACKLOG_PER_SLOT,
    ),
    Panel(
        "Age of the oldest waiting item",
        f"max by (region, pool) ({_M.QUEUE_AGE.name})",
        "{{region}} {{pool}}",
        "s",
        _M.QUEUE_AGE,
    ),
    Panel(
        "Work items by state",
        f"max by (region, state) ({_M.ITEMS.name})",
        "{{region}} {{state}}",
        "short",
        _M.ITEMS,
    ),
    Panel(
        "Slots in use",
        f"max by (region) ({_M.SLOTS_USED.name}) / max by (region) ({_M.SLOTS.name})",
        "{{region}}",
        "percentunit",
        _M.SLOTS_USED,
    ),
    Panel(
        "Workers by standing",
        f"max by (region, standing) ({_M.WORKERS.name})",
        "{{region}} {{standing}}",
        "short",
        _M.WORKERS,
    ),
    Panel(
        "Workers by version",
        f"max by (airbridge, verdict) ({_M.VERSIONS.name})",
        "{{airbridge}} {{verdict}}",
        "short",
        _M.VERSIONS,
    ),
    Panel("Claims", f"sum by (region) (rate({_M.CLAIMS.name}[5m]))", "{{region}}", "ops", _M.CLAIMS, "Sum"),
    Panel(
        "Refusals by reason",
        f"sum by (reason) (rate({_M.REFUSALS.name}[5m]))",
        "{{reason}}",
        "ops",
        _M.REFUSALS,
        "Sum",
    ),
    Panel(
        "Report delay, 95th percentile",
        f"histogram_quantile(0.95, sum by (le, region) (rate({_M.REPORT_DELAY.name}_bucket[5m])))",
        "{{region}}",
        "s",
        _M.REPORT_DELAY,
        "p95",
    ),
    Panel(
        "Unreported writes",
        f"max by (region, pool) ({_M.JOURNALS.name})",
        "{{region}} {{pool}}",
        "short",
        _M.JOURNALS,
    ),
    Panel(
        "Certificate time left, the soonest",
        f"min by (region, pool) ({_M.CERTIFICATE_LEFT.name})",
        "{{region}} {{pool}}",
        "s",
        _M.CERTIFICATE_LEFT,
        "Minimum",
    ),
    Panel(
        "Clock skew, the farthest",
        f"max by (region, pool) ({_M.CLOCK_SKEW.name})",
        "{{region}} {{pool}}",
        "s",
        _M.CLOCK_SKEW,
    ),
    Panel(
        "Gateway requests",
        f"sum by (endpoint, status) (rate({_M.REQUESTS.name}[5m]))",
        "{{endpoint}} {{status}}",
        "reqps",
        _M.REQUESTS,
        "Sum",
    ),
    Panel(
        "Gateway answers, 95th percentile",
        f"histogram_quantile(0.95, sum by (le, endpoint) (rate({_M.REQUEST_SECONDS.name}_bucket[5m])))",
        "{{endpoint}}",
        "s",
        _M.REQUEST_SECONDS,
        "p95",
    ),
    Panel(
        "Warm starts", f"sum by (kind) (rate({_M.W_STARTS.name}[5m]))", "{{kind}}", "ops", _M.W_STARTS, "Sum"
    ),
    Panel(
        "DAG code cache",
        f"sum by (result) (rate({_M.W_CACHE.name}[5m]))",
        "{{result}}",
        "ops",
        _M.W_CACHE,
        "Sum",
    ),
)

ALERTS: Final = (
    Alert(
        "WorkWaitsTooLong",
        f"max by (region, pool) ({_M.QUEUE_AGE.name}) > 600",
        5,
        "page",
        "Work has waited for more than ten minutes",
        _M.QUEUE_AGE,
        600,
    ),
    Alert(
        "NoWorkerServes",
        f'(max by (region, pool) (sum without (state) ({_M.ITEMS.name}{{state=~"placed|sent"}})) > 0) and on (region, pool) (max by (region, pool) ({_M.SLOTS.name}) == 0)',
        5,
        "page",
        "Work waits in a pool without a single serving worker",
        _M.SLOTS,
        1,
        "LessThanThreshold",
    ),
    Alert(
        "RegionSilent",
        f'max by (region) ({_M.WORKERS.name}{{standing="silent"}}) > 0',
        5,
        "page",
        "Workers have not been heard of and did not say that they would stop",
        _M.WORKERS,
        0,
    ),
    Alert(
        "WorkersRefusedByMatrix",
        f'max by (region) ({_M.WORKERS.name}{{standing="refused"}}) > 0',
        15,
        "ticket",
        "Workers run versions that the compatibility matrix refuses",
        _M.WORKERS,
        0,
    ),
    Alert(
        "CertificateEnding",
        f"min by (region, pool) ({_M.CERTIFICATE_LEFT.name}) < 600",
        5,
        "page",
        "A live worker's certificate ends in less than ten minutes and was not renewed",
        _M.CERTIFICATE_LEFT,
        600,
        "LessThanThreshold",
        "Minimum",
    ),
    Alert(
        "ReportsDelayed",
        f"histogram_quantile(0.95, sum by (le, region) (rate({_M.REPORT_DELAY.name}_bucket[10m]))) > 60",
        10,
        "ticket",
        "Results take more than a minute from the edge to the control plane",
        _M.REPORT_DELAY,
        60,
        statistic="p95",
    ),
    Alert(
        "JournalGrows",
        f"max by (region, pool) ({_M.JOURNALS.name}) > 5000",
        10,
        "ticket",
        "Workers hold thousands of writes that they cannot report",
        _M.JOURNALS,
        5000,
    ),
    Alert(
        "ClockSkewed",
        f"max by (region, pool) ({_M.CLOCK_SKEW.name}) > 5",
        15,
        "ticket",
        "A worker's clock is off by more than five seconds",
        _M.CLOCK_SKEW,
        5,
    ),
    Alert(
        "ForgedOrBrokenMessages",
        f'sum by (region) (increase({_M.REFUSALS.name}{{reason=~"bad_signature|malformed"}}[15m])) > 0',
        0,
        "page",
        "Messages that the control plane did not sign, or that cannot be read, are on a queue",
        _M.REFUSALS,
        0,
        statistic="Sum",
    ),
    Alert(
        "LateResultsRefused",
        f'sum by (region) (increase({_M.REFUSALS.name}{{reason=~"lost|stale_epoch"}}[15m])) > 0',
        0,
        "ticket",
        "Results came after their attempt had been fenced off",
        _M.REFUSALS,
        0,
        statistic="Sum",
    ),
    Alert(
        "GatewayFails",
        f'sum(rate({_M.REQUESTS.name}{{status=~"5.."}}[5m])) > 0.1',
        5,
        "page",
        "The gateway answers with errors",
        _M.REQUESTS,
        0.1,
        statistic="Sum",
    ),
)


def used(expression: str) -> set[str]:
    """Return the metrics that a PromQL expression is about, by their own names."""
    found = set(re.findall(r"\bairbridge_[a-z_]+", expression))
    return {re.sub(r"_(bucket|sum|count)$", "", name) for name in found}


def table() -> str:
    """Return the table of docs/metrics.md."""
    lines = [
        "| metric | kind | unit | labels | exposed by | meaning |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for each in metrics.ALL:
        labels = ", ".join(f"`{label}`" for label in each.labels) or " "
        lines.append(
            f"| `{each.name}` | {each.kind} | {each.unit} | {labels} | {each.source} | {each.meaning} |"
        )
    return "\n".join(lines)


def grafana() -> dict[str, Any]:
    """Return a dashboard that Grafana imports."""
    return {
        "uid": "airbridge",
        "title": "AirBridge",
        "tags": ["airbridge"],
        "timezone": "utc",
        "schemaVersion": 39,
        "refresh": "30s",
        "time": {"from": "now-6h", "to": "now"},
        "templating": {"list": [{"name": "datasource", "type": "datasource", "query": "prometheus"}]},
        "panels": [_grafana_panel(number, panel) for number, panel in enumerate(PANELS)],
    }


def _grafana_panel(number: int, panel: Panel) -> dict[str, Any]:
    return {
        "id": number + 1,
        "type": "timeseries",
        "title": panel.title,
        "description": panel.metric.meaning,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "gridPos": {"x": 12 * (number % 2), "y": 8 * (number // 2), "w": 12, "h": 8},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "targets": [{"refId": "A", "expr": panel.expression, "legendFormat": panel.legend}],
    }


def rules() -> dict[str, Any]:
    """Return Prometheus' alerting rules. JSON is YAML."""
    return {"groups": [{"name": "airbridge", "rules": [_rule(alert) for alert in ALERTS]}]}


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": f"AirBridge{alert.name}",
        "expr": alert.expression,
        "for": f"{alert.minutes}m",
        "labels": {"severity": alert.severity},
        "annotations": {"summary": alert.summary, "runbook": f"docs/runbooks.md#{alert.name.lower()}"},
    }


def cloudwatch() -> dict[str, Any]:
    """Return a CloudWatch dashboard body, for what its agent scrapes into the namespace."""
    return {"widgets": [_widget(number, panel) for number, panel in enumerate(PANELS)]}


def _widget(number: int, panel: Panel) -> dict[str, Any]:
    search = f'{{{",".join([NAMESPACE, *panel.metric.labels])}}} MetricName="{panel.metric.name}"'
    return {
        "type": "metric",
        "x": 12 * (number % 2),
        "y": 6 * (number // 2),
        "width": 12,
        "height": 6,
        "properties": {
            "title": panel.title,
            "view": "timeSeries",
            "period": 60,
            "metrics": [[{"expression": f"SEARCH('{search}', '{panel.statistic}', 60)"}]],
        },
    }


def cloudwatch_alarms() -> list[dict[str, Any]]:
    """Return the alarms as ``aws cloudwatch put-metric-alarm --cli-input-json`` takes them."""
    return [
        {
            "AlarmName": f"airbridge-{alert.name}",
            "AlarmDescription": f"{alert.summary}. docs/runbooks.md#{alert.name.lower()}",
            "Namespace": NAMESPACE,
            "MetricName": alert.metric.name,
            **(
                {"ExtendedStatistic": alert.statistic}
                if alert.statistic.startswith("p")
                else {"Statistic": alert.statistic}
            ),
            "Period": 60,
            "EvaluationPeriods": max(1, alert.minutes),
            "Threshold": alert.threshold,
            "ComparisonOperator": alert.comparison,
            "TreatMissingData": "missing",
        }
        for alert in ALERTS
    ]


def files() -> Iterator[tuple[str, str]]:
    """Yield every file that is generated, by its path below docs/."""
    for name, made in (
        ("observability/grafana.json", grafana()),
        ("observability/prometheus-rules.json", rules()),
        ("observability/cloudwatch-dashboard.json", cloudwatch()),
        ("observability/cloudwatch-alarms.json", cloudwatch_alarms()),
    ):
        yield name, json.dumps(made, indent=1) + "\n"


BEGIN, END = "<!-- metrics: begin -->", "<!-- metrics: end -->"


def with_table(page: str) -> str:
    """Return docs/metrics.md with the table as it is defined."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n{table()}\n{END}{rest.partition(END)[2]}"


def main(docs: Path) -> None:
    """Write everything below `docs`."""
    for name, text in files():
        path = docs / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    page = docs / "metrics.md"
    page.write_text(with_table(page.read_text()))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
