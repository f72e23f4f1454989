"""The workloads: independent no-op tasks, chains of no-op tasks, and tasks that only sleep."""

from __future__ import annotations

import time
from typing import Any

from airflow.sdk import DAG, task

MANY = 100_000
"""No bound of a DAG's own: the slots are the bound."""

SLEEP_SECONDS = 40.0


@task
def noop() -> None:
    """Does nothing: what is measured is everything around it."""


@task
def sleeper() -> None:
    """Holds its slot."""
    time.sleep(SLEEP_SECONDS)


def fan_out(width: int) -> DAG:
    """`width` tasks that may all run at once."""
    with DAG(f"fanout_{width}", schedule=None, max_active_tasks=MANY, max_active_runs=MANY) as dag:
        for number in range(width):
            noop.override(task_id=f"t{number}")()
    return dag


def chain(length: int) -> DAG:
    """`length` tasks, each waiting for the one before."""
    with DAG(f"chain_{length}", schedule=None) as dag:
        before: Any = None
        for number in range(length):
            this = noop.override(task_id=f"t{number}")()
            if before is not None:
                before >> this
            before = this
    return dag


def sleepers(count: int) -> DAG:
    """`count` tasks that only sleep, to weigh them."""
    with DAG(f"sleepers_{count}", schedule=None, max_active_tasks=MANY) as dag:
        for number in range(count):
            sleeper.override(task_id=f"t{number}")()
    return dag


DAGS = [fan_out(10), fan_out(100), chain(2), chain(10), sleepers(8), sleepers(200)]
globals().update({dag.dag_id: dag for dag in DAGS})
