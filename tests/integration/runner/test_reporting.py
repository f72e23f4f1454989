"""How a supervisor copes with what the control plane answers."""

from __future__ import annotations

import pytest
from tests.integration.runner.world import World

from airbridge.control_plane.policy import Access, TaskFacts
from airbridge.control_plane.rules import OwnOnly

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
    """The state is reported once the control plane takes it."""
    world.api.statuses["task-instances"] = [status, 200]
    run = world.do(world.run(world.write(FILE), "returns"))
    assert world.exit.clean
    assert run.relay.states[-1] == "success"


def test_a_state_that_is_fenced_off_leaves_the_exit_unclean(world: World) -> None:
    """Success and then failure are refused; the supervisor says that it could not report, and ends."""
    world.api.statuses["task-instances"] = [409] * 20
    run = world.do(world.run(world.write(FILE), "returns"))
    assert world.exit.code == 1
    assert "reporting that failed as well" in world.exit.detail
    assert run.relay.states == ["failed"] * len(run.relay.states)


def test_an_error_without_a_body_reaches_the_task_as_an_error(world: World) -> None:
    """The supervisor lives on, the task fails, and the failure is reported."""
    world.api.statuses["xcoms"] = [418]
    run = world.do(world.run(world.write(FILE), "pulls"))
    assert run.relay.states == ["failed"]
    assert world.exit.clean


@pytest.mark.parametrize(
    ("task_id", "path", "access"),
    [
        ("connects", "connections/warehouse", Access("connections:read", "warehouse")),
        ("reads", "variables/secret", Access("variables:read", "secret")),
    ],
)
def test_a_read_that_the_policy_denies_fails_the_task_with_the_rule_that_would_allow_it(
    world: World, task_id: str, path: str, access: Access
) -> None:
    """The task's log has the message as it was given; a default does not hide it."""
    facts = TaskFacts("", "", "d", "r", task_id, -1, "eu-west-1", "default", "w", "eu-west-1")
    why = OwnOnly().judge(facts, access).why
    world.api.denied[path] = why
    run = world.do(world.run(world.write(FILE), task_id))
    assert run.relay.states == ["failed"]
    [name] = filter(None, [access.name])
    key = access.action.replace(":", ".")
    assert f'{key} = [\\"{name}\\"]' in run.log.replace("\\\\", "\\")
