"""The environments of the local rollout: each an emulated AWS with the stacks applied, a control plane, and what starts instances."""

from __future__ import annotations

import base64
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
from containers import ROOT, await_true, free_port, report, run, worker

from airbridge.ci.checkout import Checkout
from airbridge.ci.release import pins
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.services.airflow_rest import AirflowRest
from airbridge.control_plane.operator_client import Endpoint, OperatorClient

HOME = "us-east-1"
TRAFFIC = """
from datetime import datetime
import time
from airflow.sdk import DAG, task

with DAG("traffic", schedule=None, start_date=datetime(2026, 1, 1), max_active_runs=4) as dag:
    for queue in {queues}:

        @task(task_id=queue.replace("@", "-at-"), queue=queue)
        def work():
            time.sleep(1)

        work()
"""
_IMAGE = re.compile(r"edge-worker@(sha256:[0-9a-f]{64})")
_POOL = re.compile(r"^AIRBRIDGE_WORKER_POOL=(\S+)$", re.MULTILINE)


def program(
    *words: str | Path, cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command that may fail: its last words are shown, and all of them if it failed."""
    command = [str(word) for word in words]
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | (env or {}), capture_output=True, text=True, check=False
    )
    said = (done.stdout + done.stderr).strip().splitlines()
    for line in said if done.returncode else said[-8:]:
        print(f"            {line[:220]}", file=sys.stderr, flush=True)
    return done


@dataclass
class Place:
    """One environment: its emulated AWS, its control plane, and what starts instances."""

    name: str
    # The clone whose releases and environments these are.
    root: Path
    folder: Path
    port: int = field(default_factory=free_port)
    clients: dict[tuple[str, str], Any] = field(default_factory=dict)

    @property
    def pins(self) -> pins.Pins:
        return pins.load(Checkout(self.root), self.name)

    @property
    def regions(self) -> tuple[str, ...]:
        return self.pins.regions

    @property
    def account(self) -> str:
        """The stacks refuse to be applied to any other."""
        return str(self.pins.source.toml["account"])

    @property
    def variables(self) -> dict[str, str]:
        """Return the environment in which cdktf, Terraform and boto3 reach this environment's AWS."""
        return {
            "AIRBRIDGE_ENV": self.name,
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": HOME,
            "AWS_MAX_ATTEMPTS": "2",
            "AWS_EC2_METADATA_DISABLED": "true",
            "CDKTF_SKIP_PROVIDER_LOCK": "true",
            "CDKTF_OUTPUT": str(self.folder / "cdktf.out"),
            "CI": "true",
            "CHECKPOINT_DISABLE": "1",
        }

    @property
    def directory(self) -> StateDir:
        return StateDir(self.folder / "platform")

    @property
    def options(self) -> tuple[str | Path, ...]:
        """Return the variables that name this environment's control plane to `airbridge-ci`."""
        platform = json.loads(self.directory.platform_file.read_text())
        return (
            "--url", platform["operator_url"], "--token-file", self.folder / "token", "--ca", self.directory.ca_file,
            "--airflow-url", platform["ui_url"], "--airflow-token-file", self.folder / "airflow-token",
        )  # fmt: skip

    def client(self, service: str, region: str) -> Any:
        if (service, region) not in self.clients:
            self.clients[service, region] = boto3.client(
                service,
                region_name=region,
                endpoint_url=self.variables["AWS_ENDPOINT_URL"],
                aws_access_key_id="test",
                aws_secret_access_key="test",  # noqa: S106  # the emulator takes any
            )
        return self.clients[service, region]

    def apply(self) -> None:
        """Bootstrap once: create the state's bucket with local state, move the state in, then deploy every stack."""
        infra = self.root / "infra"
        deploy = ("npx", "--no-install", "cdktf", "deploy", "--auto-approve")
        local = self.variables | {"AIRBRIDGE_STATE": "local"}
        edges = tuple(f"edge-{region}" for region in self.regions)
        steps = (
            ((*deploy, "bootstrap"), local),
            ((*deploy, "--migrate-state", "bootstrap"), self.variables),
            ((*deploy, "foundation"), self.variables),
            (self._secrets("fill", "--directory", self._keys()), self.variables),
            ((*deploy, "control-plane"), self.variables),
            ((*deploy, *edges), self.variables),
            (self._secrets("publish"), self.variables),
        )
        for words, env in steps:
            report(f"{self.name}: {' '.join(str(word) for word in words[2:])}")
            if program(*words, cwd=infra, env=env).returncode:
                sys.exit(f"{self.name}: {words[-1]} could not be applied")

    def _secrets(self, step: str, *options: str | Path) -> tuple[str | Path, ...]:
        """Return the command that fills secrets or publishes the certificate, as a person runs it between the stacks."""
        python = ROOT / "infra/.venv/bin/python"
        return (python, "-m", "airbridge.infra.tools.secrets", step, "--environment", self.name, *options)

    def _keys(self) -> Path:
        """Return a directory of files as `airbridge init` makes them, none of which is a key: the platform has its own."""
        folder = self.folder / "keys"
        folder.mkdir(exist_ok=True)
        names = ("ca.crt", "ca.key", "signing.key", "signing.pub.json", "token.key", "publish.key", "publish.pub.json", "ui-oidc.secret")  # fmt: skip
        for name in names:
            (folder / name).write_text(f"{name} of an emulator\n")
        return folder

    def wanted(self, region: str) -> dict[str, str]:
        """The digest that each pool's deployed launch template names, by pool."""
        found = {}
        groups = self.client("autoscaling", region).describe_auto_scaling_groups()["AutoScalingGroups"]
        for group in groups:
            named = group["MixedInstancesPolicy"]["LaunchTemplate"]["LaunchTemplateSpecification"]
            versions = self.client("ec2", region).describe_launch_template_versions(
                LaunchTemplateId=named["LaunchTemplateId"], Versions=[str(named["Version"])]
            )
            script = base64.b64decode(
                versions["LaunchTemplateVersions"][0]["LaunchTemplateData"]["UserData"]
            ).decode()
            if (image := _IMAGE.search(script)) and (pool := _POOL.search(script)):
                found[pool[1]] = image[1]
        return found

    def operators(self) -> OperatorClient:
        """A client of the control plane's API for operators."""
        url = json.loads(self.directory.platform_file.read_text())["operator_url"]
        token = (self.folder / "token").read_text()
        return OperatorClient(Endpoint(url, self.directory.ca_file, token))


@contextmanager
def emulator(place: Place) -> Iterator[None]:
    python = ROOT / "infra/.venv/bin/python"
    command = [str(python), "-m", "airbridge.infra.emulator", "--port", str(place.port)]
    with (place.folder / "emulator.log").open("wb") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, env=os.environ | {"MOTO_ACCOUNT_ID": place.account}
        )
    try:
        url = place.variables["AWS_ENDPOINT_URL"]
        await_true("the emulator", lambda: httpx.get(f"{url}/moto-api/").is_success)
        yield
    finally:
        process.terminate()
        process.wait()


@contextmanager
def platform(place: Place, pools: dict[str, list[str]]) -> Iterator[None]:
    """The environment's control plane, without workers; a token for the rollout."""
    place.directory.make()
    place.directory.dags.mkdir()
    queues = [
        region if pool == "default" else f"{pool}@{region}" for region in pools for pool in pools[region]
    ]
    (place.directory.dags / "traffic.py").write_text(TRAFFIC.format(queues=queues))
    first = {HOME: ["default"]} | pools
    regions = [word for region in first for word in ("--region", f"{region}:{','.join(first[region])}")]
    where = ("--dir", place.directory.root)
    run("airbridge", "up", *where, *regions, "--workers-per-region", "0", "--detach", "--json")
    try:
        scopes = ("--scope", "workers:read", "--scope", "workers:drain")
        made = json.loads(
            run("airbridge", "token", "create", "--owner", "rollout", *scopes, *where, "--json")
        )
        (place.folder / "token").write_text(made["token"])
        yield
    finally:
        run("airbridge", "down", *where)


class Loop:
    """Something done again and again beside the rollout, until the end."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Loop:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(120)
        self.close()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            try:
                self.step()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - one bad round is not the end; it is shown
                report(f"{type(self).__name__}: {error}")

    def step(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        """Let go of everything."""


class Instances(Loop):
    """EC2 and the autoscaling groups: an instance a pool, on what its launch template names; a drained one of before ends."""

    def __init__(self, place: Place, references: dict[str, str]) -> None:
        super().__init__(2.0)
        self.place, self.references = place, references
        self.running: dict[str, ExitStack] = {}
        self.count = 0

    def step(self) -> None:
        with self.place.operators() as operators:
            known = {row["id"]: row for row in operators.get("workers")["workers"]}
        for region in self.place.regions:
            for pool, digest in self.place.wanted(region).items():
                name = f"{self.place.name}-{region}-{pool}-{digest[7:13]}"
                alive = [n for n in self.running if n.startswith(f"{name}-")]
                draining = [n for n in alive if known.get(n, {}).get("wanted", "active") != "active"]
                if digest in self.references and len(alive) == len(draining):
                    self._start(f"{name}-{self.count}", region, pool, self.references[digest])
        for name in [n for n in self.running if known.get(n, {}).get("wanted", "active") != "active"]:
            if known[name]["slots_used"] == 0:
                report(f"instance {name} has drained and ends")
                self.running.pop(name).close()

    def _start(self, name: str, region: str, pool: str, reference: str) -> None:
        self.count += 1
        report(f"instance {name} starts")
        stack = ExitStack()
        folder = self.place.folder / "instances"
        stack.enter_context(
            worker(self.place.directory, folder, reference, region=region, name=name, pool=pool)
        )
        self.running[name] = stack

    def close(self) -> None:
        for stack in self.running.values():
            stack.close()


class Traffic(Loop):
    """A run of tasks in every pool, again and again."""

    def __init__(self, place: Place) -> None:
        super().__init__(6.0)
        url = json.loads(place.directory.platform_file.read_text())["ui_url"]
        self.airflow = AirflowRest(url)
        self.airflow.__enter__()
        self.airflow.wait_for_dag("traffic")
        self.airflow.unpause("traffic")
        token = httpx.get(f"{url}/auth/token").json()["access_token"]
        (place.folder / "airflow-token").write_text(token)

    def step(self) -> None:
        self.airflow.trigger("traffic")

    def close(self) -> None:
        self.airflow.__exit__(None, None, None)


def open_environments(
    root: Path, folder: Path, references: dict[str, str], stack: ExitStack, count: int
) -> list[Place]:
    """The first of the three, each without a release yet, until the stack is closed. Their stacks are applied at the same time."""
    places = [Place(name, root, folder / name) for name in ("dev", "staging", "prod")[:count]]
    for place in places:
        place.folder.mkdir()
        stack.enter_context(emulator(place))
    with ThreadPoolExecutor() as pool:
        applied = [pool.submit(place.apply) for place in places]
        for place in places:
            _start_platform(place, stack)
        for each in applied:
            each.result()
    for place in places:
        stack.enter_context(Instances(place, references))
        stack.enter_context(Traffic(place))
    return places


def _start_platform(place: Place, stack: ExitStack) -> None:
    report(f"{place.name}: control plane")
    regions = place.pins.source.toml["region"]
    stack.enter_context(
        platform(place, {region["name"]: [pool["name"] for pool in region["pool"]] for region in regions})
    )
