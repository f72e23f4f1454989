"""The demo with every worker in its container, from images pulled by digest: ``demo_images.py DIST``.

Publishes what `airbridge-ci build` left in DIST to a registry on this machine, starts the local platform without workers,
runs one worker container a region (read-only root, no capabilities, the image's own user), runs the demo's DAG, and lets a
container of the control-plane image serve the UI. Everything is taken down again.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import boto3
import httpx

from airbridge.control_plane import samples
from airbridge.control_plane.local import aws, demo, overview
from airbridge.control_plane.local.airflow_rest import AirflowRest
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options

REGIONS = ("us-east-1", "eu-west-1")
USER = 10001
ROOT = Path(__file__).resolve().parents[2]
HARDENED = (
    "--read-only", "--tmpfs", "/tmp:rw,mode=1777",  # noqa: S108  # the container's own
    "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
    "--network", "host", "--user", f"{USER}:{USER}", "--log-driver", "k8s-file",
)  # fmt: skip


def say(text: str) -> None:
    print(f"{time.monotonic() - BEGUN:6.1f} s  {text}", file=sys.stderr, flush=True)


def run(*words: str | Path) -> str:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{words[0]} {words[1] if len(words) > 1 else ''} failed:\n{done.stdout}{done.stderr}")
    return done.stdout.strip()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def await_true(what: str, check: Any, seconds: float = 180.0) -> Any:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        with suppress(httpx.HTTPError, OSError, ValueError):
            if found := check():
                return found
        time.sleep(0.5)
    sys.exit(f"{what}: not within {seconds:.0f} s")


@contextmanager
def registry(folder: Path) -> Iterator[str]:
    address = f"127.0.0.1:{free_port()}"
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "registry")}},
        "http": {"addr": address},
    }
    (folder / "registry.yml").write_text(json.dumps(config))
    with (folder / "registry.log").open("wb") as log:
        command = ["docker-registry", "serve", str(folder / "registry.yml")]
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        await_true("the registry", lambda: httpx.get(f"http://{address}/v2/").is_success)
        yield address
    finally:
        process.terminate()
        process.wait()


def publish(dist: Path, address: str, folder: Path) -> dict[str, str]:
    """Sign, push, check and pull; returns the reference of each image."""
    ci = ("airbridge-ci",)
    (folder / "keys.toml").write_text(run(*ci, "keygen", folder / "release.key", "--owner", "this demo"))
    manifest = shutil.copyfile(dist / "release.json", folder / "release.json")
    run(*ci, "sign", "--key", folder / "release.key", manifest)
    shutil.copytree(dist / "images", folder / "dist" / "images", copy_function=os.link)
    shutil.copytree(dist / "sbom", folder / "dist" / "sbom", copy_function=os.link)
    shutil.copyfile(manifest, folder / "dist" / "release.json")
    where = ("--root", ROOT, "--plain-http", "--keys", folder / "keys.toml")
    published = json.loads(
        run(*ci, "publish", f"{address}/airbridge", "--out", folder / "dist", "--json", *where)
    )
    run(*ci, "verify-published", f"{address}/airbridge", manifest, *where)
    references = {entry["image"]: entry["reference"] for entry in published}
    for reference in references.values():
        say(f"pulling {reference}")
        run("podman", "pull", "--quiet", "--tls-verify=false", reference)
    return references


def handed_over(folder: Path, files: dict[str, str | Path]) -> Path:
    """A folder that belongs to the images' user, with these files in it."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        target = folder / name
        if isinstance(content, Path):
            shutil.copytree(content, target) if content.is_dir() else shutil.copyfile(content, target)
        else:
            target.write_text(content)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, USER, USER)
    folder.chmod(0o700)
    return folder


@contextmanager
def container(name: str, image: str, *options: str | Path, command: tuple[str, ...] = ()) -> Iterator[str]:
    run("podman", "run", "--detach", "--name", name, *HARDENED, *options, image, *command)
    try:
        yield name
    finally:
        run("podman", "stop", "--time", "60", name)
        run("podman", "rm", "--force", "--volumes", name)


@contextmanager
def worker(
    region: str, reference: str, platform: dict[str, Any], directory: StateDir, folder: Path
) -> Iterator[str]:
    token = json.loads(
        run("airbridge", "token", "create", "--region", region, "--dir", directory.root, "--json")
    )["token"]
    given = handed_over(folder / f"worker-{region}", {"join.token": token, "ca.crt": directory.ca_file})
    name = f"airbridge-demo-{region}-{os.getpid()}"
    settings = {
        "AIRBRIDGE_WORKER_GATEWAY_URL": platform["gateway_url"],
        "AIRBRIDGE_WORKER_CA_FILE": "/etc/airbridge/worker/ca.crt",
        "AIRBRIDGE_WORKER_JOIN_TOKEN_FILE": "/etc/airbridge/worker/join.token",
        "AIRBRIDGE_WORKER_REGION": region,
        "AIRBRIDGE_WORKER_NAME": f"{region}-container",
        "AIRBRIDGE_WORKER_IMAGE_DIGEST": reference.partition("@")[2],
        "AIRBRIDGE_WORKER_TASK_ENV": json.dumps(
            {**aws.CREDENTIALS, "AWS_DEFAULT_REGION": region, "AWS_ENDPOINT_URL": platform["aws_url"]}
        ),
        **aws.CREDENTIALS,
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    options = [word for key, value in settings.items() for word in ("--env", f"{key}={value}")]
    volumes = ("--volume", f"{name}:/var/lib/airbridge", "--volume", f"{given}:/etc/airbridge/worker:ro")
    try:
        with container(name, reference, *options, *volumes):
            yield name
    finally:
        run("podman", "volume", "rm", "--force", name)


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
        places = overview.places(directory, samples.DAG_ID, run_id)
        rows = demo.task_rows(airflow.task_instances(samples.DAG_ID, run_id), places)
        for row in rows:
            print(
                f"{row.task:24} data in {row.data_in:10} ran in {row.region:10} on {row.worker}  {row.run} s  {row.state}"
            )
        print(json.dumps(airflow.xcom(samples.DAG_ID, run_id, samples.RESULT_TASK)))
        log = airflow.log(samples.DAG_ID, run_id, samples.LOGGED_TASK)
        print(f"log of {samples.LOGGED_TASK}: {len(log)} lines, the last: {log[-1] if log else 'none'}")
    return outcome == "success" and all(
        row.at_home and (row.worker or "").endswith("-container") for row in rows
    )


def serve_ui(reference: str, directory: StateDir, folder: Path) -> bool:
    """An api-server from the image, on the platform's own configuration; the page and the API must answer."""
    port = free_port()
    given = handed_over(
        folder / "ui", {"airflow": directory.airflow_home, "control-plane": directory.control_plane}
    )
    mounts = (
        "--volume", f"{given / 'airflow'}:{directory.airflow_home}:ro",
        "--volume", f"{given / 'control-plane'}:{directory.control_plane}:ro",
        "--env", f"AIRFLOW_HOME={directory.airflow_home}",
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
        say("starting the platform without workers")
        admitted = references["edge-worker"].partition("@")[2]
        up = run(
            "airbridge", "up", "--dir", directory.root, "--workers-per-region", "0", "--detach", "--json",
            "--airflow", f"airbridge.worker_images={admitted}",
        )  # fmt: skip
        stack.callback(run, "airbridge", "down", "--dir", directory.root)
        platform = json.loads(up)
        say("starting a worker container in each region")
        for region in REGIONS:
            stack.enter_context(worker(region, references["edge-worker"], platform, directory, folder))
        listed = await_true("a worker in each region", lambda: all_workers(directory))
        for entry in listed:
            print(f"worker {entry['id']}: {entry['state']}, image {entry['versions'].get('image')}")
        say("running the DAG")
        ran = run_dag(platform, directory)
        say("serving the UI from the control-plane image")
        served = serve_ui(references["control-plane"], directory, folder)
        say("taking everything down")
    print("every task ran in a container beside its data" if ran else "NOT as it should be")
    return 0 if ran and served else 1


BEGUN = time.monotonic()
if __name__ == "__main__":
    sys.exit(main())
