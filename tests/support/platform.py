"""The whole local platform, started for tests in a temporary state directory, with access to each of its parts."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from airbridge.control_plane.local import overview, state
from airbridge.control_plane.local.launch import Launched, launch
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.services import aws, postgres
from airbridge.control_plane.local.services.airflow_rest import AirflowRest
from airbridge.control_plane.local.state import ComponentState, PlatformState

CACHE = Path.home() / ".cache" / "airbridge"
BOTH_EXECUTORS = {
    "core.executor": "airbridge.executor.EdgeExecutor,LocalExecutor",
    # LocalExecutor starts a process for each task up to this number; more than a few starve a small machine, the
    # scheduler's heartbeat comes late, and LocalExecutor's tasks are taken for orphans and tried again.
    "core.parallelism": "12",
    "scheduler.scheduler_health_check_threshold": "120",
}


@dataclass(frozen=True)
class Run:
    """A finished DAG run."""

    dag_id: str
    run_id: str
    state: str
    tasks: tuple[dict[str, Any], ...]

    def task(self, task_id: str, map_index: int = -1) -> dict[str, Any]:
        """Return one task instance as in the REST API."""
        return next(ti for ti in self.tasks if (ti["task_id"], ti["map_index"]) == (task_id, map_index))

    def states(self) -> dict[tuple[str, int], str | None]:
        """The state of every task instance."""
        return {(ti["task_id"], ti["map_index"]): ti["state"] for ti in self.tasks}


@dataclass(frozen=True)
class LocalPlatform:
    """A running platform."""

    directory: StateDir
    airflow: AirflowRest
    options: Options
    launched: Launched

    # --- what runs ------------------------------------------------------------------------------------

    @property
    def state(self) -> PlatformState:
        """Current pids, phases, restarts and URLs."""
        return state.read(self.directory)

    def component(self, name: str) -> ComponentState:
        """One component as it is now."""
        return self.state.component(name)

    def pid(self, name: str) -> int:
        """A component's pid; raises if it is not running at the moment."""
        pid = self.component(name).pid
        assert pid is not None, f"{name} is not running: {self.component(name)}"
        return pid

    @property
    def scheduler_pid(self) -> int:
        """The (first) scheduler's pid."""
        return self.pid("scheduler")

    @property
    def gateway_pid(self) -> int:
        """The gateway's pid."""
        return self.pid("gateway")

    def worker_pids(self) -> dict[str, int]:
        """The pid of every running worker agent, by worker name."""
        prefix = "worker-"
        return {
            c.name.removeprefix(prefix): c.pid
            for c in self.state.components
            if c.name.startswith(prefix) and c.pid is not None
        }

    def kill(self, name: str, number: int = 9) -> int:
        """Send a signal to a component's process (SIGKILL by default); its pid is returned."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    def wait_ready(self, timeout_seconds: float = 60.0) -> None:
        """Wait until every component is ready (again)."""

        def ready() -> bool:
            return all(c.phase in (state.Phase.READY, state.Phase.DONE) for c in self.state.components)

        wait_for(ready, "every component to be ready", timeout_seconds)

    def worker_home(self, name: str) -> Path:
        """All the files that a worker has."""
        return self.directory.worker(name)

    def log_text(self, component: str) -> str:
        """Return a component's output so far."""
        return self.directory.log(component).read_text(errors="replace")

    # --- the control plane's data ---------------------------------------------------------------------

    @property
    def database(self) -> postgres.Postgres:
        """The database server."""
        return overview.server(self.directory)

    @property
    def database_url(self) -> str:
        """SQLAlchemy's URL of the metadata database (psycopg2)."""
        return self.database.url()

    def query(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement in the metadata database."""
        rows: list[tuple[Any, ...]] = postgres.query(self.database, statement, parameters)
        return rows

    def aws_client(self, service: str, region: str) -> Any:
        """A boto3 client at the emulator."""
        import boto3

        return boto3.client(
            service,
            region_name=region,
            endpoint_url=self.state.aws_url,
            aws_access_key_id=aws.CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=aws.CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
        )

    def operator(self) -> httpx.Client:
        """A client of the operators' API, with the local operator's token. Close it."""
        import ssl

        return httpx.Client(
            base_url=self.state.operator_url,
            verify=ssl.create_default_context(cafile=str(self.directory.ca_file)),
            headers={"Authorization": f"Bearer {self.directory.operator_token_file.read_text().strip()}"},
            trust_env=False,
            timeout=30.0,
        )

    # --- DAGs and runs --------------------------------------------------------------------------------

    def add_dag(self, name: str, source: str) -> None:
        """Put a DAG file into the folder that is published."""
        path = Path(self.state.dags) / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".new")
        temporary.write_text(source)
        temporary.replace(path)

    def add_dag_file(self, path: Path) -> None:
        """Copy a DAG file into the folder that is published."""
        self.add_dag(path.stem, path.read_text())

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Wait until the DAG is there, start a run, and return its id."""
        self.airflow.wait_for_dag(dag_id)
        self.airflow.unpause(dag_id)
        return self.airflow.trigger(dag_id, dict(conf or {}))

    def finish(self, dag_id: str, run_id: str, timeout_seconds: float = 180.0) -> Run:
        """Wait for the run's end."""
        outcome = self.airflow.wait(dag_id, run_id, timeout_seconds)
        return Run(dag_id, run_id, outcome, tuple(self.airflow.task_instances(dag_id, run_id)))

    def run(self, dag_id: str, conf: Mapping[str, Any] | None = None, timeout_seconds: float = 180.0) -> Run:
        """Run the DAG to its end."""
        return self.finish(dag_id, self.trigger(dag_id, conf), timeout_seconds)

    def wait_task(
        self, dag_id: str, run_id: str, task_id: str, states: set[str], timeout_seconds: float = 60.0
    ) -> None:
        """Wait until a task instance is in one of the states."""

        def there() -> bool:
            instances = self.airflow.task_instances(dag_id, run_id)
            return any(ti["task_id"] == task_id and ti["state"] in states for ti in instances)

        wait_for(there, f"{task_id} to be {' or '.join(sorted(states))}", timeout_seconds)

    def xcom(self, run: Run, task_id: str, key: str = "return_value", map_index: int = -1) -> Any:
        """An XCom's value."""
        return self.airflow.xcom(run.dag_id, run.run_id, task_id, key, map_index)

    def task_log(self, run: Run, task_id: str, attempt: int = 1, map_index: int = -1) -> str:
        """A task's log, as the UI shows it."""
        return "\n".join(self.airflow.log(run.dag_id, run.run_id, task_id, attempt, map_index))

    def places(self, run: Run) -> dict[tuple[str, int], tuple[str, str | None]]:
        """Return each task's place and worker: (task id, map index) to (region, worker)."""
        return overview.task_regions(self.directory, run.dag_id, run.run_id)


def wait_for(condition: Callable[[], bool], what: str, timeout_seconds: float = 60.0) -> None:
    """Wait until the condition holds; fail with `what` if it never does."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.2)
    raise AssertionError(f"waited {timeout_seconds:.0f} s for {what}")


@contextmanager
def running(below: str = "/var/tmp", **choices: Any) -> Iterator[LocalPlatform]:
    """Bring a platform up with these `Options`, in a temporary directory below `below`; take it down and delete it."""
    # By default not below /tmp: where tasks have no mounts of their own, they could make nothing in it.
    root = Path(tempfile.mkdtemp(prefix="airbridge-", dir=below))
    options = Options(directory=root / "state", **choices)
    directory = StateDir(options.directory)
    directory.root.mkdir(mode=0o700)
    launched = launch(options, CACHE, dict(os.environ), dies_with_parent=True)
    try:
        platform = launched.await_ready(lambda _component: None)
        with AirflowRest(platform.ui_url) as airflow:
            yield LocalPlatform(directory, airflow, options, launched)
    finally:
        launched.stop()
        _keep_logs(directory)
        shutil.rmtree(root, ignore_errors=True)


def _keep_logs(directory: StateDir) -> None:
    """Leave the components' logs where a failed test run can be looked into: in AIRBRIDGE_TEST_LOGS, if that is set."""
    keep = os.environ.get("AIRBRIDGE_TEST_LOGS")
    if keep:
        shutil.copytree(directory.logs, Path(keep) / directory.root.parent.name, dirs_exist_ok=True)
