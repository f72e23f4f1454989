"""A model of what AWS does with a pool's alarms and policies, read from the synthesised stack that Terraform is given.

Only what AirBridge's stacks use: alarms with one metric and all datapoints to alarm, step scaling policies, an autoscaling
group's bounds. Nothing here is a setting; `Group.read` takes every number from the stack.

Sources: Amazon CloudWatch user guide, "Alarm evaluation" (high-resolution alarms are evaluated every ten seconds, others every
minute; an alarm that stays in ALARM repeats its Auto Scaling action once a minute). Amazon EC2 Auto Scaling user guide, "Step
and simple scaling policies" (intervals are relative to the threshold; instances warming up count towards a step; no scaling
in while a scale-out warms up; how percentages are rounded).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

REPEAT_SECONDS = 60.0
"""Interval at which an alarm that stays in ALARM repeats its scaling action."""
_FAST_SECONDS, _SLOW_SECONDS = 10.0, 60.0
_ARN = re.compile(r"^\$\{aws_autoscaling_policy\.([A-Za-z0-9_-]+)\.arn\}$")

Sample = tuple[float, float]
"""Seconds, and the value published then."""


@dataclass(frozen=True)
class Step:
    """The adjustment for a breach between two distances from the threshold."""

    lower: float
    upper: float
    adjustment: int


@dataclass(frozen=True)
class Policy:
    """A step scaling policy."""

    name: str
    adjustment_type: str
    steps: tuple[Step, ...]
    warmup_seconds: float
    min_magnitude: int

    def capacity(self, now: int, breach: float, warming: int) -> int:
        """Return the capacity for a breach of this size, before the group's bounds."""
        change = next((step.adjustment for step in self.steps if step.lower <= breach < step.upper), 0)
        if self.adjustment_type == "PercentChangeInCapacity":
            change = self._rounded(now * change / 100)
        if change > 0:
            return max(now, now - warming + change)
        return now if warming else now + change

    def _rounded(self, change: float) -> int:
        """Round away from zero below one, towards zero above; never below the minimum magnitude."""
        if change == 0:
            return 0
        whole = math.floor(abs(change)) if abs(change) > 1 else 1
        return int(math.copysign(max(whole, self.min_magnitude), change))


@dataclass(frozen=True)
class Alarm:
    """An alarm on one metric, and the policy that it invokes."""

    name: str
    metric: str
    comparison: str
    threshold: float
    period_seconds: float
    periods: int
    missing: str
    policy: Policy

    @property
    def every_seconds(self) -> float:
        """Interval between two evaluations."""
        return _FAST_SECONDS if self.period_seconds < _SLOW_SECONDS else _SLOW_SECONDS

    def breach(self, samples: Sequence[Sample], now: float) -> float | None:
        """Return the excess of the latest period over the threshold, or None unless every period breaches it."""
        ends = [now - index * self.period_seconds for index in range(self.periods)]
        values = [self._highest(samples, end) for end in ends]
        if not all(self._breaches(value) for value in values):
            return None
        return (self.threshold if values[0] is None else values[0]) - self.threshold

    def _highest(self, samples: Sequence[Sample], end: float) -> float | None:
        inside = [value for at, value in samples if end - self.period_seconds <= at < end]
        return max(inside, default=None)

    def _breaches(self, value: float | None) -> bool:
        if value is None:
            return self.missing == "breaching"
        return {
            "GreaterThanThreshold": value > self.threshold,
            "GreaterThanOrEqualToThreshold": value >= self.threshold,
            "LessThanThreshold": value < self.threshold,
            "LessThanOrEqualToThreshold": value <= self.threshold,
        }[self.comparison]


@dataclass(frozen=True)
class Group:
    """An autoscaling group's bounds and the alarms that move it."""

    name: str
    min_size: int
    max_size: int
    alarms: tuple[Alarm, ...]
    boot_script: str
    """Base64, as the launch template has it."""

    @classmethod
    def read(cls, stack: Mapping[str, Any], pool: str) -> Group:
        """The group of a pool in an edge stack's JSON; LookupError if there is none."""
        named = stack.get("resource", {}).get("aws_autoscaling_group", {})
        for one in named.values():
            if one["//"]["metadata"]["path"].split("/")[1] == f"pool-{pool}":
                prefix = one["//"]["metadata"]["path"].rsplit("/", 1)[0] + "/"
                return cls(
                    name=one["name"],
                    min_size=one["min_size"],
                    max_size=one["max_size"],
                    alarms=tuple(_alarms(stack, prefix)),
                    boot_script=next(_under(stack, "aws_launch_template", prefix))["user_data"],
                )
        raise LookupError(f"there is no autoscaling group of a pool {pool!r} in this stack")

    def bounded(self, capacity: int) -> int:
        """The capacity within the group's bounds."""
        return min(self.max_size, max(self.min_size, capacity))


def _under(stack: Mapping[str, Any], kind: str, prefix: str) -> Iterator[dict[str, Any]]:
    for one in stack["resource"].get(kind, {}).values():
        if one["//"]["metadata"]["path"].startswith(prefix):
            yield one


def _alarms(stack: Mapping[str, Any], prefix: str) -> Iterator[Alarm]:
    policies = stack["resource"]["aws_autoscaling_policy"]
    for one in _under(stack, "aws_cloudwatch_metric_alarm", prefix):
        match = _ARN.match(one["alarm_actions"][0])
        if match is None:
            continue
        yield Alarm(
            name=one["alarm_name"],
            metric=one["metric_name"],
            comparison=one["comparison_operator"],
            threshold=float(one["threshold"]),
            period_seconds=float(one["period"]),
            periods=int(one["evaluation_periods"]),
            missing=one["treat_missing_data"],
            policy=_policy(policies[match[1]]),
        )


def _policy(one: Mapping[str, Any]) -> Policy:
    steps = (
        Step(
            lower=float(step.get("metric_interval_lower_bound") or -math.inf),
            # An interval has its lower end and not its upper one; one that ends at the threshold itself has it.
            upper=upper_bound(step.get("metric_interval_upper_bound")),
            adjustment=int(step["scaling_adjustment"]),
        )
        for step in one["step_adjustment"]
    )
    return Policy(
        name=one["name"],
        adjustment_type=one["adjustment_type"],
        steps=tuple(steps),
        warmup_seconds=float(one.get("estimated_instance_warmup", 0)),
        min_magnitude=int(one.get("min_adjustment_magnitude", 0)),
    )


def upper_bound(bound: str | float | None) -> float:
    """Return an interval's upper end as the steps compare it."""
    if bound is None:
        return math.inf
    return math.nextafter(0.0, 1.0) if float(bound) == 0 else float(bound)


@dataclass(frozen=True)
class Decision:
    """A change of a group's capacity."""

    at: float
    alarm: str
    policy: str
    before: int
    after: int


@dataclass
class Scaler:
    """Evaluates a group's alarms as time goes on. Times are seconds since the epoch, to which periods are aligned."""

    group: Group
    capacity: int
    _evaluated: dict[str, float] = field(default_factory=dict)
    _acted: dict[str, float] = field(default_factory=dict)

    def decide(self, now: float, samples: Mapping[str, Sequence[Sample]], warming: int) -> list[Decision]:
        """Evaluate what is due; `samples` by metric. The capacity is changed, and each change returned."""
        return [
            decision for alarm in self.group.alarms if (decision := self._one(alarm, now, samples, warming))
        ]

    def _one(
        self, alarm: Alarm, now: float, samples: Mapping[str, Sequence[Sample]], warming: int
    ) -> Decision | None:
        due = math.floor(now / alarm.every_seconds) * alarm.every_seconds
        if self._evaluated.setdefault(alarm.name, due) >= due:
            return None
        self._evaluated[alarm.name] = due
        breach = alarm.breach(samples.get(alarm.metric, ()), due)
        if breach is None:
            self._acted.pop(alarm.name, None)
            return None
        if due - self._acted.get(alarm.name, -math.inf) < REPEAT_SECONDS:
            return None
        self._acted[alarm.name] = due
        before = self.capacity
        self.capacity = self.group.bounded(alarm.policy.capacity(before, breach, warming))
        if self.capacity == before:
            return None
        return Decision(now, alarm.name, alarm.policy.name, before, self.capacity)
