"""Two schedulers at once, and one scheduler with two executors."""

from __future__ import annotations

import signal

import psutil
import pytest
from tests.acceptance.runs import run_with_trouble
from tests.support.platform import LocalPlatform, running, wait_for

MIXED = """
import time
from airflow.sdk import DAG, task

with DAG("mixed_executors", schedule=None):
    for number in range(12):
        @task(task_id=f"t{number}", executor=None if number % 2 else "LocalExecutor", retries=2, retry_delay=0)
        def waits():
            time.sleep(1)
        waits()
"""


@pytest.mark.slow("make test SLOW=1, every night")
@pytest.mark.timeout(500)
def test_two_schedulers_commit_every_task_once() -> None:
    """A hundred tasks under two schedulers: each succeeds at its first try, begins once and is committed once."""
    with running(schedulers=2, slots=16) as platform:
        troubled = run_with_trouble(platform, "hundred", lambda: None, seconds=0.2)
        troubled.check(100)
        assert {1} == {task["try_number"] for task in troubled.run.tasks}
        assert len(troubled.notes) == 100
        owners = platform.query(
            "SELECT DISTINCT queued_by_job_id FROM task_instance WHERE dag_id = 'hundred'"
        )
        assert 1 <= len(owners) <= 2


@pytest.mark.timeout(400)
def test_scheduler_with_two_executors_ends(platform: LocalPlatform) -> None:
    """SIGTERM ends a scheduler that forks LocalExecutor's processes beside AirBridge's threads; the next one ends the run."""
    platform.add_dag("mixed_executors", MIXED)
    run_id = platform.trigger("mixed_executors")
    platform.wait_task("mixed_executors", run_id, "t0", {"running", "success"}, 120)
    stopped = psutil.Process(platform.kill("scheduler", signal.SIGTERM))
    wait_for(lambda: not stopped.is_running(), "the scheduler to end on SIGTERM", 60)
    run = platform.finish("mixed_executors", run_id, 240)
    platform.wait_ready(120)
    assert (run.state, len(run.tasks)) == ("success", 12), run.states()
