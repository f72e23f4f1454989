"""The demo with every worker in its container, from images pulled by digest: ``demo_images.py DIST``.

Publishes what `airbridge-ci build` left in DIST to a registry on this machine, starts the local platform without workers,
runs one worker container a region (read-only root, no capabilities, the image's own user), runs the demo's DAG, and lets a
container of the control-plane image serve the UI. Everything is taken down again.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import httpx
from containers import await_true, container, free_port, handed_over, publish, registry, report, run, worker

from airbridge.control_plane import samples
from airbridge.control_plane.local import demo, overview
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.services import aws
from airbridge.control_plane.local.services.airflow_rest import AirflowRest

REGIONS = ("us-east-1", "eu-west-1")


def all_workers(directory: StateDir) -> list[dict[str, Any]]:
    """Every region's worker; nothing until all are there."""
    listed = json.loads(run("airbridge", "worker", "list", "--dir", directory.root, "--json"))
    found = list(listed["workers"] if isinstance(listed, dict) else listed)
    return found if len(found) == len(REGIONS) else []


def run_dag(platform: dict[str, Any], directory: StateDir) -> bool:
    buckets = {region.name: region.data_bucket for region in Options(directory=directory.root).regions}
    for data in samples.data_objects():
        s3 = boto3.client(
            "s3",
            endpoint_url=platform["aws_url"],
            region_name=data.region,
            aws_access_key_id=aws.CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=aws.CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )
        s3.put_object(Bucket=buckets[data.region], Key=data.key, Body=data.path.read_bytes())
    with AirflowRest(platform["ui_url"]) as airflow:
        airflow.wait_for_dag(samples.DAG_ID)
        airflow.unpause(samples.DAG_ID)
        run_id = airflow.trigger(samples.DAG_ID)
        outcome = airflow.wait(samples.DAG_ID, run_id)
        places = overview.task_regions(directory, samples.DAG_ID, run_id)
        rows = demo.task_rows(airflow.task_instances(samples.DAG_ID, run_id), places)
        for row in rows:
            print(
                f"{row.task:24} data in {row.data_in:10} ran in {row.region:10} on {row.worker}  {row.run} s  {row.state}"
            )
        print(json.dumps(airflow.xcom(samples.DAG_ID, run_id, samples.RESULT_TASK)))
        log = airflow.log(samples.DAG_ID, run_id, samples.LOGGED_TASK)
        print(f"log of {samples.LOGGED_TASK}: {len(log)} lines, the last: {log[-1] if log else 'none'}")
    return outcome == "success" and all(
        row.ran_near_data and (row.worker or "").endswith("-container") for row in rows
    )


def serve_ui(reference: str, directory: StateDir, folder: Path) -> bool:
    """An api-server from the image, with the files of the platform's api-server; the page and the API must answer."""
    port = free_port()
    own = directory.service("api-server")
    files: dict[str, str | Path] = {
        "airflow": directory.airflow_home,
        "own": own,
        "regions.toml": directory.regions_file,
    }
    given = handed_over(folder / "ui", files)
    mounts = (
        "--volume", f"{given / 'airflow'}:{directory.airflow_home}:ro",
        "--volume", f"{given / 'own'}:{own}:ro",
        "--volume", f"{given / 'regions.toml'}:{directory.regions_file}:ro",
        "--env", f"AIRFLOW_HOME={directory.airflow_home}",
        "--env", f"AIRFLOW_CONFIG={directory.config_file('api-server')}",
        "--env", f"AIRFLOW__API__BASE_URL=http://127.0.0.1:{port}",
        "--env", "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE=/tmp/passwords.json",
        "--env", "HOME=/tmp",
    )  # fmt: skip
    command = ("airflow", "api-server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1")
    url = f"http://127.0.0.1:{port}"
    with container(f"airbridge-demo-ui-{os.getpid()}", reference, *mounts, command=command):
        health = await_true("the UI's container", lambda: httpx.get(f"{url}/api/v2/monitor/health").json())
        page = httpx.get(f"{url}/", follow_redirects=True)
        print(
            f"UI from the container: {page.status_code}, {len(page.text)} bytes, metadatabase {health['metadatabase']['status']}"
        )
        with AirflowRest(url) as airflow:
            airflow.wait_for_dag(samples.DAG_ID, 30)
        return page.is_success and "<title>Airflow" in page.text


def main() -> int:
    dist = Path(sys.argv[1] if len(sys.argv) > 1 else "dist").resolve()
    if not (dist / "release.json").exists():
        sys.exit(f"{dist}: no build there; make images (BASE=debian where no registry can be reached)")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airbridge-demo-images-")))
        address = stack.enter_context(registry(folder))
        references = publish(dist, address, folder)
        directory = StateDir(folder / "platform")
        directory.make()
        shutil.copytree(samples.dags_folder(), directory.dags)
        report("starting the platform without workers")
        admitted = references["edge-worker"].partition("@")[2]
        up = run(
            "airbridge", "up", "--dir", directory.root, "--workers-per-region", "0", "--detach", "--json",
            "--airflow", f"airbridge.worker_images={admitted}",
        )  # fmt: skip
        stack.callback(run, "airbridge", "down", "--dir", directory.root)
        platform = json.loads(up)
        report("starting a worker container in each region")
        for region in REGIONS:
            name = f"{region}-container"
            stack.enter_context(
                worker(directory, folder / "workers", references["edge-worker"], region=region, name=name)
            )
        listed = await_true("a worker in each region", lambda: all_workers(directory))
        for entry in listed:
            print(f"worker {entry['id']}: {entry['state']}, image {entry['versions'].get('image')}")
        report("running the DAG")
        ran = run_dag(platform, directory)
        report("serving the UI from the control-plane image")
        served = serve_ui(references["control-plane"], directory, folder)
        report("taking everything down")
    print("every task ran in a container beside its data" if ran else "NOT as it should be")
    return 0 if ran and served else 1


if __name__ == "__main__":
    sys.exit(main())
