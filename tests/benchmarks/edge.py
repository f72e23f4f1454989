"""AirBridge as a system under test: the local platform with one worker, behind a delaying proxy if the case has one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from tests.benchmarks import delay, processes

from airbridge.control_plane.local import overview, ports, state
from airbridge.control_plane.local.exceptions import NotRunning
from airbridge.control_plane.local.launch import Launched, launch
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.services.aws import parse_regions
from airbridge.core.catalogue import Catalogue

AIRFLOW = {"core.parallelism": "8192", "dag_processor.min_file_process_interval": "30"}
"""The peers' settings, where local mode has others: it parses every 10 s, for users who edit DAG files."""

CACHE = Path.home() / ".cache" / "airbridge"
CONTROL = ("api-server", "scheduler", "dag-processor", "triggerer", "gateway")
_PROXY = Path(__file__).with_name("delay.py")


class Edge:
    """The local platform: one region, one worker with as many slots as the peers have."""

    name = "airbridge"

    def __init__(
        self,
        home: Path,
        dags: Path,
        round_trip_ms: float = 0.0,
        slots: int = 8,
        workers: int = 1,
        regions: Sequence[str] = ("us-east-1",),
    ) -> None:
        self._home = home
        self._directory = StateDir(home / "state")
        self._dags = dags
        self._round_trip_ms = round_trip_ms
        self._slots = slots
        self._workers = workers
        self._regions = regions
        self._proxy: subprocess.Popen[bytes] | None = None
        self._launched: Launched | None = None

    def start(self) -> None:
        """Bring the platform up; the worker reaches the gateway through the proxy if there is a delay."""
        self._home.mkdir(parents=True)
        shutil.copytree(self._dags, self._home / "dags", ignore=shutil.ignore_patterns("__pycache__"))
        proxy_port = ports.choose(["proxy"], {})["proxy"]
        worker_env = {}
        if self._round_trip_ms:
            worker_env["AIRBRIDGE_WORKER_GATEWAY_URL"] = f"https://127.0.0.1:{proxy_port}"
        options = Options(
            directory=self._directory.root,
            regions=parse_regions([*self._regions]),
            workers_per_region=self._workers,
            slots=self._slots,
            dags=self._home / "dags",
            worker_env=worker_env,
            airflow=AIRFLOW,
        )
        self._launched = launch(options, CACHE, dict(os.environ), dies_with_parent=True)
        if self._round_trip_ms:
            self._start_proxy(proxy_port)
        self._launched.await_ready(lambda _component: None)

    def stop(self) -> None:
        """Take everything down."""
        if self._launched is not None:
            self._launched.stop()
        if self._proxy is not None:
            self._proxy.terminate()
            self._proxy.wait()
        shutil.rmtree(self._home, ignore_errors=True)

    def _start_proxy(self, port: int) -> None:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            try:
                target = urlsplit(state.read(self._directory).gateway_url).port
            except NotRunning:
                time.sleep(0.05)
                continue
            arguments = [str(port), str(target), str(self._round_trip_ms), str(self._counts)]
            self._proxy = subprocess.Popen([sys.executable, str(_PROXY), *arguments])
            return
        raise TimeoutError("the platform named no gateway within 120 s")

    @property
    def base_url(self) -> str:
        """The api-server's URL."""
        return state.read(self._directory).ui_url

    @property
    def database_url(self) -> str:
        """The metadata database."""
        return overview.server(self._directory).url()

    def cpu_seconds(self) -> Mapping[str, float]:
        """CPU time by component."""
        pids = self._pids()
        spent = {name: processes.cpu_seconds([pid]) for name, pid in pids.items()}
        workers = [name for name in pids if name.startswith("worker-")]
        return {
            **{name: spent[name] for name in CONTROL if name in spent},
            "control": sum(spent[name] for name in CONTROL if name in spent),
            "worker": sum(spent[name] for name in workers),
            "database": spent["postgres"],
            "broker": spent["aws"],
        }

    def worker_pids(self) -> Sequence[int]:
        """The agent, its zygote, templates, supervisors and tasks."""
        return processes.tree(pid for name, pid in self._pids().items() if name.startswith("worker-"))

    def main_pids(self) -> Mapping[str, int]:
        """Scheduler and gateway."""
        pids = self._pids()
        return {name: pids[name] for name in ("scheduler", "gateway")}

    def profiled_pids(self) -> Mapping[str, int]:
        """The processes whose Python a profile shows: gateway, scheduler, and the worker's agent."""
        agents = [pid for name, pid in self._pids().items() if name.startswith("worker-")]
        return {**self.main_pids(), "agent": agents[0]}

    def traffic(self) -> tuple[int | None, int | None]:
        """Requests as the gateway counts them; bytes if the proxy stands between."""
        requests = sum(overview.gateway_requests(self._directory).values())
        return requests, delay.read(self._counts).passed_bytes if self._proxy is not None else None

    @property
    def gateway_port(self) -> int:
        """The gateway's port for workers."""
        return urlsplit(state.read(self._directory).gateway_url).port or 0

    @property
    def aws_url(self) -> str:
        """The AWS emulator's URL."""
        return self._catalogue.regions[0].endpoint_url or ""

    @property
    def queue_url(self) -> str:
        """The queue of the region's default pool."""
        return self._catalogue.regions[0].pools[0].queue_url

    @property
    def secrets_dir(self) -> Path:
        """Directory of the control plane's keys."""
        return self._directory.secrets

    @property
    def database_pid(self) -> int:
        """The database server's process."""
        return self._pids()["postgres"]

    @property
    def _catalogue(self) -> Catalogue:
        return Catalogue.read(self._directory.regions_file)

    def _pids(self) -> dict[str, int]:
        components = state.read(self._directory).components
        return {each.name: each.pid for each in components if each.pid}

    @property
    def _counts(self) -> Path:
        return self._home / "proxy.json"
