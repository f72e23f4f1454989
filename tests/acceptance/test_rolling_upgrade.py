"""Versions side by side: a fleet is upgraded while it works; versions outside the matrix get no work and log the reason."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pytest
from tests.support.platform import LocalPlatform, running, wait_for

from airbridge.control_plane.local.services import aws

HERE = "eu-west-1"
THERE = "us-east-1"
NOW = version("airbridge-edge-worker")
BEFORE = "0.0.9"
FOREIGN = "9.9.9"

ENTRY = """
[[compatible]]
control_plane = "=={now}"
worker = "=={worker}"
protocol = [1]
airflow = "==3.0.4"
task_sdk = "==1.0.4"
python = ">=3.11,<3.13"
"""

DAG = """
from datetime import datetime
import time
from airflow.sdk import DAG, task

with DAG("{name}", schedule=None, start_date=datetime(2026, 1, 1), catchup=False, max_active_tasks=200) as dag:

    @task(queue="{queue}")
    def work(number):
        time.sleep({seconds})
        return number

    work.expand(number=list(range({count})))
"""


def matrix(*workers: str) -> str:
    """A matrix that allows these worker versions with today's control plane."""
    return "schema = 1\n" + "".join(ENTRY.format(now=NOW, worker=worker) for worker in workers)


@dataclass(frozen=True)
class Agent:
    """A worker process that this test started."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def output(self) -> str:
        """The agent's log so far."""
        return self.log.read_text(errors="replace")


@dataclass(frozen=True)
class Fleet:
    """A platform without workers of its own, its matrix, and a folder for the workers that a test starts."""

    platform: LocalPlatform
    matrix: Path
    folder: Path

    def allow(self, *workers: str) -> None:
        """Change the matrix; the gateway reads it when it starts."""
        self.matrix.write_text(matrix(*workers), encoding="utf-8")
        self.platform.kill("gateway")
        self.platform.wait_ready()

    @contextmanager
    def worker(self, name: str, region: str, runs: str) -> Iterator[Agent]:
        """Run a worker that reports this version of AirBridge."""
        # A second attempt of a test gets workers of its own.
        again = sum(1 for _ in self.folder.glob(f"{name}*"))
        name = f"{name}-again-{again}" if again else name
        home = self.folder / name
        (home / "says" / f"airbridge_edge_worker-{runs}.dist-info").mkdir(parents=True)
        (home / "says" / f"airbridge_edge_worker-{runs}.dist-info" / "METADATA").write_text(
            f"Metadata-Version: 2.3\nName: airbridge-edge-worker\nVersion: {runs}\n", encoding="utf-8"
        )
        (home / "join.token").write_text(self._token(region), encoding="utf-8")
        with (home / "log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "airbridge.edge_worker.cli", "run"],
                env=self._environment(name, region, home),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Agent(name, process, home / "log")
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                process.send_signal(signal.SIGTERM)
            process.wait(60)

    def _token(self, region: str) -> str:
        with self.platform.operator() as client:
            body = {"token": {"kind": "join", "region": region, "uses": 1}}
            return str(client.post("/operator/v1/tokens", json=body).raise_for_status().json()["token"])

    def _environment(self, name: str, region: str, home: Path) -> dict[str, str]:
        state = self.platform.state
        credentials = {**aws.CREDENTIALS, "AWS_DEFAULT_REGION": region, "AWS_EC2_METADATA_DISABLED": "true"}
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(home),
            "PYTHONPATH": str(home / "says"),
            "AIRBRIDGE_WORKER_GATEWAY_URL": state.gateway_url,
            "AIRBRIDGE_WORKER_CA_FILE": str(self.platform.directory.ca_file),
            "AIRBRIDGE_WORKER_JOIN_TOKEN_FILE": str(home / "join.token"),
            "AIRBRIDGE_WORKER_REGION": region,
            "AIRBRIDGE_WORKER_NAME": name,
            "AIRBRIDGE_WORKER_STATE_DIR": str(home / "state"),
            "AIRBRIDGE_WORKER_SLOTS": "4",
            "AIRBRIDGE_WORKER_TASK_ENV": json.dumps({**credentials, "AWS_ENDPOINT_URL": state.aws_url}),
            **credentials,
        }

    def listed(self) -> dict[str, dict[str, object]]:
        """Return the workers as an operator sees them, by name."""
        with self.platform.operator() as client:
            return {
                row["id"]: row
                for row in client.get("/operator/v1/workers").raise_for_status().json()["workers"]
            }

    def await_active(self, name: str) -> None:
        """Wait until a worker has enrolled and sent a heartbeat."""
        wait_for(
            lambda: self.listed().get(name, {}).get("last_heartbeat_at") is not None,
            f"{name} to be active",
            120,
        )

    def drain(self, name: str) -> None:
        """Order a worker to finish the work that it holds."""
        with self.platform.operator() as client:
            client.post(f"/operator/v1/workers/{name}/drain", json={"comment": "upgrade"}).raise_for_status()

    def add_dag(self, name: str, queue: str, count: int, seconds: float) -> None:
        """A DAG of like tasks on one region's queue."""
        self.platform.add_dag(name, DAG.format(name=name, queue=queue, count=count, seconds=seconds))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A control plane of today whose matrix allows workers of today and of the version before."""
    folder = tmp_path_factory.mktemp("fleet")
    file = folder / "compatibility.toml"
    file.write_text(matrix(NOW, BEFORE), encoding="utf-8")
    with running(workers_per_region=0, airflow={"airbridge.compatibility_file": str(file)}) as platform:
        yield Fleet(platform, file, folder)


def workers_of(fleet: Fleet, run: object) -> set[str | None]:
    """Return the workers that ran the tasks of a run."""
    return {worker for _, worker in fleet.platform.places(run).values()}  # type: ignore[arg-type]


@pytest.mark.slow("make test SLOW=1, every night")
def test_fleet_upgrade_fails_no_task(fleet: Fleet) -> None:
    """n-1 workers under an n control plane; n workers join, the old ones drain; no task fails or is tried twice."""
    fleet.add_dag("upgrade", HERE, count=120, seconds=2)
    with ExitStack() as stack:
        old = [stack.enter_context(fleet.worker(f"old-{n}", HERE, BEFORE)) for n in (1, 2)]
        for agent in old:
            fleet.await_active(agent.name)
        run_id = fleet.platform.trigger("upgrade")

        def some_done() -> bool:
            states = [ti["state"] for ti in fleet.platform.airflow.task_instances("upgrade", run_id)]
            return states.count("success") >= 5

        wait_for(some_done, "the old workers to have run some tasks", 120)
        for n, retired in enumerate(old, start=1):
            young = stack.enter_context(fleet.worker(f"new-{n}", HERE, NOW))
            fleet.await_active(young.name)
            fleet.drain(retired.name)
        run = fleet.platform.finish("upgrade", run_id, 240)
        versions = {name: row["versions"]["airbridge"] for name, row in fleet.listed().items()}  # type: ignore[index]
    assert run.state == "success"
    assert set(run.states().values()) == {"success"}
    assert {ti["try_number"] for ti in run.tasks} == {1}
    assert {versions[str(name)] for name in workers_of(fleet, run)} == {BEFORE, NOW}


def test_incompatible_worker_cannot_enrol(fleet: Fleet) -> None:
    """It ends with the exit code of a refusal, and its log names the wrong version and the required one."""
    with fleet.worker("foreign", HERE, FOREIGN) as agent:
        assert agent.process.wait(90) == 3
        assert f"AirBridge is {FOREIGN}, must be" in agent.output
    assert "foreign" not in fleet.listed()


def test_newly_incompatible_worker_gets_no_work(fleet: Fleet) -> None:
    """The matrix moves on under an enrolled worker: its claims are refused with the reason, and another one does the work."""
    fleet.add_dag("outside", THERE, count=6, seconds=0.1)
    with ExitStack() as stack:
        outside = stack.enter_context(fleet.worker("left-behind", THERE, BEFORE))
        fleet.await_active(outside.name)
        fleet.allow(NOW)
        run_id = fleet.platform.trigger("outside")
        wait_for(
            lambda: f"AirBridge is {BEFORE}, must be" in outside.output,
            "the refusal to be in the worker's log",
            90,
        )
        states = {ti["state"] for ti in fleet.platform.airflow.task_instances("outside", run_id)}
        assert "success" not in states
        young = stack.enter_context(fleet.worker("up-to-date", THERE, NOW))
        run = fleet.platform.finish("outside", run_id, 180)
    assert run.state == "success"
    assert workers_of(fleet, run) == {young.name}
    assert {ti["try_number"] for ti in run.tasks} == {1}
    refusals = fleet.platform.query(
        "SELECT count(*) FROM airbridge_audit WHERE detail::text LIKE '%%must be%%'"
    )
    assert refusals[0][0] > 0
