"""The workloads: independent no-op tasks, chains of no-op tasks, and tasks that only sleep."""

from __future__ import annotations

import time
from typing import Any

from airflow.sdk import DAG, task


@task
def noop() -> None:
    """Does nothing: what is measured is everything around it."""


@task
def sleeper(seconds: float) -> None:
    """Holds its slot."""
    time.sleep(seconds)


def fan_out(width: int) -> DAG:
    """`width` tasks that may all run at once."""
    with DAG(f"fanout_{width}", schedule=None, max_active_tasks=100_000) as dag:
        for number in range(width):
            noop.override(task_id=f"t{number}")()
    return dag


def mapped(width: int) -> DAG:
    """`width` mapped tasks: a backlog without a large DAG file."""
    with DAG(f"backlog_{width}", schedule=None, max_active_tasks=100_000) as dag:

        @task
        def each(number: int) -> None:
            del number

        each.expand(number=list(range(width)))
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
    """`count` tasks that sleep for a minute, to weigh them."""
    with DAG(f"sleepers_{count}", schedule=None, max_active_tasks=100_000) as dag:
        for number in range(count):
            sleeper.override(task_id=f"t{number}")(60.0)
    return dag


DAGS = [
    fan_out(10),
    fan_out(100),
    chain(2),
    chain(10),
    sleepers(8),
    sleepers(200),
    mapped(100),
    mapped(500),
    mapped(1000),
]
globals().update({dag.dag_id: dag for dag in DAGS})
