"""Panels of the dashboards, in Grafana and CloudWatch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from airbridge.control_plane.observability.alarms import NAMESPACE
from airbridge.core import metrics
from airbridge.core.metrics import Metric
from airbridge.executor.dispatch import scaling


@dataclass(frozen=True, slots=True)
class Panel:
    """Chart. `expression` is for Grafana, in PromQL; `metric` and `statistic` are for CloudWatch."""

    title: str
    expression: str
    legend: str
    unit: str
    metric: Metric
    statistic: str = "Maximum"


def _sum(metric: Metric, *labels: str) -> str:
    """Return a gauge's sum by labels, in PromQL. Every gateway exposes the same series: the sum is over one of each."""
    return f"sum by ({', '.join(labels)}) (max by ({', '.join(metric.labels)}) ({metric.name}))"


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
        _sum(_M.ITEMS, "region", "state"),
        "{{region}} {{state}}",
        "short",
        _M.ITEMS,
    ),
    Panel(
        "Slots in use",
        f"{_sum(_M.SLOTS_USED, 'region')} / {_sum(_M.SLOTS, 'region')}",
        "{{region}}",
        "percentunit",
        _M.SLOTS_USED,
    ),
    Panel(
        "Workers by standing",
        _sum(_M.WORKERS, "region", "standing"),
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
        f"sum by (operation, reason) (rate({_M.REFUSALS.name}[5m]))",
        "{{operation}} {{reason}}",
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


@dataclass(frozen=True, slots=True)
class AwsLine:
    """Metric of AWS or of the schedulers' signal. `dimensions` as in `alarms.AwsAlarm`."""

    namespace: str
    metric: str
    dimensions: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class AwsPanel:
    """Chart for CloudWatch alone. `each` repeats its lines per `service` or `pool`."""

    title: str
    each: str
    lines: tuple[AwsLine, ...]


def _lines(namespace: str, dimensions: Mapping[str, str], *names: str) -> tuple[AwsLine, ...]:
    return tuple(AwsLine(namespace, name, dimensions) for name in names)


_POOL = {"Region": "{region}", "Pool": "{pool}"}
AWS_PANELS: Final = (
    AwsPanel("The signal that pools grow by", "pool", _lines(NAMESPACE, _POOL, scaling.BACKLOG_PER_SLOT)),
    AwsPanel("The signal that pools shrink by", "pool", _lines(NAMESPACE, _POOL, scaling.WORK_PER_SLOT)),
    AwsPanel(
        "Services: CPU",
        "service",
        _lines("AWS/ECS", {"ClusterName": "{cluster}", "ServiceName": "{service}"}, "CPUUtilization"),
    ),
    AwsPanel(
        "Database",
        "",
        _lines(
            "AWS/RDS",
            {"DBInstanceIdentifier": "{database}"},
            *("CPUUtilization", "DatabaseConnections", "WriteLatency"),
        ),
    ),
    AwsPanel(
        "Connections to the gateway",
        "",
        _lines(
            "AWS/NetworkELB",
            {"LoadBalancer": "{gateway_balancer}"},
            *("ActiveFlowCount", "NewFlowCount", "TCP_Target_Reset_Count"),
        ),
    ),
)
