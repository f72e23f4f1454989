"""Alarm definitions, shared by Prometheus' rules, the stacks' CloudWatch alarms and the runbooks.

An `Alert` watches one of AirBridge's own metrics (`airbridge.core.metrics`); an `AwsAlarm` watches a metric that AWS
measures of the stacks' resources, or the signal that schedulers publish. Each has a section in docs/how-to/runbooks.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from airbridge.control_plane.identity.ca import WARN_BEFORE
from airbridge.control_plane.read_model.platform import CERTIFICATE_WARNING
from airbridge.core import metrics
from airbridge.core.metrics import Kind, Metric
from airbridge.executor.dispatch import scaling

# CloudWatch namespace of the gateways and schedulers of AirBridge's stacks.
NAMESPACE: Final = "AirBridge"

# Metrics that schedulers publish for each pool, in the pool's region, with the dimensions Region and Pool.
SIGNALS: Final = (scaling.BACKLOG_PER_SLOT, scaling.WORK_PER_SLOT, scaling.WITHOUT_HEARTBEAT)


class Scope(StrEnum):
    """Unit that an alarm exists for: the stacks create one alarm for each."""

    CONTROL_PLANE = "control_plane"
    REGION = "region"
    POOL = "pool"


class Bound(StrEnum):
    """Side of the threshold that raises the alarm."""

    ABOVE = "above"
    BELOW = "below"

    @property
    def sign(self) -> str:
        """PromQL operator."""
        return ">" if self is Bound.ABOVE else "<"


@dataclass(frozen=True, slots=True)
class Alert:
    """Alarm on one of AirBridge's own metrics.

    A gauge must exceed the bound for `minutes`. Counters are summed, and histograms evaluated at their 95th percentile, over
    the last `minutes`. `over` are the labels to group by; `where` selects values of labels.
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
    #: True if missing values raise the alarm too.
    silence_is_wrong: bool = False

    @property
    def scope(self) -> Scope:
        """Unit that the alarm exists for."""
        if "pool" in self.over:
            return Scope.POOL
        return Scope.REGION if "region" in self.over else Scope.CONTROL_PLANE

    @property
    def dimensions(self) -> tuple[str, ...]:
        """Labels that must be CloudWatch dimensions of the metric."""
        return tuple(label for label in self.metric.labels if label in self.over or label in self.where)

    @property
    def expression(self) -> str:
        """PromQL expression."""
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
    """Alarm on a metric that AirBridge's gateway does not expose.

    `dimensions` maps CloudWatch's names to placeholders in braces, which the stack replaces.
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
        "Workers send no heartbeats and did not announce a stop",
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
        "A live worker's certificate has less than a quarter of its lifetime left and was not renewed",
        "page",
        metrics.CERTIFICATE_LEFT_RATIO,
        _POOL,
        CERTIFICATE_WARNING,
        # Less than the quarter of a lifetime of ten minutes.
        2,
        Bound.BELOW,
    ),
    Alert(
        "AuthorityEnding",
        "The issuing CA ends in less than thirty days: all workers lose the gateway then",
        "ticket",
        metrics.CA_LEFT,
        (),
        int(WARN_BEFORE.total_seconds()),
        60,
        Bound.BELOW,
        # It never outlives its root.
        where={"kind": ("issuing",)},
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
        # Not claims: an old message of an item that was sent again is refused for a stale epoch as well.
        where={"operation": ("report",), "reason": ("lost", "stale_epoch")},
    ),
    Alert(
        "IdentityForked",
        "A copy of a worker's identity was used; its name is stopped",
        "page",
        metrics.IDENTITY_ALARMS,
        ("region",),
        0,
        1,
        where={"kind": ("forked",)},
    ),
    Alert(
        "IdentityAtTwoAddresses",
        "A worker's certificate is used from two addresses in turn",
        "ticket",
        metrics.IDENTITY_ALARMS,
        ("region",),
        0,
        1,
        where={"kind": ("two_addresses",)},
    ),
    Alert(
        "JoinsRefused",
        "More than ten enrolments in fifteen minutes were refused",
        "ticket",
        metrics.JOINS_REFUSED,
        ("region",),
        10,
        15,
        where={"reason": ("forbidden", "revoked", "name_in_use")},
    ),
    Alert(
        "BreakGlassUsed",
        "One operator did alone what requires two",
        "page",
        metrics.BREAK_GLASS,
        (),
        0,
        15,
        where={"action": metrics.BREAK_GLASS_ACTIONS},
    ),
    Alert(
        "AuditTrailCut",
        "The audit trail does not match its anchors: its end is missing, or it was made anew",
        "page",
        metrics.AUDIT_FAULTS,
        (),
        0,
        15,
        where={"fault": ("truncated", "rewritten")},
    ),
    Alert(
        "AnchorsNotWritten",
        "Anchors of the audit trail cannot be written or read",
        "ticket",
        metrics.AUDIT_FAULTS,
        (),
        2,
        30,
        where={"fault": ("unwritten", "unread")},
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
        "A work item could not be processed and is in the dead-letter queue",
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
    """Return the sets of CloudWatch dimensions of a metric: all its labels, and those of each alarm on it."""
    looked_at = [alert.dimensions for alert in ALERTS if alert.metric is metric]
    return tuple(dict.fromkeys([metric.labels, *looked_at]))
