"""Starts a one-off task for operators, which takes a session by ECS Exec: the first token, repairs, a way to the gateway's port.

    python -m airbridge.infra.tools.operate --environment dev [--command 'airbridge token root ...']

It prints the command line that opens the session, with a shell or with one command. The task has the gateway's database role and none of the keys, and ends by itself after an hour. What a session shows is in
no log; that it was opened, by whom, is in CloudTrail (`ExecuteCommand`).
"""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import boto3

from airbridge.infra import environment as environments
from airbridge.infra.exceptions import CommandFailedError, InfraError

POLL_SECONDS = 5.0
MOST_POLLS = 120


def start(ecs: Any, base: str, security_group: str, *, sleep: Callable[[float], None] = time.sleep) -> str:
    """Start the task beside the gateway, wait until it takes a session, and return its ARN. Raises CommandFailedError."""
    described = ecs.describe_services(cluster=base, services=[f"{base}-gateway"])["services"]
    if not described:
        raise CommandFailedError(f"{base}: there is no service {base}-gateway; deploy control-plane first")
    network = dict(described[0]["networkConfiguration"]["awsvpcConfiguration"])
    network["securityGroups"] = [security_group]
    answer = ecs.run_task(
        cluster=base,
        taskDefinition=f"{base}-operator",
        launchType="FARGATE",
        enableExecuteCommand=True,
        networkConfiguration={"awsvpcConfiguration": network},
    )
    if not answer["tasks"]:
        raise CommandFailedError(f"{base}-operator: ECS did not start the task: {answer['failures']}")
    arn = str(answer["tasks"][0]["taskArn"])
    for _ in range(MOST_POLLS):
        if _takes_sessions(ecs, base, arn):
            return arn
        sleep(POLL_SECONDS)
    raise CommandFailedError(
        f"{arn}: takes no session after {MOST_POLLS * POLL_SECONDS:.0f} s; look at the log /airbridge/{base}-operator"
    )


def _takes_sessions(ecs: Any, cluster: str, arn: str) -> bool:
    [task] = ecs.describe_tasks(cluster=cluster, tasks=[arn])["tasks"]
    if task["lastStatus"] == "STOPPED":
        raise CommandFailedError(
            f"{arn}: ended before a session: {task.get('stoppedReason', 'no reason given')}"
        )
    agents = [
        agent
        for container in task["containers"]
        if container["name"] == "operator"
        for agent in container.get("managedAgents", ())
    ]
    return any(agent["lastStatus"] == "RUNNING" for agent in agents)


def _security_group(ec2: Any, base: str) -> str:
    name = f"{base}-control-plane-operator"
    found = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [name]}])["SecurityGroups"]
    if len(found) != 1:
        raise CommandFailedError(
            f"{name}: there are {len(found)} security groups of this name; deploy control-plane first"
        )
    return str(found[0]["GroupId"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the task and print the command that opens a session; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.tools.operate",
        description="Start a one-off task for operators.",
        epilog="Example: python -m airbridge.infra.tools.operate --environment dev",
    )
    parser.add_argument("--environment", required=True, help="the environment's name")
    parser.add_argument("--command", default="/bin/bash", help="what to run in the session (a shell)")
    options = parser.parse_args(arguments)
    try:
        environment = environments.load(Path("environments") / f"{options.environment}.toml")
        base, region = environment.names.base, environment.home_region
        group = _security_group(boto3.client("ec2", region_name=region), base)
        arn = start(boto3.client("ecs", region_name=region), base, group)
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    where = f"--region {region} --cluster {base} --task {arn} --container operator"
    sys.stdout.write(
        f"aws ecs execute-command {where} --interactive --command {shlex.quote(options.command)}\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
