"""The tasks of `cuts.py` for edge3's workers: two DAGs for each queue. QUEUES is filled in by `tests/chaos/cuts_edge3.py`."""

from __future__ import annotations

import os
import time
from pathlib import Path

from airflow.sdk import DAG, get_current_context, task

QUEUES: list[str] = []


@task(retries=0)
def work() -> int:
    """Print numbered lines until the file `go` is there; push how many, and return it."""
    context = get_current_context()
    conf = context["dag_run"].conf
    lines = 0
    Path(conf["working"]).touch()
    while not Path(conf["go"]).exists():
        print(f"line {lines} of process {os.getpid()}")
        lines += 1
        time.sleep(0.5)
    context["ti"].xcom_push(key="lines", value=lines)
    print(f"the end after {lines} lines")
    return lines


@task(retries=0)
def read(lines: int) -> int:
    """Check that the other value arrived too."""
    pulled = get_current_context()["ti"].xcom_pull(task_ids="work", key="lines")
    if pulled != lines:
        raise ValueError(f"pulled {pulled}, given {lines}")
    return lines + 1


for queue in QUEUES:
    for name in ("run", "result"):
        with DAG(f"{queue}-{name}", schedule=None, default_args={"queue": queue}) as dag:
            read(work())
        # Airflow finds DAGs among a module's globals.
        globals()[f"{queue}_{name}"] = dag
