"""10 no-op tasks, each after the one before."""

from __future__ import annotations

from airflow.sdk import DAG, task


@task
def noop() -> None:
    """Does nothing: what is measured is everything around it."""


with DAG("chain_10", schedule=None):
    before = noop.override(task_id="t0")()
    for number in range(1, 10):
        this = noop.override(task_id=f"t{number}")()
        before >> this
        before = this
