"""The demo with every worker in its container, from images pulled by digest: ``demo_images.py DIST``.

Adds a derived image to a copy of what `airbridge-ci build` left in DIST and publishes it to a registry on this machine, starts
the local platform without workers, runs one worker container a region (read-only root, no capabilities, the image's own user)
and one of the derived image in a pool of its own, runs the demo's DAG and one that needs the derived image's tool, and lets a
container of the control-plane image serve the UI. Everything is taken down again.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import boto3
import httpx
from containers import (
    ROOT,
    await_true,
    container,
    free_port,
    handed_over,
    publish,
    registry,
    report,
    run,
    worker,
)

from airbridge.control_plane import samples
from airbridge.control_plane.local import demo, overview
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.services import aws
from airbridge.control_plane.local.services.airflow_rest import AirflowRest

REGIONS = ("us-east-1", "eu-west-1")
RECIPE = "images/derived/tools.Dockerfile"
TOOLS = "tools"
# Region, pool and image of each worker.
WORKERS = (
    *((region, "default", "edge-worker") for region in REGIONS),
    ("eu-west-1", TOOLS, TOOLS),
)
TOOLS_DAG = """
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import dag


@dag(schedule=None)
def tools():
    with_it = BashOperator(task_id="with_it", queue="tools@eu-west-1", bash_command="jq --version")
    without = BashOperator(task_id="without", queue="default@eu-west-1", bash_command="! command -v jq && echo none")
    with_it >> without


tools()
"""


def all_workers(directory: StateDir) -> list[dict[str, Any]]:
    """Every pool's worker; nothing until all are there."""
    listed = json.loads(run("airbridge", "worker", "list", "--dir", directory.root, "--json"))
    found = list(listed["workers"] if isinstance(listed, dict) else listed)
    return found if len(found) == len(WORKERS) else []


def with_tools(dist: Path, folder: Path) -> Path:
    """A copy of a build, with the derived image added to it. Files that are written again are not shared."""

    def copy(source: str, target: str) -> None:
        if source.endswith("part.json") or Path(source).parent == dist:
            shutil.copyfile(source, target)
        else:
            os.link(source, target)

    shutil.copytree(dist, folder, copy_function=copy)
    run("airbridge-ci", "build", RECIPE, "--from", folder, "--root", ROOT)
    return folder


def run_tools(platform: dict[str, Any]) -> bool:
    """Run a tool of the derived image in its pool; the same region's default pool, on the platform's image, must not have it."""
    with AirflowRest(platform["ui_url"]) as airflow:
        airflow.wait_for_dag("tools")
        airflow.unpause("tools")
        run_id = airflow.trigger("tools")
        outcome = airflow.wait("tools", run_id)
        for task in ("with_it", "without"):
            print(f"tools.{task}: {airflow.xcom('tools', run_id, task)}")
    return outcome == "success"


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
    near = all(row.ran_near_data and (row.worker or "").endswith("-container") for row in rows)
    return outcome == "success" and near


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
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="airbridge-demo-images-")))
        address = stack.enter_context(registry(folder))
        report("adding a derived image")
        references = publish(with_tools(dist, folder / "with-tools"), address, folder)
        directory = StateDir(folder / "platform")
        directory.make()
        shutil.copytree(samples.dags_folder(), directory.dags)
        (directory.dags / "tools.py").write_text(TOOLS_DAG)
        report("starting the platform without workers")
        admitted = ",".join(references[name].partition("@")[2] for name in ("edge-worker", TOOLS))
        up = run(
            "airbridge", "up", "--dir", directory.root, "--workers-per-region", "0", "--detach", "--json",
            "--airflow", f"airbridge.worker_images={admitted}",
            "--region", "us-east-1", "--region", f"eu-west-1:default,{TOOLS}",
        )  # fmt: skip
        stack.callback(run, "airbridge", "down", "--dir", directory.root)
        platform = json.loads(up)
        report("starting a worker container in each pool")
        for region, pool, image in WORKERS:
            stack.enter_context(
                worker(
                    directory,
                    folder / "workers",
                    references[image],
                    region=region,
                    name=f"{region}-{pool}-container",
                    pool=pool,
                )
            )
        listed = await_true("a worker in each pool", lambda: all_workers(directory))
        for entry in listed:
            print(f"worker {entry['id']}: {entry['state']}, image {entry['versions'].get('image')}")
        report("running the DAGs")
        ran = run_dag(platform, directory) and run_tools(platform)
        report("serving the UI from the control-plane image")
        served = serve_ui(references["control-plane"], directory, folder)
        report("taking everything down")
    print("every task ran in a container beside its data" if ran else "NOT as it should be")
    return 0 if ran and served else 1


if __name__ == "__main__":
    sys.exit(main())
