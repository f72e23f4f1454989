"""A supervisor's reaction to responses of the control plane."""

from __future__ import annotations

import pytest
from tests.integration.runner.world import World

from airbridge.control_plane.policy.decisions import Access, TaskFacts
from airbridge.control_plane.policy.rules import OwnOnly

FILE = """
from datetime import datetime
from airflow.sdk import DAG, get_current_context, task

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def returns():
        return 1

    @task
    def pulls():
        get_current_context()["ti"].xcom_pull(task_ids="other", map_indexes=-1)

    @task
    def connects():
        from airflow.sdk import Connection

        Connection.get("warehouse")

    @task
    def reads():
        from airflow.sdk import Variable

        Variable.get("secret", default="fallback")

    [returns(), pulls(), connects(), reads()]
"""


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_passing_error_is_retried(world: World, status: int) -> None:
    """A transient error is retried until the state is accepted."""
    world.api.statuses["task-instances"] = [status, 200]
    run = world.do(world.run(world.write(FILE), "returns"))
    assert world.exit.clean
    assert run.proxy.states[-1] == "success"


def test_fenced_state_leaves_unclean_exit(world: World) -> None:
    """Success and then failure are refused; the supervisor ends with the exit of one that could not report."""
    # Enough for every attempt of the supervisor.
    world.api.statuses["task-instances"] = [409] * 20
    run = world.do(world.run(world.write(FILE), "returns"))
    assert world.exit.code == 1
    assert "reporting that failed as well" in world.exit.detail
    assert run.proxy.states == ["failed"] * len(run.proxy.states)


def test_error_without_body_reaches_task(world: World) -> None:
    """The supervisor goes on, the task fails, and the failure is reported."""
    world.api.statuses["xcoms"] = [418]
    run = world.do(world.run(world.write(FILE), "pulls"))
    assert run.proxy.states == ["failed"]
    assert world.exit.clean


@pytest.mark.parametrize(
    ("task_id", "path", "access"),
    [
        ("connects", "connections/warehouse", Access("connections:read", "warehouse")),
        ("reads", "variables/secret", Access("variables:read", "secret")),
    ],
)
def test_denied_read_fails_the_task(world: World, task_id: str, path: str, access: Access) -> None:
    """The task's log has the policy's message with the rule that would allow the read; a default does not hide it."""
    facts = TaskFacts("", "", "d", "r", task_id, -1, "eu-west-1", "default", "w", "eu-west-1")
    why = OwnOnly().judge(facts, access).why
    world.api.denied[path] = why
    run = world.do(world.run(world.write(FILE), task_id))
    assert run.proxy.states == ["failed"]
    [name] = filter(None, [access.name])
    key = access.action.replace(":", ".")
    # The log is JSON, and the message in it is quoted once more by the exception.
    assert f'{key} = [\\"{name}\\"]' in run.log.replace("\\\\", "\\")
