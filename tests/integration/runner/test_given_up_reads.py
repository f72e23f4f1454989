"""Reads that a task gives up: its timeout, and the end of its process, do not wait for their answers."""

from __future__ import annotations

import asyncio
import os
import signal
import time

import pytest
from tests.integration.runner.test_deaths import gone, pushed_pids, until
from tests.integration.runner.world import World

FILE = """
import os
from datetime import datetime, timedelta

from airflow.sdk import DAG, Variable, get_current_context, task

def note(context):
    print("callback reads", Variable.get("colour"))

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1),
         default_args={"on_failure_callback": note, "on_retry_callback": note}):
    @task(execution_timeout=timedelta(seconds=1))
    def waits():
        Variable.get("never")
    waits()

    @task
    def waits_for_ever():
        get_current_context()["ti"].xcom_push("pids", [os.getpid()])
        Variable.get("never")
    waits_for_ever()
"""


@pytest.mark.parametrize(("should_retry", "state"), [(False, "failed"), (True, "up_for_retry")])
def test_timeout_ends_a_waiting_read(world: World, should_retry: bool, state: str) -> None:
    """A read without an answer, as in a cut, ends with `execution_timeout`; what the task reads afterwards is right."""
    world.api.variables |= {"colour": "red", "never": "late"}

    async def scenario() -> None:
        started = time.monotonic()
        options = {"should_retry": should_retry, "max_tries": int(should_retry)}
        run = await world.spawn(world.write(FILE), "waits", hold="variables/never", **options)
        try:
            exit_ = await run.ended(20)
        finally:
            run.task.kill()
        assert time.monotonic() - started < 15
        assert exit_.clean
        assert "AirflowTaskTimeout" in run.log
        assert "callback reads red" in run.log
        assert run.proxy.states == [state]

    world.do(scenario())


def test_death_ends_a_waiting_read(world: World) -> None:
    """A task that is killed while it waits for a read is reported as failed at once."""

    async def scenario() -> None:
        run = await world.spawn(world.write(FILE), "waits_for_ever", hold="variables/never")
        try:
            pids = await pushed_pids(run)
            await until(lambda: any(call.path == "variables/never" for call in run.proxy.calls))
            await asyncio.sleep(0.1)
            os.kill(pids[0], signal.SIGKILL)
            exit_ = await run.ended(20)
        finally:
            run.task.kill()
        assert "SIGKILL" in exit_.detail
        assert run.proxy.states == ["failed"]
        await gone(pids)

    world.do(scenario())
