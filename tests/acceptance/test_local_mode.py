"""Local mode as a supervisor: one platform a directory, what dies comes back, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.support.platform import LocalPlatform, running, wait_for

from airbridge.control_plane.airflow_settings import AT_CREATION

AIRBRIDGE = [sys.executable, "-m", "airbridge.control_plane.cli"]


@pytest.fixture(scope="module")
def local() -> Iterator[LocalPlatform]:
    """A platform that these tests may ill-treat; the last one kills it."""
    with running() as started:
        yield started


def airbridge(platform: LocalPlatform, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AIRBRIDGE, *words, "--dir", str(platform.directory.root)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def processes_of(platform: LocalPlatform) -> list[psutil.Process]:
    """Every process that has the state directory in its environment, its command line or as its working directory."""
    root = str(platform.directory.root)
    found = []
    for process in psutil.process_iter():
        try:
            told = [process.cwd(), *process.cmdline(), *process.environ().values()]
        except (psutil.Error, OSError):  # ended while it was looked at
            continue
        if any(root in word for word in told) and process.pid != os.getpid():
            found.append(process)
    return found


def test_status_names_every_component_and_region(local: LocalPlatform) -> None:
    """`status --json` has each component ready with its pid, and a live worker in each region."""
    told = json.loads(airbridge(local, "status", "--json").stdout)
    phases = {c["name"]: c["phase"] for c in told["platform"]["components"]}
    assert set(phases.values()) <= {"ready", "done"}
    assert {"postgres", "aws", "api-server", "scheduler", "dag-processor", "triggerer", "gateway"} <= set(
        phases
    )
    alive = {
        row["name"]: sum(sum(pool["workers"].values()) for pool in row["pools"]) for row in told["regions"]
    }
    assert alive == {
        "us-east-1": 1,
        "eu-west-1": 1,
    }


def test_the_default_pool_holds_a_whole_fleet(local: LocalPlatform) -> None:
    """Airflow makes it with its database: with the slots that are recommended, not with its own 128."""
    slots = {f"{setting.section}.{setting.option}": setting.value for setting in AT_CREATION}
    made = local.query("SELECT slots FROM slot_pool WHERE pool = 'default_pool'")
    assert [(int(slots["core.default_pool_task_slot_count"]),)] == made


def test_everything_listens_on_loopback_only(local: LocalPlatform) -> None:
    """No component accepts a connection from another machine."""
    listening = {
        (connection.laddr.ip, process.name())
        for process in processes_of(local)
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {ip for ip, _ in listening} == {"127.0.0.1"}


def test_a_second_up_is_refused_with_the_pid(local: LocalPlatform) -> None:
    """The directory has an owner, and the refusal names it and what to do."""
    refused = airbridge(local, "up")
    assert refused.returncode == 3
    assert f"process {local.state.pid}" in refused.stderr
    assert "airbridge down" in refused.stderr


@pytest.mark.parametrize("name", ["gateway", "worker-eu-west-1-default-1", "scheduler", "aws", "postgres"])
def test_a_killed_component_comes_back(local: LocalPlatform, name: str) -> None:
    """After kill -9 it is started again, with another pid, and everything is ready."""
    local.wait_ready()
    restarts = local.component(name).restarts
    killed = local.kill(name)
    wait_for(lambda: local.component(name).restarts > restarts, f"{name} to be started again", 30)
    local.wait_ready(120)
    assert local.pid(name) != killed


def test_after_all_that_a_dag_still_runs(local: LocalPlatform) -> None:
    """Queues, workers and scheduler are of use again, not just alive."""
    local.add_dag("still", _DAG)
    run = local.run("still", timeout_seconds=240)
    assert run.state == "success"
    assert {region for region, _ in local.places(run).values()} == {"us-east-1", "eu-west-1"}


def test_a_killed_supervisor_leaves_nothing_behind(local: LocalPlatform) -> None:
    """kill -9 of the supervisor ends every process of the platform; the directory is free again."""
    pid = local.state.pid
    assert len(processes_of(local)) > 8
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not processes_of(local), "every process to be gone", 30)
    assert airbridge(local, "status").returncode == 3


def test_down_ends_everything(tmp_path: Path) -> None:
    """`down` returns when every process is gone; a second one says that nothing runs."""
    with running(workers_per_region=0) as platform:
        assert airbridge(platform, "down").returncode == 0
        assert processes_of(platform) == []
        assert airbridge(platform, "down").returncode == 3


_DAG = """
from datetime import UTC, datetime

from airbridge.executor import near
from airflow.sdk import dag, task


@dag(schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False)
def still():
    for region in ("us-east-1", "eu-west-1"):

        @task(task_id=region, executor_config=near(f"region:{region}"))
        def work() -> int:
            return 1

        work()


still()
"""
