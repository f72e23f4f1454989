"""Tasks of ECS Exec: a task that was started with it has its agent running, and a session can be opened (moto has neither).

The session's token names the task, the container and the command in base64 JSON. AWS's token is opaque; the program that takes the session's stream
here (a `session-manager-plugin` of a test) reads from it what to run.
"""

from __future__ import annotations

import base64
import json
from typing import Any

from moto.core.responses import ActionResult
from moto.ecs.exceptions import InvalidParameterException
from moto.ecs.responses import EC2ContainerServiceResponse

_AGENT = "ExecuteCommandAgent"


def apply() -> None:
    """Start the agent of tasks that want it; open sessions in them."""
    responses: Any = EC2ContainerServiceResponse
    responses.run_task = _with_agent(responses.run_task)
    responses.execute_command = _execute_command


def _with_agent(run_task: Any) -> Any:
    def run(self: Any) -> Any:
        result = run_task(self)
        if self._get_param("enableExecuteCommand"):
            for task in result._result["tasks"]:  # noqa: SLF001  # what moto is about to answer with
                _start_agent(self.ecs_backend, task)
        return result

    return run


def _start_agent(backend: Any, task: Any) -> None:
    task.enable_execute_command = True
    defined = backend.describe_task_definition(task.task_definition_arn).container_definitions
    name = task.task_arn.rpartition("/")[2]
    task.containers = [
        {
            "containerArn": f"{task.task_arn.replace(':task/', ':container/')}/{number}",
            "taskArn": task.task_arn,
            "name": container["name"],
            "lastStatus": "RUNNING",
            "runtimeId": f"{name.replace('-', '')}-{number}",
            "managedAgents": [{"name": _AGENT, "lastStatus": "RUNNING"}],
        }
        for number, container in enumerate(defined)
    ]


def _execute_command(self: Any) -> ActionResult:
    cluster, container = self._get_param("cluster", "default"), self._get_param("container")
    (task,) = self.ecs_backend.describe_tasks(cluster, [self._get_param("task")])
    agents = [each for each in task.containers if isinstance(each, dict) and each["name"] == container]
    if not agents:
        raise InvalidParameterException(
            "The execute command failed because execute command was not enabled when the task was run or the execute command agent isn't running."
        )
    session = {"task": task.task_arn, "container": container, "command": self._get_param("command")}
    return ActionResult(
        {
            "clusterArn": task.cluster_arn,
            "containerArn": agents[0]["containerArn"],
            "containerName": container,
            "interactive": True,
            "taskArn": task.task_arn,
            "session": {
                "sessionId": f"ecs-execute-command-{task.id}",
                "streamUrl": f"wss://ssmmessages.{task.region_name}.amazonaws.com/v1/data-channel",
                "tokenValue": base64.b64encode(json.dumps(session).encode()).decode(),
            },
        }
    )
