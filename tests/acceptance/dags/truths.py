"""DAGs of one task each, one region each, for planted truths."""

import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, task


def nothing() -> None:
    """Return at once."""


def hold(params: Any = None) -> None:
    """Run until the test creates the file."""
    deadline = time.monotonic() + 300
    while not Path(params["release"]).exists() and time.monotonic() < deadline:
        time.sleep(0.2)


def fail() -> None:
    """Fail, so that the attempt is retried much later."""
    raise ValueError("no rows for 2026-01-01")


def one(dag_id: str, queue: str, does: Callable[..., None], **options: Any) -> None:
    """A DAG with one task, called work."""
    with DAG(dag_id, schedule=None):
        task(task_id="work", queue=queue, **options)(does)()


one("t_held", "eu-west-1", hold, retries=0)
one("t_waits", "eu-west-1", nothing, retries=0)
one("t_drained", "eu-central-1", nothing, retries=0)
one("t_retried", "us-east-1", fail, retries=1, retry_delay=timedelta(minutes=30))
one("t_gateway", "us-east-1", nothing, retries=0)
one("t_blind", "ap-south-1", nothing, retries=0)
