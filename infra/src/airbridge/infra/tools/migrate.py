"""Runs the one-off migration task and waits for it: what Terraform calls between a new image and its services.

python -m airbridge.infra.tools.migrate --region R --cluster ARN --task-definition ARN --subnets A,B --security-group G
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import boto3

from airbridge.infra.exceptions import CommandFailedError, InfraError

POLL_SECONDS = 5.0
TIMEOUT_SECONDS = 1800.0


@dataclass(frozen=True)
class MigrationTask:
    """Task to run, and its network."""

    cluster: str
    task_definition: str
    subnets: Sequence[str]
    security_group: str
    public_address: bool = False


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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the migration; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(prog="python -m airbridge.infra.tools.migrate", description=__doc__)
    for name in ("region", "cluster", "task-definition", "subnets", "security-group"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--public-address", action="store_true", help="in a network without NAT")
    options = parser.parse_args(arguments)
    task = MigrationTask(
        options.cluster,
        options.task_definition,
        options.subnets.split(","),
        options.security_group,
        options.public_address,
    )
    try:
        arn = run(boto3.client("ecs", region_name=options.region), task)
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(f"{arn}: migrated\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
