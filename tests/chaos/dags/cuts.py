"""For each worker of the cut matrix, a DAG that only it runs: a task that works until it is signalled to end, and its reader."""

from __future__ import annotations

import os
import time
from pathlib import Path

from airflow.sdk import DAG, get_current_context, task

POOLS = [
    f"{name}-{row}"
    for name in ("receive", "claim", "start", "run", "result", "answer", "log")
    for row in "abc"
]


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


for pool in POOLS:
    with DAG(f"cut-{pool}", schedule=None, default_args={"queue": f"{pool}@us-east-1"}) as dag:
        read(work())
    # Airflow finds DAGs among a module's globals.
    globals()[f"cut_{pool}"] = dag
