"""AirBridge as a system under test: the local platform with one worker, behind a delaying proxy where asked."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from airbridge.control_plane.local import overview, ports, state
from airbridge.control_plane.local.aws import parse_regions
from airbridge.control_plane.local.exceptions import NotRunning
from airbridge.control_plane.local.launch import Launched, launch
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options

CACHE = Path.home() / ".cache" / "airbridge"
_PROXY = Path(__file__).with_name("delay.py")


class Edge:
    """The local platform: one region, one worker with as many slots as the peers have."""

    name = "airbridge"

    def __init__(self, home: Path, dags: Path, round_trip_ms: float = 0.0, slots: int = 8) -> None:
        self._home = home
        self._directory = StateDir(home / "state")
        self._dags = dags
        self._round_trip_ms = round_trip_ms
        self._slots = slots
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
            regions=parse_regions(["us-east-1"]),
            slots=self._slots,
            dags=self._home / "dags",
            worker_env=worker_env,
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
            arguments = [str(port), str(target), str(self._round_trip_ms)]
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

    @property
    def control(self) -> dict[str, int]:
        """The control plane's processes by name; Postgres and the AWS emulator are not counted, as for the peers."""
        return self._pids(lambda name: name in {"api-server", "scheduler", "dag-processor", "gateway"})

    @property
    def workers(self) -> dict[str, int]:
        """The workers by name."""
        return self._pids(lambda name: name.startswith("worker-"))

    @property
    def control_pids(self) -> Sequence[int]:
        """The roots of the control plane's process trees."""
        return list(self.control.values())

    @property
    def worker_pids(self) -> Sequence[int]:
        """The roots of the workers' process trees."""
        return list(self.workers.values())

    def requests(self) -> dict[str, int]:
        """Return how many requests the gateway has had so far, by endpoint."""
        return overview.gateway_requests(self._directory)

    def _pids(self, wanted: object) -> dict[str, int]:
        assert callable(wanted)
        components = state.read(self._directory).components
        return {each.name: each.pid for each in components if each.pid and wanted(each.name)}
