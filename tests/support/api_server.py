"""A real Airflow api-server in a process of its own, with users of every role, over a database of the tests' own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
from tests.support import airflow_home

from airbridge.control_plane.local.ports import choose

ROLES = ("viewer", "user", "op", "admin")
START_SECONDS = 120.0


@dataclass(frozen=True)
class ApiServer:
    """A running api-server. Each role has a user of the same name, whose password is the name twice."""

    url: str
    pid: int
    log: Path

    @property
    def dashboard(self) -> str:
        """The dashboard's address, without the slash at its end."""
        return f"{self.url}/airbridge"

    def token(self, user: str) -> str:
        """Return a token as Airflow's UI gets one by logging in."""
        answer = httpx.post(
            f"{self.url}/auth/token", json={"username": user, "password": user * 2}, timeout=30
        )
        answer.raise_for_status()
        return str(answer.json()["access_token"])

    @contextmanager
    def client(self, user: str | None = None) -> Iterator[httpx.Client]:
        """Yield a client of the dashboard; signed in, if a user is named. Requests carry the dashboard's own origin."""
        origin = {"Origin": self.url}
        with httpx.Client(base_url=self.dashboard, headers=origin, timeout=30, trust_env=False) as client:
            if user is not None:
                bearer = {"Authorization": f"Bearer {self.token(user)}"}
                client.post("/session", headers=bearer).raise_for_status()
            yield client

    def cpu_seconds(self) -> float:
        """Return the processor time that the server and its children have used so far, to the nanosecond (Linux)."""
        server = psutil.Process(self.pid)
        spent = 0
        for process in (server, *server.children(recursive=True)):
            for thread in Path(f"/proc/{process.pid}/task").iterdir():
                spent += int((thread / "schedstat").read_text().split()[0])
        return spent / 1e9


@contextmanager
def serve(
    database_url: str, home: Path, *, all_admins: bool = False, settings: Mapping[str, str] | None = None
) -> Iterator[ApiServer]:
    """Run an api-server until the block ends. `settings` are further environment variables."""
    port = choose(["api-server"], {})["api-server"]
    url = f"http://127.0.0.1:{port}"
    home.mkdir(parents=True, exist_ok=True)
    passwords = home / "passwords.json"
    passwords.write_text(json.dumps({role: role * 2 for role in ROLES}))
    log = home / "api-server.log"
    environment = {
        **os.environ,
        **airflow_home.environment(home, database_url),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": str(all_admins),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_USERS": ",".join(f"{role}:{role}" for role in ROLES),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE": str(passwords),
        "AIRFLOW__API__BASE_URL": url,
        **(settings or {}),
    }
    command = [sys.executable, "-m", "airflow", "api-server", "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            [*command, "--workers", "1"], env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        _wait(process, url, log)
        yield ApiServer(url, process.pid, log)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        try:
            if httpx.get(f"{url}/api/v2/version", timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.3)
    raise AssertionError(f"the api-server did not come up: {log.read_text()[-3000:]}")
