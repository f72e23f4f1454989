"""A service keeps what it was created with, and a Fargate task needs no memory of its own in each container.

A task whose secret has no value stops before it runs, as in ECS (ResourceInitializationError); moto runs it.
moto also never runs the tasks of a service, drops its deployment settings, its health check's grace period, managed tags and zone rebalancing; and it
fails to start a task whose containers share the task's memory, as Fargate's may.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from moto.ecs.models import EC2ContainerServiceBackend, Service, TaskDefinition
from moto.ecs.responses import EC2ContainerServiceResponse
from moto.secretsmanager.models import secretsmanager_backends

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
    service: Any = Service
    service.__init__ = _running(service.__init__)
    backend: Any = EC2ContainerServiceBackend
    backend.update_service = _keeps_running(backend.update_service)
    backend.run_task = _initialising(backend.run_task)
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


def _running(initialise: Any) -> Any:
    """Start a service with its tasks running: Terraform waits for a steady state, which moto's never reach."""

    @wraps(initialise)
    def start(self: Any, *arguments: Any, **options: Any) -> None:
        initialise(self, *arguments, **options)
        _reach_steady_state(self)

    return start


def _keeps_running(update: Any) -> Any:
    @wraps(update)
    def keep(self: Any, *arguments: Any, **options: Any) -> Any:
        service = update(self, *arguments, **options)
        _reach_steady_state(service)
        return service

    return keep


def _reach_steady_state(service: Any) -> None:
    service.running_count, service.pending_count = service.desired_count, 0
    for deployment in service.deployments:
        deployment |= {
            "desiredCount": service.desired_count,
            "runningCount": service.desired_count,
            "pendingCount": 0,
            "rolloutState": "COMPLETED",
            "taskDefinition": service.task_definition,
        }


def _initialising(run_task: Any) -> Any:
    def run(self: Any, *arguments: Any, **options: Any) -> Any:
        tasks = run_task(self, *arguments, **options)
        for task in tasks:
            if empty := _empty_secrets(self, task.task_definition_arn):
                reason = "ResourceInitializationError: unable to pull secrets or registry auth: no value in"
                task.stopped_reason = f"{reason} {', '.join(empty)}"
                task.desired_status = task.last_status = "STOPPED"
        return tasks

    return run


def _empty_secrets(backend: Any, definition_arn: str) -> list[str]:
    definition = backend.describe_task_definition(definition_arn)
    sources = {
        secret["valueFrom"]
        for container in definition.container_definitions
        for secret in container.get("secrets", ())
        if ":secretsmanager:" in secret["valueFrom"]
    }
    store = secretsmanager_backends[backend.account_id][backend.region_name].secrets
    names = {":".join(source.split(":")[:7]) for source in sources}
    return sorted(arn for arn in names if (secret := store.get(arn)) is not None and not secret.versions)


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
