"""The boot in the order of the tutorial, and the demo on what booted."""

from __future__ import annotations

import json
import sys
import time

from tests.boot.platform import SERVICES, Platform
from tests.boot.tasks import until

from airbridge.control_plane import samples

_BEGUN = time.monotonic()


def note(text: str) -> None:
    """Say what happens, and when."""
    print(f"{time.monotonic() - _BEGUN:6.1f} s  {text}", file=sys.stderr, flush=True)


def boot(booting: Platform) -> str:
    """Boot the control plane, push the demo's DAG, and boot an instance in each region; return the first token."""
    note("running the migration task")
    note(next(line for line in booting.migrate().splitlines() if line.startswith("logins set")))
    for service in SERVICES:
        booting.start(service)
    token = booting.first_token()
    note("first token: made in a session of the operators' task")
    booting.follow(7)
    note("the demo's DAG is pushed")
    for region in booting.deployment.regions:
        booting.launch(region)
    until(
        "a worker in each region",
        lambda: len(booting.workers(token)) == len(booting.instances),
        lambda: logs(booting),
        300,
    )
    for worker in booting.workers(token).values():
        note(f"worker {worker['id']}: {worker['state']}")
    return token


def logs(booting: Platform) -> str:
    """Return what the instances wrote."""
    return "\n".join(each.log for each in booting.instances.values())


def run(booting: Platform) -> bool:
    """Run the demo's DAG; return whether it is green and every task ran in the region of its data."""
    regions = {each.identity.instance: region for region, each in booting.instances.items()}
    with booting.person() as airflow:
        airflow.wait_for_dag(samples.DAG_ID, 180)
        airflow.unpause(samples.DAG_ID)
        run_id = airflow.trigger(samples.DAG_ID)
        outcome = airflow.wait(samples.DAG_ID, run_id, 300)
        tasks = airflow.task_instances(samples.DAG_ID, run_id)
        ran = {each["task_id"]: regions.get(each["hostname"], each["hostname"]) for each in tasks}
        for task, region in ran.items():
            note(f"{task}: ran in {region}")
        note(f"{samples.DAG_ID}: {outcome}")
        if outcome == "success":
            note(json.dumps(airflow.xcom(samples.DAG_ID, run_id, samples.RESULT_TASK)))
    return outcome == "success" and ran == samples.REGION_OF_DATA
