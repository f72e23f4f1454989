"""An alarm on one metric, or on the sum of some of its series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.definitions import AlarmDefinition


@dataclass(frozen=True)
class AlarmProps:
    """One metric, its threshold, and what happens when it is crossed.

    `missing` is what the absence of data means: `notBreaching`, `breaching` (a heartbeat) or `missing`. `more` are the dimensions
    of further series of the metric; a series without data then counts as nothing.
    """

    name: str
    description: str
    namespace: str
    metric: str
    threshold: float
    dimensions: Mapping[str, str] = field(default_factory=dict)
    more: Sequence[Mapping[str, str]] = ()
    comparison: str = "GreaterThanThreshold"
    statistic: str = "Maximum"
    period_seconds: int = 60
    periods: int = 5
    missing: str = "notBreaching"
    actions: Sequence[str] = ()
    recovery_actions: Sequence[str] = ()

    @classmethod
    def of(
        cls, alarm: AlarmDefinition, values: Mapping[str, str], *, prefix: str, topic_arn: str
    ) -> AlarmProps:
        """Return what a definition comes to with a stack's values; people are told over the topic."""
        dimensions, *more = alarm.dimensions(values)
        return cls(
            name=f"{prefix}-{alarm.name}",
            description=alarm.description,
            namespace=alarm.namespace,
            metric=alarm.metric,
            threshold=alarm.threshold,
            dimensions=dimensions,
            more=more,
            comparison=alarm.comparison,
            statistic=alarm.statistic,
            period_seconds=alarm.period_seconds,
            periods=alarm.periods,
            missing=alarm.missing,
            actions=(topic_arn,),
            recovery_actions=(topic_arn,),
        )


class Alarm(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
    """A CloudWatch alarm."""

    def __init__(self, scope: Construct, id_: str, props: AlarmProps) -> None:
        super().__init__(scope, id_)
        aws.cloudwatch_metric_alarm.CloudwatchMetricAlarm(
            self,
            "alarm",
            alarm_name=props.name,
            alarm_description=props.description,
            comparison_operator=props.comparison,
            threshold=props.threshold,
            evaluation_periods=props.periods,
            treat_missing_data=props.missing,
            alarm_actions=list(props.actions),
            ok_actions=list(props.recovery_actions),
            **(_sum(props) if props.more else _single(props)),
        )


def _single(props: AlarmProps) -> dict[str, Any]:
    percentile = props.statistic.startswith("p")
    return {
        "namespace": props.namespace,
        "metric_name": props.metric,
        "dimensions": dict(props.dimensions) or None,
        "extended_statistic" if percentile else "statistic": props.statistic,
        "period": props.period_seconds,
    }


def _sum(props: AlarmProps) -> dict[str, Any]:
    module = aws.cloudwatch_metric_alarm
    every = [props.dimensions, *props.more]
    added = " + ".join(f"FILL(m{number}, 0)" for number in range(len(every)))
    return {
        "metric_query": [
            module.CloudwatchMetricAlarmMetricQuery(
                id="sum", expression=added, label=props.metric, return_data=True
            ),
            *(
                module.CloudwatchMetricAlarmMetricQuery(
                    id=f"m{number}",
                    metric=module.CloudwatchMetricAlarmMetricQueryMetric(
                        namespace=props.namespace,
                        metric_name=props.metric,
                        dimensions=dict(dimensions),
                        stat=props.statistic,
                        period=props.period_seconds,
                    ),
                )
                for number, dimensions in enumerate(every)
            ),
        ]
    }
