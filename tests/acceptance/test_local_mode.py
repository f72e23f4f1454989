"""Local mode as a supervisor: one platform a directory, what dies comes back, nothing is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from tests.support.platform import LocalPlatform, running, wait_for
from tests.support.wheels import Index

from airbridge.control_plane.airflow_settings import AT_CREATION

_TINY = """
from datetime import datetime
import tiny
from airflow.sdk import DAG, task

with DAG("{dag_id}", schedule=None, start_date=datetime(2025, 1, 1), tags=[tiny.VERSION]):
    @task
    def version():
        return tiny.VERSION
    version()
"""

AIRBRIDGE = [sys.executable, "-m", "airbridge.control_plane.cli"]


@pytest.fixture(scope="module")
def local(plain_platform: LocalPlatform) -> LocalPlatform:
    """The plain platform, which these tests may break: they are the last that use it, and kill it in the end."""
    return plain_platform


def airbridge(platform: LocalPlatform, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AIRBRIDGE, *words, "--dir", str(platform.directory.root)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def build_environment(dags: Path, scratch: Path) -> Path:
    """Build the packages of a folder as a CI job does that has an index of its own."""
    index = Index(scratch / "ci-index")
    index.add("tiny", "3.0")
    settings = {
        "AIRFLOW__AIRBRIDGE__PACKAGE_INDEX": "none",
        "AIRFLOW__AIRBRIDGE__PACKAGE_FIND_LINKS": str(index.folder),
    }
    command = [*AIRBRIDGE, "env", "build", str(dags), "--out", str(scratch / "built")]
    subprocess.run(command, check=True, timeout=300, env={**os.environ, **settings})
    return scratch / "built"


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


def test_default_pool_size(local: LocalPlatform) -> None:
    """The default pool has the recommended number of slots, not Airflow's own 128."""
    slots = {f"{setting.section}.{setting.option}": setting.value for setting in AT_CREATION}
    made = local.query("SELECT slots FROM slot_pool WHERE pool = 'default_pool'")
    assert [(int(slots["core.default_pool_task_slot_count"]),)] == made


def test_everything_listens_on_loopback_only(local: LocalPlatform) -> None:
    """No component accepts a connection from another machine."""
    listening = {ip for process in processes_of(local) for ip in _listens_on(process)}
    assert listening == {"127.0.0.1"}


def _listens_on(process: psutil.Process) -> set[str]:
    try:
        connections = process.net_connections("inet")
    except psutil.NoSuchProcess:  # it ended since it was listed
        return set()
    return {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}


def test_second_up_is_refused(local: LocalPlatform) -> None:
    """The directory has an owner, and the refusal names it and what to do."""
    refused = airbridge(local, "up")
    assert refused.returncode == 3
    assert f"process {local.state.pid}" in refused.stderr
    assert "airbridge down" in refused.stderr


def test_two_environments_on_one_worker(local: LocalPlatform, tmp_path: Path) -> None:
    """Two bundles with conflicting versions of a package run side by side: one from the folder, one pushed, on the same worker.

    The pushed one's version is only in another index: its packages are built with that one, and pushed before the code. Both import it at their top, where the control plane parses them too. A requirement that conflicts with Airflow's own is shown with
    its line, and what was published stays.
    """
    local.add_dag("tiny_1", _TINY.format(dag_id="tiny_1"))
    requirements = Path(local.state.dags, "requirements.txt")
    requirements.write_text("tiny==1.0\n")
    dags = tmp_path / "dags"
    dags.mkdir()
    (dags / "tiny_3.py").write_text(_TINY.format(dag_id="tiny_3"))
    (dags / "requirements.txt").write_text("tiny==3.0\n")
    refused = airbridge(local, "dags", "push", str(dags))
    assert "there is no version of tiny==3.0" in refused.stderr
    built = build_environment(dags, tmp_path)
    for words in (("env", "push", str(built)), ("dags", "push", str(dags))):
        pushed = airbridge(local, *words)
        assert pushed.returncode == 0, pushed.stderr
    runs = {dag_id: local.trigger(dag_id) for dag_id in ("tiny_1", "tiny_3")}
    ended = {dag_id: local.finish(dag_id, run_id) for dag_id, run_id in runs.items()}
    assert {dag_id: local.xcom(run, "version") for dag_id, run in ended.items()} == {
        "tiny_1": "1.0",
        "tiny_3": "3.0",
    }
    assert len({place for run in ended.values() for place in local.places(run).values()}) == 1

    requirements.write_text("tiny==1.0\nsqlalchemy>=2\n")
    query = "SELECT stacktrace FROM import_error WHERE filename LIKE 'requirements.txt%%'"
    wait_for(lambda: bool(local.query(query)), "the conflict to be shown", 60)
    assert "requirements.txt:2: 'sqlalchemy>=2' conflicts with sqlalchemy==" in local.query(query)[0][0]
    assert local.xcom(local.run("tiny_1"), "version") == "1.0"
    requirements.unlink()
    Path(local.state.dags, "tiny_1.py").unlink()


@pytest.mark.parametrize("name", ["gateway", "worker-eu-west-1-default-1", "scheduler", "aws", "postgres"])
def test_a_killed_component_comes_back(local: LocalPlatform, name: str) -> None:
    """After kill -9 it is started again, with another pid, and everything is ready."""
    local.wait_ready()
    restarts = local.component(name).restarts
    killed = local.kill(name)
    wait_for(lambda: local.component(name).restarts > restarts, f"{name} to be started again", 30)
    local.wait_ready(120)
    assert local.pid(name) != killed


def test_dag_runs_after_all_failures(local: LocalPlatform) -> None:
    """After all failures a DAG run succeeds: queues, workers and scheduler work, and are not merely alive."""
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
    """`down` returns when every process is gone; a second one exits with the status for nothing running."""
    with running(workers_per_region=0) as platform:
        assert airbridge(platform, "down").returncode == 0
        assert processes_of(platform) == []
        assert airbridge(platform, "down").returncode == 3


_DAG = """
from datetime import UTC, datetime

from airbridge.core import near
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
