"""An alarm on one metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from airbridge.infra.cdk import Construct, aws


@dataclass(frozen=True)
class AlarmProps:
    """One metric, its threshold, and what happens when it is crossed.

    `missing` is what the absence of data means: `notBreaching`, `breaching` (a heartbeat) or `missing`.
    """

    name: str
    description: str
    namespace: str
    metric: str
    threshold: float
    dimensions: Mapping[str, str] = field(default_factory=dict)
    comparison: str = "GreaterThanThreshold"
    statistic: str = "Maximum"
    period_seconds: int = 60
    periods: int = 5
    missing: str = "notBreaching"
    actions: Sequence[str] = ()
    recovery_actions: Sequence[str] = ()


class Alarm(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
    """A CloudWatch alarm."""

    def __init__(self, scope: Construct, id_: str, props: AlarmProps) -> None:
        super().__init__(scope, id_)
        aws.cloudwatch_metric_alarm.CloudwatchMetricAlarm(
            self,
            "alarm",
            alarm_name=props.name,
            alarm_description=props.description,
            namespace=props.namespace,
            metric_name=props.metric,
            dimensions=dict(props.dimensions) or None,
            comparison_operator=props.comparison,
            statistic=props.statistic,
            threshold=props.threshold,
            period=props.period_seconds,
            evaluation_periods=props.periods,
            treat_missing_data=props.missing,
            alarm_actions=list(props.actions),
            ok_actions=list(props.recovery_actions),
        )
