"""8 tasks that only sleep, to weigh them: for so long that all sleep when the last has started."""

from __future__ import annotations

import time

from airflow.sdk import DAG, task


@task
def sleeper() -> None:
    """Holds its slot."""
    time.sleep(40.0)


with DAG("sleepers_8", schedule=None, max_active_tasks=100_000):
    for number in range(8):
        sleeper.override(task_id=f"t{number}")()
