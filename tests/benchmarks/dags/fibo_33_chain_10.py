"""10 tasks that compute the Fibonacci number 33 naively, each after the one before."""

from __future__ import annotations

from airflow.sdk import DAG, task


def fibo(n: int) -> int:
    """Compute it the slow way."""
    return n if n <= 1 else fibo(n - 1) + fibo(n - 2)


@task
def compute() -> int:
    """Return the number, as an XCom."""
    return fibo(33)


with DAG("fibo_33_chain_10", schedule=None, max_active_tasks=100_000):
    before = compute.override(task_id="t0")()
    for number in range(1, 10):
        this = compute.override(task_id=f"t{number}")()
        before >> this
        before = this
