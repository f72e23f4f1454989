"""Operators reach the gateway's port and make the first token without a public listener and without a log that shows it."""

from __future__ import annotations

import json
import shlex
from typing import Any

import pytest
from tests.infra.aws_rules.test_compute import resources
from tests.infra.conftest import ENVIRONMENTS, Stacks
from tests.infra.factories import environment

from airbridge.infra import environment as environments
from airbridge.infra.exceptions import CommandFailedError, UnsafeStackError
from airbridge.infra.tools import operate

# "Amazon ECS Exec", IAM permissions, of the ECS developer guide.
EXEC = {
    "ssmmessages:CreateControlChannel",
    "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel",
    "ssmmessages:OpenDataChannel",
}


def task(stacks: Stacks, name: str) -> dict[str, Any]:
    [found] = [
        one for _, one in resources(stacks, "aws_ecs_task_definition") if one["family"].endswith(f"-{name}")
    ]
    return found


def test_operator_task_takes_a_session(prod: Stacks) -> None:
    """ECS Exec needs its agent's folders to be writable under a read-only root, and four actions of the task's role."""
    [main] = [
        one
        for one in json.loads(task(prod, "operator")["container_definitions"])
        if one["name"] == "operator"
    ]
    assert {"/managed-agents", "/var/lib/amazon", "/var/log/amazon"} <= {
        each["containerPath"] for each in main["mountPoints"]
    }
    assert main["readonlyRootFilesystem"] is True
    allowed = {
        path.split("/")[-3]
        for path, one in resources(prod, "aws_iam_role_policy")
        if path.startswith("control-plane/")
        and set(EXEC) <= {a for s in json.loads(one["policy"])["Statement"] for a in _listed(s["Action"])}
    }
    assert {"operator"} == allowed


def test_operator_task_holds_no_key(prod: Stacks) -> None:
    """A session sees the gateway's database role, and none of the keys."""
    definition = task(prod, "operator")
    secrets = {
        secret["name"] for one in json.loads(definition["container_definitions"]) for secret in one["secrets"]
    }
    assert {"PGPASSWORD"} == secrets


def test_sessions_are_encrypted_and_not_logged(prod: Stacks) -> None:
    """The first token is shown in a session: its output goes to no log; who opened it is in CloudTrail."""
    [(_, cluster)] = resources(prod, "aws_ecs_cluster")
    [configuration] = [cluster["configuration"]["execute_command_configuration"]]
    assert "NONE" == configuration["logging"]
    assert "outputs.key_arn" in configuration["kms_key_id"]


def test_public_operators_are_refused() -> None:
    """The gateway's balancer is internal: a public network never reaches it."""
    wrong = environment()
    wrong["control_plane"]["operator_cidrs"] = ["198.51.100.0/24"]
    with pytest.raises(UnsafeStackError, match=r"operator_cidrs: 198.51.100.0/24 is public"):
        environments.parse(wrong, "test.toml")


class Ecs:
    """ECS with a gateway's service, whose tasks start at the second look."""

    def __init__(self, *, starts: bool = True) -> None:
        self.started: dict[str, Any] = {}
        self.looks, self._starts = 0, starts

    def describe_services(self, **_: Any) -> dict[str, Any]:
        return {
            "services": [
                {
                    "networkConfiguration": {
                        "awsvpcConfiguration": {"subnets": ["s"], "assignPublicIp": "DISABLED"}
                    }
                }
            ]
        }

    def run_task(self, **asked: Any) -> dict[str, Any]:
        self.started = asked
        return {"tasks": [{"taskArn": "arn:task/1"}], "failures": []}

    def describe_tasks(self, **_: Any) -> dict[str, Any]:
        self.looks += 1
        status = "RUNNING" if self._starts and self.looks > 1 else "PENDING" if self._starts else "STOPPED"
        agent = {"name": "ExecuteCommandAgent", "lastStatus": status}
        return {
            "tasks": [
                {
                    "lastStatus": status,
                    "stoppedReason": "no image",
                    "containers": [{"name": "operator", "managedAgents": [agent]}],
                }
            ]
        }


def test_operator_task_is_started_where_the_gateway_is() -> None:
    """The task gets the network of the gateway's service and its own security group, and a session is possible."""
    ecs = Ecs()
    assert "arn:task/1" == operate.start(ecs, "airbridge-dev", "sg-1", sleep=lambda _: None)
    assert ecs.started["enableExecuteCommand"] is True
    network = ecs.started["networkConfiguration"]["awsvpcConfiguration"]
    assert {"subnets": ["s"], "assignPublicIp": "DISABLED", "securityGroups": ["sg-1"]} == network


def test_failed_operator_task_is_named() -> None:
    """A task that does not start is an error with ECS's reason."""
    with pytest.raises(CommandFailedError, match="no image"):
        operate.start(Ecs(starts=False), "airbridge-dev", "sg-1", sleep=lambda _: None)


@pytest.mark.parametrize("command", ["/bin/bash", "airbridge token root --owner ann --scope 'dags:*'"])
def test_printed_command_line_runs_the_given_command(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A shell reads it back as one word, whatever is in it; without one the session is a shell."""

    class Ec2:
        def describe_security_groups(self, **_: Any) -> dict[str, Any]:
            return {"SecurityGroups": [{"GroupId": "sg-1"}]}

    monkeypatch.chdir(ENVIRONMENTS.parent)
    monkeypatch.setattr(operate, "POLL_SECONDS", 0.0)
    monkeypatch.setattr(operate.boto3, "client", lambda service, **_: Ecs() if service == "ecs" else Ec2())
    given = [] if command == "/bin/bash" else ["--command", command]
    assert 0 == operate.main(["--environment", "dev", *given])
    words = shlex.split(capsys.readouterr().out)
    assert command == words[-1]
    assert ["aws", "ecs", "execute-command", "--region", "us-east-1"] == words[:5]


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]
