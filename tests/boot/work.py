"""Work for the pools: a DAG with one task in a region, which takes as long as its run's configuration says."""

from __future__ import annotations

import shutil
from pathlib import Path

from tests.boot.sign_in import Person
from tests.boot.tasks import until

from airbridge.control_plane import samples

STEADY, REGION = "steady", "eu-west-1"
_SOURCE = f"""
import time
from datetime import UTC, datetime

from airflow.sdk import dag, get_current_context, task


@dag(schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False)
def {STEADY}():
    @task(queue="{REGION}")
    def work():
        time.sleep(get_current_context()["dag_run"].conf["seconds"])

    work()


{STEADY}()
"""


def dags_folder(folder: Path) -> Path:
    """Return a folder with the sample DAG and this one: a push replaces every file of the bundle."""
    made = folder / "dags"
    if not made.exists():
        shutil.copytree(samples.dags_folder(), made)
    (made / f"{STEADY}.py").write_text(_SOURCE)
    return made


def start(airflow: Person, seconds: int) -> str:
    """Start a run; return its id."""
    return airflow.trigger(STEADY, {"seconds": seconds})


def runs_on(airflow: Person, run_id: str) -> str:
    """Wait until a run's task runs; return the instance that it runs on."""
    until(f"{run_id} running", lambda: _task(airflow, run_id)["state"] == "running", lambda: run_id, 180)
    return str(_task(airflow, run_id)["hostname"])


def done_by(airflow: Person, run_id: str) -> str:
    """Wait for a run's end; return the instance that ran its task. AssertionError unless its first attempt succeeded."""
    outcome = airflow.wait(STEADY, run_id, 300)
    task = _task(airflow, run_id)
    assert ("success", 1) == (outcome, task["try_number"]), task
    return str(task["hostname"])


def _task(airflow: Person, run_id: str) -> dict[str, object]:
    (found,) = airflow.task_instances(STEADY, run_id)
    return found
