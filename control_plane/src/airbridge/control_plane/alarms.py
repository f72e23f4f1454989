"""Every alarm: the one definition that Prometheus' rules, the stacks' CloudWatch alarms and the runbooks go by.

An `Alert` watches what AirBridge itself measures (`airbridge.executor.metrics`); an `AwsAlarm` what AWS measures of the things
that the stacks make, and the signal that schedulers publish. Each has a section of its name in docs/runbooks.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from airbridge.executor import metrics, scaling
from airbridge.executor.metrics import Kind, Metric

NAMESPACE: Final = "AirBridge"
"""What the gateways and schedulers of AirBridge's own stacks publish under."""

SIGNALS: Final = (scaling.BACKLOG_PER_SLOT, scaling.WORK_PER_SLOT, scaling.WITHOUT_HEARTBEAT)
"""What schedulers publish for each pool, in the pool's region, under the dimensions Region and Pool."""


class Scope(StrEnum):
    """How many of an alarm there are: the stacks make one for each."""

    CONTROL_PLANE = "control_plane"
    REGION = "region"
    POOL = "pool"


class Bound(StrEnum):
    """Which side of the threshold is wrong."""

    ABOVE = "above"
    BELOW = "below"

    @property
    def sign(self) -> str:
        """Prometheus' word for it."""
        return ">" if self is Bound.ABOVE else "<"


@dataclass(frozen=True, slots=True)
class Alert:
    """An alarm on one metric of AirBridge's own.

    A gauge must be wrong for `minutes`. What a counter counted, and a histogram's 95th percentile, are those of the last `minutes`.
    `over` are the labels that it is told apart by; `where`, the values of a label that count.
    """

    name: str
    summary: str
    severity: str
    metric: Metric
    over: tuple[str, ...]
    threshold: float
    minutes: int
    bound: Bound = Bound.ABOVE
    where: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    silence_is_wrong: bool = False
    """Whether the lack of any value is as bad as a wrong one."""

    @property
    def scope(self) -> Scope:
        """What there is one of it for."""
        if "pool" in self.over:
            return Scope.POOL
        return Scope.REGION if "region" in self.over else Scope.CONTROL_PLANE

    @property
    def dimensions(self) -> tuple[str, ...]:
        """The labels that CloudWatch must know the metric by."""
        return tuple(label for label in self.metric.labels if label in self.over or label in self.where)

    @property
    def expression(self) -> str:
        """PromQL."""
        name, over = self.metric.name, ", ".join(self.over)
        chosen = ",".join(_matcher(label, values) for label, values in self.where.items())
        chosen = f"{{{chosen}}}" if chosen else ""
        by = f" by ({over})" if over else ""
        match self.metric.kind:
            case Kind.COUNTER:
                value = f"sum{by} (increase({name}{chosen}[{self.minutes}m]))"
            case Kind.HISTOGRAM:
                buckets = f"rate({name}_bucket{chosen}[{self.minutes}m])"
                value = f"histogram_quantile(0.95, sum by ({', '.join(('le', *self.over))}) ({buckets}))"
            case _:
                value = f"{'max' if self.bound is Bound.ABOVE else 'min'}{by} ({name}{chosen})"
        silent = f" or absent({name})" if self.silence_is_wrong else ""
        return f"{value} {self.bound.sign} {self.threshold:g}{silent}"


def _matcher(label: str, values: tuple[str, ...]) -> str:
    return f'{label}="{values[0]}"' if len(values) == 1 else f'{label}=~"{"|".join(values)}"'


@dataclass(frozen=True, slots=True)
class AwsAlarm:
    """An alarm on a metric that AirBridge's gateway does not expose.

    `dimensions` are CloudWatch's names, each with the name under which the stack knows the value, in braces.
    """

    name: str
    summary: str
    severity: str
    scope: Scope
    namespace: str
    metric: str
    dimensions: Mapping[str, str]
    threshold: float
    minutes: int
    bound: Bound = Bound.ABOVE
    statistic: str = "Maximum"
    silence_is_wrong: bool = False


_POOL = ("region", "pool")
_SIGNAL_DIMENSIONS = {"Region": "{region}", "Pool": "{pool}"}

ALERTS: Final = (
    Alert(
        "WorkWaitsTooLong",
        "Work has waited for more than ten minutes, or no gateway publishes metrics",
        "page",
        metrics.QUEUE_AGE,
        _POOL,
        600,
        5,
        silence_is_wrong=True,
    ),
    Alert(
        "NoWorkerServes",
        "Work waits in a pool without a single serving worker",
        "page",
        metrics.UNSERVED,
        _POOL,
        0,
        5,
    ),
    Alert(
        "RegionSilent",
        "Workers have not been heard of and did not say that they would stop",
        "page",
        metrics.WORKERS,
        _POOL,
        0,
        5,
        where={"standing": ("silent",)},
    ),
    Alert(
        "WorkersRefusedByMatrix",
        "Workers run versions that the compatibility matrix refuses",
        "ticket",
        metrics.WORKERS,
        _POOL,
        0,
        15,
        where={"standing": ("refused",)},
    ),
    Alert(
        "CertificateEnding",
        "A live worker's certificate ends in less than ten minutes and was not renewed",
        "page",
        metrics.CERTIFICATE_LEFT,
        _POOL,
        600,
        5,
        Bound.BELOW,
    ),
    Alert(
        "ReportsDelayed",
        "Results take more than a minute from the edge to the control plane",
        "ticket",
        metrics.REPORT_DELAY,
        ("region",),
        60,
        10,
    ),
    Alert(
        "JournalGrows",
        "Workers hold thousands of writes that they cannot report",
        "ticket",
        metrics.JOURNALS,
        _POOL,
        5000,
        10,
    ),
    Alert(
        "ClockSkewed",
        "A worker's clock is off by more than five seconds",
        "ticket",
        metrics.CLOCK_SKEW,
        _POOL,
        5,
        15,
    ),
    Alert(
        "ForgedOrBrokenMessages",
        "Messages that the control plane did not sign, or that cannot be read, are on a queue",
        "page",
        metrics.REFUSALS,
        ("region",),
        0,
        15,
        where={"reason": ("bad_signature", "malformed")},
    ),
    Alert(
        "LateResultsRefused",
        "Results came after their attempt had been fenced off",
        "ticket",
        metrics.REFUSALS,
        ("region",),
        0,
        15,
        where={"reason": ("lost", "stale_epoch")},
    ),
    Alert(
        "GatewayFails",
        "The gateway answered more than thirty requests in five minutes with errors of its own",
        "page",
        metrics.REQUESTS,
        (),
        30,
        5,
        where={"status": ("500", "503")},
    ),
)

AWS_ALARMS: Final = (
    AwsAlarm(
        "GatewayDown",
        "No healthy gateway: workers go on with what they hold and get nothing new",
        "page",
        Scope.CONTROL_PLANE,
        "AWS/NetworkELB",
        "HealthyHostCount",
        {"LoadBalancer": "{gateway_balancer}", "TargetGroup": "{edge_targets}"},
        1,
        2,
        Bound.BELOW,
        "Minimum",
        silence_is_wrong=True,
    ),
    AwsAlarm(
        "DatabaseBusy",
        "The database has been above 85 % CPU for ten minutes",
        "ticket",
        Scope.CONTROL_PLANE,
        "AWS/RDS",
        "CPUUtilization",
        {"DBInstanceIdentifier": "{database}"},
        85,
        10,
        statistic="Average",
    ),
    AwsAlarm(
        "DatabaseFillsUp",
        "The database has less than 10 GiB left",
        "page",
        Scope.CONTROL_PLANE,
        "AWS/RDS",
        "FreeStorageSpace",
        {"DBInstanceIdentifier": "{database}"},
        10 * 1024**3,
        5,
        Bound.BELOW,
        "Minimum",
    ),
    AwsAlarm(
        "UiFails",
        "The UI has answered with errors, more than ten a minute",
        "ticket",
        Scope.CONTROL_PLANE,
        "AWS/ApplicationELB",
        "HTTPCode_Target_5XX_Count",
        {"LoadBalancer": "{ui_balancer}"},
        10,
        5,
        statistic="Sum",
    ),
    AwsAlarm(
        "DeadLetters",
        "A work item could not be handled and lies in the dead-letter queue",
        "ticket",
        Scope.REGION,
        "AWS/SQS",
        "ApproximateNumberOfMessagesVisible",
        {"QueueName": "{dead_letter_queue}"},
        0,
        1,
    ),
    AwsAlarm(
        "MessageWaitsTooLong",
        "A message has been on the queue for ten minutes: no worker takes it",
        "page",
        Scope.POOL,
        "AWS/SQS",
        "ApproximateAgeOfOldestMessage",
        {"QueueName": "{queue}"},
        600,
        5,
    ),
    AwsAlarm(
        "PoolWithoutHeartbeat",
        "There is work and no worker of the pool has sent a heartbeat, or no scheduler publishes",
        "page",
        Scope.POOL,
        NAMESPACE,
        scaling.WITHOUT_HEARTBEAT,
        _SIGNAL_DIMENSIONS,
        0,
        5,
        silence_is_wrong=True,
    ),
)


def dimension_sets(metric: Metric) -> tuple[tuple[str, ...], ...]:
    """Return by which sets of labels CloudWatch must know a metric: all of them, and those that alarms look at."""
    looked_at = [alert.dimensions for alert in ALERTS if alert.metric is metric]
    return tuple(dict.fromkeys([metric.labels, *looked_at]))
