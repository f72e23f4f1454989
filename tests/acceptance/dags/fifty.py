"""Fifty tasks in two regions, retried where a worker dies, each noting every time that its code runs."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path

from airflow.sdk import DAG, get_current_context, task

from airbridge.core import near

REGIONS = ("us-east-1", "eu-west-1")


@task(retries=3, retry_delay=timedelta(seconds=1))
def work(number: int) -> int:
    """Note that it runs, take a while, return its square."""
    context = get_current_context()
    notes = Path(context["dag_run"].conf["notes"])
    note = f"{number} {context['ti'].id} {context['ti'].try_number}\n"
    handle = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(handle, note.encode())
    os.close(handle)
    time.sleep(context["dag_run"].conf["seconds"])
    return number * number


def build(dag_id: str, width: int) -> DAG:
    """`width` independent tasks, every second one in the other region."""
    with DAG(dag_id, schedule=None, max_active_tasks=1000) as dag:
        for number in range(width):
            place = near(f"region:{REGIONS[number % 2]}")
            work.override(task_id=f"work_{number}", executor_config=place)(number)
    return dag


fifty = build("fifty", 50)
hundred = build("hundred", 100)
two_hundred = build("two_hundred", 200)
