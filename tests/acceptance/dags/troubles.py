"""DAGs of one task each, for planted troubles. Those that hold run until the file named in the run's conf exists."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow.sdk import DAG, Connection, task

PATIENT = {"airbridge": {"disconnect": {"lost_after": 900}}}
IMPATIENT = {"airbridge": {"disconnect": {"lost_after": 10}}}


def nothing() -> None:
    """Return at once."""


def hold(params: Any = None) -> None:
    """Run until the test creates the file."""
    deadline = time.monotonic() + 240
    while not Path(params["release"]).exists() and time.monotonic() < deadline:
        time.sleep(0.2)


def ask() -> None:
    """Read a connection."""
    Connection.get("warehouse")


def one(dag_id: str, queue: str, does: Callable[..., None], **options: Any) -> None:
    """A DAG with one task, called work."""
    with DAG(dag_id, schedule=None):
        task(task_id="work", queue=queue, retries=0, **options)(does)()


one("t_nobody", "nobody@us-east-1", nothing)
one("t_foreign", "foreign@us-east-1", nothing)
one("t_old", "old@us-east-1", nothing)
one("t_mars", "mars", nothing)
one("t_deaf", "eu-west-1", nothing)
one("t_poisoned", "us-east-1", nothing)
one("t_denied", "us-east-1", ask)
one("unwanted", "us-east-1", nothing)
one("t_full", "us-east-1", hold, pool_slots=2)
one("t_waits", "us-east-1", nothing)
one("t_cut", "far@us-east-1", hold, executor_config=PATIENT)
one("t_fenced", "far@us-east-1", hold, executor_config=IMPATIENT)
