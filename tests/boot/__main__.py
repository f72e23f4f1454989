"""`make infra-boot`: apply the stacks to an emulator, boot what they made, run the demo on it, and take it down."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from airbridge.control_plane import samples
from tests.boot import deployment as deployments
from tests.boot.images import Build
from tests.boot.platform import SERVICES, Platform, platform
from tests.boot.tasks import until

_BEGUN = time.monotonic()


def note(text: str) -> None:
    """Say what happens, and when."""
    print(f"{time.monotonic() - _BEGUN:6.1f} s  {text}", file=sys.stderr, flush=True)


def main() -> int:
    """Boot everything and run the demo; 0 if its DAG is green."""
    parser = argparse.ArgumentParser(prog="python -m tests.boot", description=__doc__)
    parser.add_argument("dist", type=Path, nargs="?", default=Path("dist"), help="what `make images` left")
    options = parser.parse_args()
    build = Build(options.dist.resolve())
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airbridge-boot-")))
        made = deployments.prepare(folder, build)
        stack.callback(deployments.tear_down, made)
        deployments.deploy(made, note)
        booting = stack.enter_context(platform(made, build, folder, note))
        return 0 if boot(booting) else 1


def boot(booting: Platform) -> bool:
    """Boot in the order of the tutorial; return whether the demo's run is green, each task in the region of its data."""
    note("migration task")
    note(booting.migrate().strip().splitlines()[-1])
    for service in SERVICES:
        booting.start(service)
    token = booting.first_token()
    note("first token made in a session of the operators' task")
    booting.push(token, samples.dags_folder())
    note("the demo's DAG is pushed")
    for region in booting.deployment.regions:
        booting.launch(region)
    until("a worker in each region", lambda: len(booting.workers(token)) == len(booting.instances), logs(booting), 300)
    for worker in booting.workers(token).values():
        note(f"worker {worker['id']}: {worker['state']}")
    return run_demo(booting)


def logs(booting: Platform) -> object:
    """Return what the instances wrote, when asked."""
    return lambda: "\n".join(each.log for each in booting.instances.values())


def run_demo(booting: Platform) -> bool:
    """Run the demo's DAG; return whether it is green and every task ran in the region of its data."""
    regions = {each.identity.instance: region for region, each in booting.instances.items()}
    with booting.person() as airflow:
        airflow.wait_for_dag(samples.DAG_ID, 180)
        airflow.unpause(samples.DAG_ID)
        run_id = airflow.trigger(samples.DAG_ID)
        outcome = airflow.wait(samples.DAG_ID, run_id, 300)
        tasks = airflow.task_instances(samples.DAG_ID, run_id)
        ran = {each["task_id"]: regions.get(each["hostname"]) for each in tasks}
        for task, region in ran.items():
            note(f"{task}: ran in {region}")
        note(f"{samples.DAG_ID}: {outcome}")
        if outcome == "success":
            note(json.dumps(airflow.xcom(samples.DAG_ID, run_id, samples.RESULT_TASK)))
    return outcome == "success" and ran == samples.REGION_OF_DATA


if __name__ == "__main__":
    sys.exit(main())
