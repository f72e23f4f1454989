"""Peers that AirBridge is measured against, each as its users run it: LocalExecutor, Celery with Redis, edge3 1.1.3 and 5.1.0.

All run Airflow 3.0.4 on Postgres with eight slots and the same scheduler settings. They live in an environment of
their own, because edge3 and Celery are not among AirBridge's dependencies.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from tests.benchmarks import delay, processes

from airbridge.control_plane.airflow_settings import RECOMMENDED
from airbridge.control_plane.local import ports
from airbridge.control_plane.local.process import privileges
from airbridge.control_plane.local.services import postgres

PACKAGES = (
    "apache-airflow==3.0.4",
    "apache-airflow-providers-standard",
    "apache-airflow-providers-celery==3.12.2",
    "apache-airflow-providers-edge3==1.1.3",
    "redis",
    "psycopg2-binary",
    "asyncpg",
)
# The newest edge3 that installs beside Airflow 3.0.4. It needs later releases of three libraries, so that it has an environment of its own.
NEWEST_EDGE3 = ("apache-airflow==3.0.4", "apache-airflow-providers-edge3==5.1.0")
EDGE3 = "airflow.providers.edge3.executors.EdgeExecutor"
ERA = "2025-08-20"
SHARED = {
    f"{setting.section}.{setting.option}": setting.value
    for setting in RECOMMENDED
    if setting.section == "scheduler"
}
"""The scheduler's settings that AirBridge recommends are those of the peers too."""
SLOTS = 8


def environment(folder: Path, uv: str, *, newest_edge3: bool = False) -> Path:
    """Make the peers' virtual environment, or that of the newest edge3, if it is not there, and return it."""
    marker = folder / ".complete"
    if not marker.exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([uv, "venv", "--quiet", folder], check=True)
        install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--exclude-newer", ERA]
        into = ["--python", str(folder / "bin" / "python")]
        subprocess.run([*install, *into, *PACKAGES], check=True)
        if newest_edge3:
            # What is there and fits stays as it is: only what edge3 needs is taken from later days.
            again = [
                uv,
                "pip",
                "install",
                "--quiet",
                "--no-config",
                "--compile-bytecode",
                *into,
                *NEWEST_EDGE3,
            ]
            subprocess.run(again, check=True)
        marker.touch()
    return folder


@dataclass
class Peer:
    """One system under test. `start` brings it up, `stop` ends every process of it."""

    name: str
    executor: str
    venv: Path
    home: Path
    dags: Path
    round_trip_ms: float = 0.0
    control: dict[str, int] = field(default_factory=dict)
    workers: dict[str, int] = field(default_factory=dict)
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        """Start Postgres, migrate, start Airflow and the workers; return when the api-server answers."""
        names = ["postgres", "api", "api-far", "redis", "redis-far"]
        self.port = ports.choose(names, {})
        self._start_postgres()
        self._airflow("db", "migrate")
        self._start_brokers()
        # A scheduler of LocalExecutor runs the tasks itself: it is control plane and worker in one.
        for command in ("api-server", "scheduler", "dag-processor"):
            self.control[command] = self._spawn(command, [self._program, command])
        self._wait_for_api()
        self._start_workers()

    def stop(self) -> None:
        """End everything, workers first, and Postgres last."""
        for process in reversed(self._processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self._processes[::-1]:
            try:
                process.wait(15)
            except subprocess.TimeoutExpired:
                with suppress(ProcessLookupError):  # it ended meanwhile
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
        shutil.rmtree(self.home, ignore_errors=True)

    @property
    def base_url(self) -> str:
        """The api-server's URL."""
        return f"http://127.0.0.1:{self.port['api']}"

    @property
    def database_url(self) -> str:
        """The metadata database."""
        return self._postgres.url()

    def cpu_seconds(self) -> Mapping[str, float]:
        """CPU time by component. LocalExecutor's workers are the children of its scheduler."""
        spent = {name: processes.cpu_seconds([pid]) for name, pid in self.control.items() if name != "redis"}
        worker = processes.cpu_seconds(self.workers.values())
        if self.name == "local":
            own = processes.own_cpu_seconds(self.control["scheduler"])
            worker, spent["scheduler"] = spent["scheduler"] - own, own
        redis = self.control.get("redis")
        return {
            **spent,
            "control": sum(spent.values()),
            "worker": worker,
            "database": processes.cpu_seconds([self._processes[0].pid]),
            "broker": processes.cpu_seconds([redis]) if redis else 0.0,
        }

    def worker_pids(self) -> Sequence[int]:
        """The workers' processes; LocalExecutor's are in the scheduler's tree."""
        return processes.tree([self.control["scheduler"]] if self.name == "local" else self.workers.values())

    def main_pids(self) -> Mapping[str, int]:
        """The scheduler."""
        return {"scheduler": self.control["scheduler"]}

    def traffic(self) -> tuple[int | None, int | None]:
        """Return the counts of the proxies between worker and control plane, if there are any."""
        if not self.round_trip_ms:
            return None, None
        counted = [delay.read(path) for path in self.home.glob("proxy-*.json")]
        return sum(each.requests for each in counted), sum(each.passed_bytes for each in counted)

    # --- how each differs -------------------------------------------------------------------------

    def _start_brokers(self) -> None:
        """Start what stands between control plane and workers."""
        if self.round_trip_ms:
            self._delay("api-far", "api")
        if self.name == "celery":
            redis = shutil.which("redis-server")
            if redis is None:
                raise FileNotFoundError(
                    "redis-server is not on PATH; on Debian: apt-get install redis-server"
                )
            arguments = ["--port", str(self.port["redis"]), "--bind", "127.0.0.1", "--save", ""]
            self.control["redis"] = self._spawn("redis", [redis, *arguments])
            if self.round_trip_ms:
                self._delay("redis-far", "redis")

    def _start_workers(self) -> None:
        far = {"AIRFLOW__CORE__EXECUTION_API_SERVER_URL": f"{self._api('api-far')}/execution/"}
        if self.name == "celery":
            broker = {"AIRFLOW__CELERY__BROKER_URL": self._redis("redis-far")}
            arguments = ["celery", "worker", "--concurrency", str(SLOTS), "--skip-serve-logs"]
            self.workers["worker"] = self._spawn("worker", [self._program, *arguments], {**far, **broker})
        elif self.name.startswith("edge3"):
            edge = {"AIRFLOW__EDGE__API_URL": f"{self._api('api-far')}/edge_worker/v1/rpcapi"}
            arguments = ["edge", "worker", "--concurrency", str(SLOTS), "-H", "bench"]
            self.workers["worker"] = self._spawn("worker", [self._program, *arguments], {**far, **edge})

    def _environment(self) -> dict[str, str]:
        values = {
            "core.executor": self.executor,
            "core.load_examples": "False",
            "core.dags_folder": str(self.dags),
            "core.parallelism": str(SLOTS if self.name == "local" else 8192),
            "core.max_active_tasks_per_dag": "100000",
            "dag_processor.min_file_process_interval": "30",
            "core.simple_auth_manager_all_admins": "True",
            "core.execution_api_server_url": f"{self._api('api')}/execution/",
            "core.fernet_key": "",
            "database.sql_alchemy_conn": self._postgres.url(),
            "api.host": "127.0.0.1",
            "api.port": str(self.port["api"]),
            "api.workers": "1",
            "api.base_url": self._api("api"),
            "api.secret_key": self._secret,
            "api_auth.jwt_secret": self._secret,
            # Unset, Airflow signs with an empty list as issuer, which later versions of PyJWT refuse.
            "api_auth.jwt_issuer": "bench",
            "logging.base_log_folder": str(self.home / "logs"),
            "usage_data_collection.enabled": "False",
        }
        if self.name == "celery":
            values |= {
                "celery.broker_url": self._redis("redis"),
                "celery.result_backend": self._postgres.url().replace("postgresql+", "db+postgresql+"),
            }
        if self.name.startswith("edge3"):
            values |= {
                "edge.api_enabled": "True",
                "edge.api_url": f"{self._api('api')}/edge_worker/v1/rpcapi",
            }
        if self.name.startswith("edge3-5"):
            # Its tables are migrations of its own, in place of those that 1.1.3 makes when its executor starts.
            values["database.external_db_managers"] = "airflow.providers.edge3.models.db.EdgeDBManager"
        if self.name.endswith("-1s"):
            # The shortest interval that it accepts. A worker that is full, or finds no job, rests for so long.
            values["edge.job_poll_interval"] = "1"
        values |= SHARED
        variables = {f"AIRFLOW__{name.replace('.', '__').upper()}": value for name, value in values.items()}
        path = f"{self.venv / 'bin'}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        return {"PATH": path, "HOME": str(self.home), "AIRFLOW_HOME": str(self.home / "airflow"), **variables}

    # --- plumbing ---------------------------------------------------------------------------------

    def _api(self, port: str) -> str:
        return f"http://127.0.0.1:{self.port[self._near(port)]}"

    def _redis(self, port: str) -> str:
        return f"redis://127.0.0.1:{self.port[self._near(port)]}/0"

    def _near(self, port: str) -> str:
        return port if self.round_trip_ms else port.removesuffix("-far")

    @property
    def _program(self) -> str:
        return str(self.venv / "bin" / "airflow")

    def _start_postgres(self) -> None:
        self._secret = secrets.token_hex(32)
        self.home.mkdir(parents=True)
        password = secrets.token_hex(16)
        self._postgres = postgres.Postgres(self.home / "postgres", self.port["postgres"], password)
        postgres.create(self._postgres.data, password)
        self._processes.append(
            subprocess.Popen(
                self._postgres.argv(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                preexec_fn=privileges.child_setup(signal.SIGQUIT, privileges.postgres_user()),  # noqa: PLW1509 - one thread
            )
        )
        deadline = time.monotonic() + 30
        while not self._postgres.accepts_queries():
            if time.monotonic() > deadline:
                raise TimeoutError("postgres did not start within 30 s")
            time.sleep(0.1)
        postgres.query(self._postgres, f"CREATE DATABASE {postgres.DATABASE}", database="postgres")

    def _airflow(self, *arguments: str) -> None:
        command = [self._program, *arguments]
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"airflow {' '.join(arguments)} failed: {done.stderr[-2000:]}")

    def _spawn(self, name: str, command: Sequence[str], more: Mapping[str, str] | None = None) -> int:
        with (self.home / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                command,
                env={**self._environment(), **(more or {})},
                cwd=self.home,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self._processes.append(process)
        return process.pid

    def _delay(self, far: str, near: str) -> None:
        script = Path(__file__).with_name("delay.py")
        counts = self.home / f"proxy-{near}.json"
        arguments = [str(self.port[far]), str(self.port[near]), str(self.round_trip_ms), str(counts)]
        self._spawn(f"delay-{near}", [str(self.venv / "bin" / "python"), str(script), *arguments])

    def _wait_for_api(self) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                if httpx.get(f"{self.base_url}/api/v2/monitor/health", timeout=2).status_code == 200:
                    return
            except httpx.HTTPError:
                time.sleep(0.5)
        raise TimeoutError(f"{self.name}: the api-server did not answer within 120 s; see {self.home}")


def peer(name: str, venv: Path, home: Path, dags: Path, round_trip_ms: float = 0.0) -> Peer:
    """Return a peer by name: ``local``, ``celery``, ``edge3``, or ``edge3-1s`` that polls for jobs each second; ``edge3-5`` and
    ``edge3-5-1s`` are of version 5.1.0.

    Raises `KeyError` for any other.
    """
    executor = {
        "local": "LocalExecutor",
        "celery": "CeleryExecutor",
        "edge3": EDGE3,
        "edge3-1s": EDGE3,
        "edge3-5": EDGE3,
        "edge3-5-1s": EDGE3,
    }[name]
    return Peer(name, executor, venv, home, dags, round_trip_ms)
