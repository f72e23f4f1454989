"""An instance of a pool, as far as it can be real here: a worker process, the drain unit's own script, and instance metadata.

What stands in for AWS: the metadata service (a server on loopback, which the script reaches by the variable that the
AWS SDKs have for it), `systemctl` (sends the worker SIGTERM and waits, as the unit does) and the `aws` command (notes its call).
"""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

SYSTEMCTL = """#!/bin/sh
[ "$1 $2" = "stop airbridge-worker" ] || exit 1
kill -TERM "$WORKER_PID"
while kill -0 "$WORKER_PID" 2>/dev/null; do sleep 0.2; done
"""
AWS = """#!/bin/sh
echo "$2" >> "$CALLS"
"""
COMPLETE, REPLACE = "complete-lifecycle-action", "terminate-instance-in-auto-scaling-group"


@dataclass
class Metadata:
    """Instance metadata: empty, until the instance is to end."""

    target: str = "InService"
    notice: dict[str, str] | None = None


class MetadataService:
    """Instance metadata for every instance, each under a path of its own."""

    def __init__(self) -> None:
        known: dict[str, Metadata] = {}

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                self._answer("token")

            def do_GET(self) -> None:
                name, _, what = self.path.removeprefix("/").partition("/latest/meta-data/")
                told = known[name]
                notice = json.dumps(told.notice) if told.notice else None
                answers = {"instance-id": name, "autoscaling/target-lifecycle-state": told.target}
                self._answer(answers.get(what) or (notice if what == "spot/instance-action" else None))

            def _answer(self, text: str | None) -> None:
                self.send_response(200 if text else 404)
                self.end_headers()
                self.wfile.write((text or "").encode())

            def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - the base class's name
                """Do not log requests."""

        self._known = known
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, name="metadata", daemon=True).start()

    def add(self, name: str) -> tuple[Metadata, str]:
        """Register an instance; return its metadata and their address."""
        self._known[name] = Metadata()
        return self._known[name], f"http://127.0.0.1:{self._server.server_port}/{name}"

    def close(self) -> None:
        """End the service."""
        self._server.shutdown()
        self._server.server_close()


def drain_script(boot_script: str) -> str:
    """The drain unit's script, cut from what an instance is given at its start."""
    text = base64.b64decode(boot_script).decode()
    _, _, rest = text.partition("cat > /usr/local/bin/airbridge-drain <<'END'\n")
    script, found, _ = rest.partition("\nEND\n")
    assert found, "the boot script has no drain script"
    return script


@dataclass
class Instance:
    """One instance and its two processes."""

    name: str
    launched_at: float
    metadata: Metadata
    worker: subprocess.Popen[bytes]
    unit: subprocess.Popen[bytes]
    calls: Path
    home: Path
    spot_noticed_at: float | None = None
    ended_at: float | None = None
    _seen: int = field(default=0)

    @property
    def leaving(self) -> bool:
        """Return whether the group no longer counts on it."""
        return self.metadata.target == "Terminated" or self.ended_at is not None

    def terminate(self) -> None:
        """End an instance as the group does: its hook holds it until the drain is complete."""
        self.metadata.target = "Terminated"

    def notify(self, now: float, text: str) -> None:
        """A Spot interruption notice: two minutes."""
        self.metadata.notice = {"action": "terminate", "time": text}
        self.spot_noticed_at = now

    def new_calls(self) -> list[str]:
        """Return its calls to AWS since the last read. Also reaps the worker once it has ended."""
        self.worker.poll()
        self.unit.poll()
        lines = self.calls.read_text().splitlines() if self.calls.exists() else []
        new, self._seen = lines[self._seen :], len(lines)
        return new

    def kill(self) -> None:
        """Kill the remaining processes."""
        for process in (self.unit, self.worker):
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)


@dataclass(frozen=True)
class Launcher:
    """Starts instances: what the launch template and the boot script do in AWS."""

    folder: Path
    script: str
    service: MetadataService
    environment: Mapping[str, str]

    def launch(self, name: str, now: float, token: str) -> Instance:
        """Start an instance that joins with this token."""
        home = self.folder / name
        (home / "bin").mkdir(parents=True)
        (home / "join.token").write_text(token)
        for command, text in (("systemctl", SYSTEMCTL), ("aws", AWS)):
            (home / "bin" / command).write_text(text)
            (home / "bin" / command).chmod(0o755)
        metadata, address = self.service.add(name)
        worker = self._start(
            [sys.executable, "-m", "airbridge.edge_worker.cli", "run"],
            home / "worker.log",
            {
                **self.environment,
                "HOME": str(home),
                "AIRBRIDGE_WORKER_NAME": name,
                "AIRBRIDGE_WORKER_STATE_DIR": str(home / "state"),
                "AIRBRIDGE_WORKER_JOIN_TOKEN_FILE": str(home / "join.token"),
            },
        )
        unit = self._start(
            ["bash", "-c", self.script],
            home / "drain.log",
            {
                "PATH": f"{home / 'bin'}:{os.environ['PATH']}",
                "WORKER_PID": str(worker.pid),
                "CALLS": str(home / "calls"),
                "AWS_EC2_METADATA_SERVICE_ENDPOINT": address,
                "no_proxy": "127.0.0.1",
            },
        )
        return Instance(name, now, metadata, worker, unit, home / "calls", home)

    @staticmethod
    def _start(command: list[str], log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
        with log.open("wb") as out:
            return subprocess.Popen(
                command, env=dict(environment), stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )
