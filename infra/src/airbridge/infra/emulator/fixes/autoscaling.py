"""Groups keep their hooks and warm-up and can be refreshed, hooks have no invented role, policies are enabled, draining can end.

moto ignores the hooks that a group is created with and its default warm-up, forgets a group's mixed instances at any
later update, gives every hook a role and a target of its own making, leaves `Enabled` out of a policy and puts an
empty predictive configuration into it, and has no CompleteLifecycleAction, RecordLifecycleActionHeartbeat,
StartInstanceRefresh or DescribeInstanceRefreshes.
"""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from moto.autoscaling.exceptions import ValidationError
from moto.autoscaling.models import AutoScalingBackend, FakeScalingPolicy, LifecycleHook
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult, EmptyResult
from moto.core.utils import utcnow


def apply() -> None:
    """Close the gaps."""
    _hooks()
    _groups()
    policy: Any = FakeScalingPolicy
    policy.enabled = True
    make = policy.__init__

    def without_empty_prediction(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        self.predictive_scaling_configuration = self.predictive_scaling_configuration or None

    policy.__init__ = without_empty_prediction
    responses: Any = AutoScalingResponse
    responses.complete_lifecycle_action = _complete
    responses.record_lifecycle_action_heartbeat = _heartbeat
    responses.start_instance_refresh = _start_refresh
    responses.describe_instance_refreshes = _describe_refreshes


def _hooks() -> None:
    hook: Any = LifecycleHook
    make = hook.__init__

    def without_inventions(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        self.role_arn = self.notification_target_arn = None

    hook.__init__ = without_inventions


def _groups() -> None:
    responses: Any = AutoScalingResponse
    create, update = responses.create_auto_scaling_group, responses.update_auto_scaling_group

    def with_hooks(self: Any) -> Any:
        result = create(self)
        name = self._get_param("AutoScalingGroupName")
        _remember_warmup(self, name)
        for given in self._get_param("LifecycleHookSpecificationList", []):
            self.autoscaling_backend.create_lifecycle_hook(
                name=given["LifecycleHookName"],
                as_name=name,
                transition=given["LifecycleTransition"],
                timeout=given.get("HeartbeatTimeout"),
                result=given.get("DefaultResult"),
            )
        return result

    def with_warmup(self: Any) -> Any:
        name = self._get_param("AutoScalingGroupName")
        group = self.autoscaling_backend.autoscaling_groups.get(name)
        instances = group.mixed_instances_policy if group else None
        result = update(self)
        _remember_warmup(self, name)
        if (
            self._get_param("MixedInstancesPolicy") is None
            and group
            and not self._get_param("LaunchTemplate")
        ):
            group.mixed_instances_policy = instances
        return result

    responses.create_auto_scaling_group = with_hooks
    responses.update_auto_scaling_group = with_warmup


def _remember_warmup(response: Any, name: str) -> None:
    seconds = response._get_int_param("DefaultInstanceWarmup")  # noqa: SLF001  # how moto's own actions read parameters
    if seconds is not None:
        response.autoscaling_backend.autoscaling_groups[name].default_instance_warmup = seconds


def _complete(self: Any) -> Any:
    """End the wait of a draining instance. moto never makes one wait, so there is nothing more to do."""
    _require_hook(self)
    return EmptyResult()


def _heartbeat(self: Any) -> Any:
    """Prolong the wait of a draining instance."""
    _require_hook(self)
    return EmptyResult()


def _start_refresh(self: Any) -> Any:
    """Replace the instances. None of moto's runs anything, so the refresh has succeeded as soon as it has begun."""
    refresh = {
        "InstanceRefreshId": str(uuid4()),
        "AutoScalingGroupName": self._get_param("AutoScalingGroupName"),
        "Status": "Successful",
        "StartTime": utcnow(),
        "EndTime": utcnow(),
        "PercentageComplete": 100,
        "InstancesToUpdate": 0,
        "Preferences": self._get_param("Preferences", {}),
    }
    _refreshes(self).insert(0, refresh)
    return ActionResult({"InstanceRefreshId": refresh["InstanceRefreshId"]})


def _describe_refreshes(self: Any) -> Any:
    """List the refreshes of a group, the newest first."""
    wanted = self._get_param("InstanceRefreshIds")
    found = [one for one in _refreshes(self) if not wanted or one["InstanceRefreshId"] in wanted]
    return ActionResult({"InstanceRefreshes": found})


def _refreshes(response: Any) -> list[dict[str, Any]]:
    name = response._get_param("AutoScalingGroupName")  # noqa: SLF001
    group: Any = response.autoscaling_backend.autoscaling_groups.get(name)
    if group is None:
        raise ValidationError("AutoScalingGroup name not found - null")
    if not hasattr(group, "instance_refreshes"):
        group.instance_refreshes = []
    found: list[dict[str, Any]] = group.instance_refreshes
    return found


def _require_hook(response: Any) -> None:
    backend: AutoScalingBackend = response.autoscaling_backend
    group, name = response._get_param("AutoScalingGroupName"), response._get_param("LifecycleHookName")  # noqa: SLF001
    if not backend.describe_lifecycle_hooks(group, [name]):
        raise ValidationError(f"No Lifecycle Hook found with name {name} in group {group}")
