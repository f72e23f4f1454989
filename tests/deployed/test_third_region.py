"""A region more, by one entry, while the others work; and away again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.deployed.conftest import DIRECTORY, INFRA, infra
from tests.support.platform import LocalPlatform, wait_for

from airbridge.control_plane.local.services import credentials, terraform

NEW = "ap-southeast-2"
ENTRY = f"""
[[region]]
name = "{NEW}"
cidr = "10.3.0.0/16"
zones = ["az1", "az2"]

[[region.pool]]
name = "default"
instance_types = ["m7g.large"]
slots = 4
max_instances = 4
"""
HOME = ("foundation", "control-plane")
WIRING = {
    "aws_cloudwatch_dashboard",
    "aws_ecs_service",
    "aws_ecs_task_definition",
    "aws_vpc_endpoint_service",
}
DAG = """
from datetime import UTC, datetime
import time
from airflow.sdk import dag, task

@dag(schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False)
def {name}():
    @task(queue="{queue}")
    def work(number):
        time.sleep(2)
        return number

    work.expand(number=list(range({count})))

{name}()
"""


@pytest.fixture(scope="module")
def environments(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The environments, and one entry more in `local`."""
    folder = tmp_path_factory.mktemp("environments")
    for file in (INFRA / "environments").glob("*.toml"):
        shutil.copy(file, folder)
    with (folder / "local.toml").open("a") as file:
        file.write(ENTRY)
    return folder


@contextmanager
def worker(platform: LocalPlatform, deployed: terraform.Deployed, folder: Path) -> Iterator[None]:
    """A worker of the new region under its role."""
    with platform.operator() as client:
        body = {"token": {"kind": "join", "region": NEW, "uses": 1}}
        token = str(client.post("/operator/v1/tokens", json=body).raise_for_status().json()["token"])
    (folder / "join.token").write_text(token)
    given = credentials.assume(deployed.endpoint_url, deployed.worker_roles[NEW, "default"])
    role = {
        "AWS_ACCESS_KEY_ID": given["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": given["SecretAccessKey"],
        "AWS_SESSION_TOKEN": given["Token"],
        "AWS_DEFAULT_REGION": NEW,
    }
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "AIRBRIDGE_WORKER_GATEWAY_URL": platform.state.gateway_url,
        "AIRBRIDGE_WORKER_CA_FILE": str(platform.directory.ca_file),
        "AIRBRIDGE_WORKER_JOIN_TOKEN_FILE": str(folder / "join.token"),
        "AIRBRIDGE_WORKER_REGION": NEW,
        "AIRBRIDGE_WORKER_NAME": "new-1",
        "AIRBRIDGE_WORKER_STATE_DIR": str(folder / "state"),
        "AIRBRIDGE_WORKER_TASK_ENV": json.dumps({**role, "AWS_ENDPOINT_URL": deployed.endpoint_url}),
        **role,
    }
    with (folder / "worker.log").open("wb") as log:
        command = [sys.executable, "-m", "airbridge.edge_worker.cli", "run"]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (folder / "worker.log").read_text()[-2000:]


def replace_services(platform: LocalPlatform) -> None:
    """Restart each service that reads the catalogue, one after the other, as ECS does when it changes."""
    shutil.copy(DIRECTORY / terraform.CATALOGUE, platform.directory.regions_file)
    for name in ("scheduler", "gateway", "dag-processor", "api-server"):
        restarts = platform.component(name).restarts
        platform.kill(name, signal.SIGTERM)
        wait_for(lambda name=name, past=restarts: platform.component(name).restarts > past, f"{name} to be replaced")  # type: ignore[misc]  # fmt: skip
        platform.wait_ready(120)


@pytest.mark.timeout(1800)
def test_a_third_region_is_one_entry(platform: LocalPlatform, environments: Path, tmp_path: Path) -> None:
    """The diff is its stack and the named wiring; it deploys and takes work while the others run; it goes alone."""
    changes: dict[str, dict[str, Any]] = json.loads(infra("diff", environments=environments))
    assert {"create"} == set(changes[f"edge-{NEW}"].values())
    assert {("update", "aws_ecr_replication_configuration")} == {
        (what, address.split(".")[0]) for address, what in changes["foundation"].items()
    }
    others = {name: found for name, found in changes.items() if name not in {f"edge-{NEW}", *HOME}}
    assert {name: {} for name in ("bootstrap", "edge-us-east-1", "edge-eu-west-1")} == others
    kinds = {(what, address.split(".")[0]) for address, what in changes["control-plane"].items()}
    created = ("aws_cloudwatch_metric_alarm", "aws_vpc_security_group_ingress_rule")
    assert {*(("update", kind) for kind in WIRING), *(("create", kind) for kind in created)} == kinds

    for region in ("us-east-1", "eu-west-1"):
        name = f"goes_on_{region.replace('-', '_')}"
        platform.add_dag(name, DAG.format(name=name, queue=region, count=200))
    platform.add_dag("newcomer", DAG.format(name="newcomer", queue=NEW, count=8))
    runs = {name: platform.trigger(name) for name in ("goes_on_us_east_1", "goes_on_eu_west_1")}
    try:
        infra("deploy", *HOME, f"edge-{NEW}", environments=environments)
        replace_services(platform)
        with worker(platform, terraform.read(DIRECTORY), tmp_path):
            run = platform.run("newcomer", timeout_seconds=300)
        assert run.state == "success"
        assert {place for place, _ in platform.places(run).values()} == {NEW}
        for name, run_id in runs.items():
            went_on = platform.finish(name, run_id, 600)
            assert set(went_on.states().values()) == {"success"}
            assert {task["try_number"] for task in went_on.tasks} == {1}
    finally:
        infra("destroy", f"edge-{NEW}", environments=environments)
        infra("deploy", *HOME)
    assert {} == {name: found for name, found in json.loads(infra("diff")).items() if found}
