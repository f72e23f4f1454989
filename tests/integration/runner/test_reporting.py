"""How a supervisor copes with what the control plane answers."""

from __future__ import annotations

import pytest
from tests.integration.runner.world import World

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

    [returns(), pulls()]
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
