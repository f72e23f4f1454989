"""Tasks for a place without AWS: what they find there, and one that runs and logs for as long as it is told."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from typing import Any

from airflow.sdk import dag, get_current_context, task

from airbridge.core import near


@dag(schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False)
def anywhere() -> None:
    """Read the environment near a file of the place, and pass it on."""

    @task(executor_config=near("file:///factory-7/press"))
    def look() -> dict[str, Any]:
        names = sorted(name for name in os.environ if name.startswith("AWS_"))
        return {"aws": names, "worker": os.environ.get("AIRBRIDGE_WORKER", "")}

    @task
    def conclude(found: dict[str, Any]) -> int:
        print(f"AWS variables: {found['aws']}")
        return len(found["aws"])

    conclude(look())


@dag(schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False)
def long_and_loud() -> None:
    """Log a line a second."""

    @task
    def talk() -> int:
        seconds = int(get_current_context()["dag_run"].conf["seconds"])
        for second in range(seconds):
            print(f"second {second} of {seconds}", flush=True)
            time.sleep(1)
        return seconds

    @task
    def large() -> int:
        for number in range(60_000):
            print(f"line {number:06d} " + "x" * 80)
        return number

    talk()
    large()


anywhere()
long_and_loud()
