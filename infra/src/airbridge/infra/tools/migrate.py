"""Runs the one-off migration task and waits for it: what Terraform calls between a new image and its services.

python -m airbridge.infra.tools.migrate --region R --cluster ARN --task-definition ARN --subnets A,B --security-group G
python -m airbridge.infra.tools.migrate --environment dev    # again, by hand: the last task of a deployed environment
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3

from airbridge.infra import environment as environments
from airbridge.infra.exceptions import CommandFailedError, InfraError

POLL_SECONDS = 5.0
_OPTIONS = ("region", "cluster", "task-definition", "subnets", "security-group")
TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class MigrationTask:
    """Task to run, and its network."""

    cluster: str
    task_definition: str
    subnets: Sequence[str]
    security_group: str
    public_address: bool = False


def deployed(ecs: Any, base: str) -> MigrationTask:
    """Return the migration of a deployed environment, which has the scheduler's network. Raises CommandFailedError."""
    service = f"{base}-scheduler"
    described = ecs.describe_services(cluster=base, services=[service])["services"]
    if not described:
        raise CommandFailedError(f"{base}: there is no service {service}; deploy control-plane first")
    network = described[0]["networkConfiguration"]["awsvpcConfiguration"]
    return MigrationTask(
        base,
        f"{base}-migrate",
        network["subnets"],
        network["securityGroups"][0],
        network.get("assignPublicIp") == "ENABLED",
    )


def run(
    ecs: Any,
    task: MigrationTask,
    *,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> str:
    """Start the task, wait for it, and return its ARN. Raises CommandFailedError with ECS's reason."""
    arn = _start(ecs, task)
    deadline = clock() + TIMEOUT_SECONDS
    while (stopped := _stopped(ecs, task.cluster, arn)) is None:
        if clock() > deadline:
            raise CommandFailedError(
                f"{arn}: the migration still runs after {TIMEOUT_SECONDS:.0f} s; look at its log"
            )
        sleep(POLL_SECONDS)
    codes = {container["name"]: container.get("exitCode") for container in stopped["containers"]}
    if any(code != 0 for code in codes.values()):
        reason = stopped.get("stoppedReason", "no reason given")
        raise CommandFailedError(f"{arn}: the migration failed ({reason}); exit codes: {codes}")
    return arn


def _start(ecs: Any, task: MigrationTask) -> str:
    answer = ecs.run_task(
        cluster=task.cluster,
        taskDefinition=task.task_definition,
        launchType="FARGATE",
        networkConfiguration={
            "awsvpcConfiguration": {
                "subnets": list(task.subnets),
                "securityGroups": [task.security_group],
                "assignPublicIp": "ENABLED" if task.public_address else "DISABLED",
            }
        },
    )
    if not answer["tasks"]:
        raise CommandFailedError(
            f"{task.task_definition}: ECS did not start the migration: {answer['failures']}"
        )
    return str(answer["tasks"][0]["taskArn"])


def _stopped(ecs: Any, cluster: str, arn: str) -> dict[str, Any] | None:
    described: dict[str, Any] = ecs.describe_tasks(cluster=cluster, tasks=[arn])["tasks"][0]
    return described if described["lastStatus"] == "STOPPED" else None


def _run_asked(options: argparse.Namespace) -> str:
    """Run what the options ask for; return the task's ARN. Raises InfraError."""
    if options.environment is not None:
        environment = environments.load(Path("environments") / f"{options.environment}.toml")
        ecs = boto3.client("ecs", region_name=environment.home_region)
        return run(ecs, deployed(ecs, environment.names.base))
    task = MigrationTask(
        options.cluster,
        options.task_definition,
        options.subnets.split(","),
        options.security_group,
        options.public_address,
    )
    return run(boto3.client("ecs", region_name=options.region), task)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the migration; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m airbridge.infra.tools.migrate", description=__doc__)
    parser.add_argument("--environment", help="the environment's name, in place of all other options")
    for name in _OPTIONS:
        parser.add_argument(f"--{name}")
    parser.add_argument("--public-address", action="store_true", help="in a network without NAT")
    options = parser.parse_args(arguments)
    missing = [f"--{name}" for name in _OPTIONS if getattr(options, name.replace("-", "_")) is None]
    if missing and options.environment is None:
        parser.error(f"{', '.join(missing)}: required without --environment")
    try:
        arn = _run_asked(options)
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{arn}: migrated\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
