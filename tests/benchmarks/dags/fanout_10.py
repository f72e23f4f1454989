"""10 independent no-op tasks."""

from __future__ import annotations

from airflow.sdk import DAG, task


@task
def noop() -> None:
    """Does nothing: what is measured is everything around it."""


with DAG("fanout_10", schedule=None, max_active_tasks=100_000, max_active_runs=100_000):
    for number in range(10):
        noop.override(task_id=f"t{number}")()
