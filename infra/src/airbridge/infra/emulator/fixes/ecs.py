"""A service keeps what it was created with, and a Fargate task needs no memory of its own in each container.

moto drops a service's deployment settings, its health check's grace period, managed tags and zone rebalancing; and it
fails to start a task whose containers share the task's memory, as Fargate's may.
"""

from __future__ import annotations

from typing import Any

from moto.ecs.models import EC2ContainerServiceBackend, TaskDefinition
from moto.ecs.responses import EC2ContainerServiceResponse

_KEPT = {
    "deploymentConfiguration": "deployment_configuration",
    "healthCheckGracePeriodSeconds": "health_check_grace_period_seconds",
    "enableECSManagedTags": "enable_ecs_managed_tags",
    "enableExecuteCommand": "enable_execute_command",
    "availabilityZoneRebalancing": "availability_zone_rebalancing",
}


def apply() -> None:
    """Keep a service's settings; count only the memory that a container names."""
    responses: Any = EC2ContainerServiceResponse
    for action in ("create_service", "update_service"):
        setattr(responses, action, _keeping(getattr(responses, action)))
    backend: Any = EC2ContainerServiceBackend
    count = backend._calculate_task_resource_requirements  # noqa: SLF001  # moto's own arithmetic

    def requirements(task_definition: TaskDefinition) -> dict[str, Any]:
        counted = [
            {**container, "memory": container.get("memory", container.get("memoryReservation", 0))}
            for container in task_definition.container_definitions
        ]
        shadow = type("Counted", (), {"container_definitions": counted})
        result: dict[str, Any] = count(shadow)
        return result

    backend._calculate_task_resource_requirements = staticmethod(requirements)  # noqa: SLF001


def _keeping(action: Any) -> Any:
    def keep(self: Any) -> Any:
        result = action(self)
        service = result._result["service"]  # noqa: SLF001  # what moto is about to answer with
        for parameter, attribute in _KEPT.items():
            value = self._get_param(parameter)
            if value is not None:
                setattr(service, attribute, value)
        return result

    return keep
