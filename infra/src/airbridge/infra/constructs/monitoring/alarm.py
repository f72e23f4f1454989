"""An alarm on one metric, or on the sum of some of its series."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.observability_definitions import AlarmDefinition


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
        """Return the properties of a definition filled with a stack's values; the topic is notified."""
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


class Alarm(Construct):
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


class _Measured(TypedDict, total=False):
    """The arguments of a metric alarm that depend on whether it watches one metric or the sum of several."""

    namespace: str
    metric_name: str
    dimensions: dict[str, str] | None
    statistic: str | None
    extended_statistic: str | None
    period: int
    metric_query: list[aws.cloudwatch_metric_alarm.CloudwatchMetricAlarmMetricQuery]


def _single(props: AlarmProps) -> _Measured:
    percentile = props.statistic.startswith("p")
    return {
        "namespace": props.namespace,
        "metric_name": props.metric,
        "dimensions": dict(props.dimensions) or None,
        "statistic": None if percentile else props.statistic,
        "extended_statistic": props.statistic if percentile else None,
        "period": props.period_seconds,
    }


def _sum(props: AlarmProps) -> _Measured:
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
