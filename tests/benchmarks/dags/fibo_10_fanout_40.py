"""40 tasks that compute the Fibonacci number 10 naively, all at once."""

from __future__ import annotations

from airflow.sdk import DAG, task


def fibo(n: int) -> int:
    """Compute it the slow way."""
    return n if n <= 1 else fibo(n - 1) + fibo(n - 2)


@task
def compute() -> int:
    """Return the number, as an XCom."""
    return fibo(10)


with DAG("fibo_10_fanout_40", schedule=None, max_active_tasks=100_000):
    for number in range(40):
        compute.override(task_id=f"t{number}")()
