"""CloudWatch's and EC2 Auto Scaling's part: a pool's alarms and policies, as they stand in the emulator, decide on its capacity.

The emulator evaluates no alarm, and its groups wait for no lifecycle hook. The alarms are evaluated here on what the platform published there
(`tests.autoscaling.model` has AWS's rules); an instance that is to end keeps its power until its drain unit has completed the hook.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from tests.autoscaling.model import Alarm, Group, Policy, Sample, Scaler, Step, upper_bound
from tests.boot.account import Account
from tests.boot.instances import Instance
from tests.boot.platform import Platform
from tests.boot.tasks import until

_PERIOD = 10


def group(account: Account, region: str, name: str) -> Group:
    """Return a group's bounds, alarms and policies as the emulator describes them."""
    scaling = account.client("autoscaling", region)
    described = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"][0]
    found = scaling.describe_policies(AutoScalingGroupName=name)["ScalingPolicies"]
    policies = {each["PolicyARN"]: _policy(each) for each in found}
    alarms = [
        _alarm(each, policies[action])
        for each in account.client("cloudwatch", region).describe_alarms()["MetricAlarms"]
        for action in each["AlarmActions"]
        if action in policies
    ]
    return Group(name, described["MinSize"], described["MaxSize"], tuple(alarms), "")


def _policy(described: dict[str, Any]) -> Policy:
    steps = [
        Step(
            float(each.get("MetricIntervalLowerBound", -math.inf)),
            upper_bound(each.get("MetricIntervalUpperBound")),
            int(each["ScalingAdjustment"]),
        )
        for each in described["StepAdjustments"]
    ]
    return Policy(
        name=described["PolicyName"],
        adjustment_type=described["AdjustmentType"],
        steps=tuple(steps),
        warmup_seconds=float(described.get("EstimatedInstanceWarmup", 0)),
        min_magnitude=int(described.get("MinAdjustmentMagnitude", 0)),
    )


def _alarm(described: dict[str, Any], policy: Policy) -> Alarm:
    return Alarm(
        name=described["AlarmName"],
        metric=described["MetricName"],
        comparison=described["ComparisonOperator"],
        threshold=float(described["Threshold"]),
        period_seconds=float(described["Period"]),
        periods=int(described["EvaluationPeriods"]),
        missing=described["TreatMissingData"],
        policy=policy,
    )


@dataclass
class Pool:
    """A pool whose capacity its alarms decide. It begins with the instances that the platform has booted for it."""

    platform: Platform
    region: str
    name: str
    running: list[Instance]
    _booted: dict[str, float] = field(default_factory=dict)
    _scaler: Scaler = field(init=False)

    def __post_init__(self) -> None:
        """Read the group."""
        self.group = self.platform.deployment.regions[self.region]["groups"][self.name]
        read = group(self.platform.account, self.region, self.group)
        self._scaler = Scaler(read, len(self.running))

    @property
    def _api(self) -> Any:
        return self.platform.account.client("autoscaling", self.region)

    def instance_ids(self) -> list[str]:
        """Return the ids of the instances that the group has."""
        found = self._api.describe_auto_scaling_groups(AutoScalingGroupNames=[self.group])
        return [each["InstanceId"] for each in found["AutoScalingGroups"][0]["Instances"]]

    def until_capacity(self, wanted: int, seconds: float) -> None:
        """Evaluate the alarms until they have moved the group to a capacity, and do what they decide."""
        until(
            f"{self.group} at {wanted}", lambda: self._turn() == wanted, lambda: str(self._samples()), seconds
        )

    def _turn(self) -> int:
        now = time.time()
        warmup = max(alarm.policy.warmup_seconds for alarm in self._scaler.group.alarms)
        warming = sum(now - at < warmup for at in self._booted.values())
        for decision in self._scaler.decide(now, self._samples(), warming):
            self.platform.terminal.note(
                f"{decision.alarm}: {self.group} goes from {decision.before} to {decision.after}"
            )
            self._apply(decision.after)
        return self._scaler.capacity

    def _apply(self, capacity: int) -> None:
        leaving = self.running[: max(0, len(self.running) - capacity)]
        for booted in leaving:
            self.end(booted)
        self._api.set_desired_capacity(AutoScalingGroupName=self.group, DesiredCapacity=capacity)
        self.boot_new()

    def boot_new(self) -> list[Instance]:
        """Boot what the group has and nobody booted."""
        known = {each.identity.instance for each in self.running}
        new = [
            self.platform.boot(self.region, self.name, each)
            for each in self.instance_ids()
            if each not in known
        ]
        self._booted |= {each.identity.instance: time.time() for each in new}
        self.running += new
        return new

    def end(self, booted: Instance, decrement: bool = True) -> None:
        """End an instance as the group does: its hook holds it until its drain unit is done; then its power is cut."""
        booted.identity.documents["autoscaling/target-lifecycle-state"] = "Terminated"
        self.cut(booted)
        if booted.identity.instance in self.instance_ids():
            self._api.terminate_instance_in_auto_scaling_group(
                InstanceId=booted.identity.instance, ShouldDecrementDesiredCapacity=decrement
            )

    def cut(self, booted: Instance) -> None:
        """Wait until an instance has drained, and cut its power."""
        until("drained", lambda: booted.unit("airbridge-drain") == "inactive", lambda: booted.log, 300)
        if "agent.drained" not in booted.log:
            raise RuntimeError(f"{booted.identity.instance} ended without a drain\n{booted.log}")
        self.platform.power_off(booted)
        self.running.remove(booted)
        self._booted.pop(booted.identity.instance, None)

    def notify(self, booted: Instance) -> None:
        """Give an instance a Spot interruption notice; return once the group has replaced it and it has drained."""
        name, documents = booted.identity.instance, booted.identity.documents
        documents["spot/instance-action"] = (
            f'{{"action": "terminate", "time": "{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}}'
        )
        until(f"{name} replaced", lambda: name not in self.instance_ids(), lambda: booted.log, 300)
        documents["autoscaling/target-lifecycle-state"] = "Terminated"
        self.cut(booted)

    def _samples(self) -> dict[str, Sequence[Sample]]:
        now = time.time() // _PERIOD * _PERIOD
        starts = [now - _PERIOD * number for number in range(14, 0, -1)]
        metrics = {alarm.metric for alarm in self._scaler.group.alarms}
        read: Callable[[str, float], float | None] = self._highest
        return {
            metric: [(at, value) for at in starts if (value := read(metric, at)) is not None]
            for metric in metrics
        }

    def _highest(self, metric: str, start: float) -> float | None:
        """Return the maximum of ten seconds, asked for alone: moto counts periods from the first datum."""
        points = self.platform.account.client("cloudwatch", self.region).get_metric_statistics(
            Namespace="AirBridge",
            MetricName=metric,
            Dimensions=[{"Name": "Region", "Value": self.region}, {"Name": "Pool", "Value": self.name}],
            StartTime=datetime.fromtimestamp(start, UTC),
            EndTime=datetime.fromtimestamp(start + _PERIOD, UTC),
            Period=_PERIOD,
            Statistics=["Maximum"],
        )["Datapoints"]
        return max((float(each["Maximum"]) for each in points), default=None)
