"""Workers behind links of their own: real agents in processes of their own, to be cut off, killed and started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from tests.chaos import agent
from tests.support.platform import LocalPlatform, wait_for
from tests.support.weather import LOOPBACK, Link, Network, Weather

from airbridge.control_plane.local import environment
from airbridge.control_plane.local.process.privileges import child_setup

ROOT = Path(__file__).parents[2]
HOME_REGION = "us-east-1"


@dataclass
class Worker:
    """One agent, its home directory, and its links to the gateway, SQS and S3."""

    name: str
    pool: str
    home: Path
    env: Mapping[str, str]
    gateway: Link
    sqs: Link
    s3: Link
    within: tuple[str, ...] = ()
    """Command that starts it elsewhere, before its own: in a network namespace, say."""
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0
    more_env: Mapping[str, str] = field(default_factory=dict)
    """Variables that it is started with besides its own."""
    killed_at: list[float] = field(default_factory=list)

    @property
    def log_file(self) -> Path:
        """The agent's output: one JSON event per line, over all its lives."""
        return self.home / "agent.log"

    @property
    def state_dir(self) -> Path:
        """Directory of the state that outlives the agent."""
        return self.home / "state"

    @property
    def journal(self) -> Path:
        """The journal's file."""
        return self.state_dir / "journal.sqlite"

    @property
    def durable(self) -> Path:
        """Directory with the part of the journal that would survive a power cut."""
        return self.home / "durable"

    @property
    def links(self) -> tuple[Link, Link, Link]:
        """The links to gateway, SQS and S3."""
        return self.gateway, self.sqs, self.s3

    def start(self) -> None:
        """Start the agent; it is not waited for."""
        assert self.process is None or self.process.poll() is not None
        self.starts += 1
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.within, sys.executable, "-m", "tests.chaos.agent"],
                cwd=self.home,
                env={**self.env, **self.more_env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                # a process group of its own, which `stop_all` kills with zygote and tasks
                start_new_session=True,
                preexec_fn=child_setup(signal.SIGKILL),  # noqa: PLW1509 - it makes system calls only
            )

    def kill(self) -> None:
        """kill -9 of the agent alone: its zygote and tasks see it go."""
        assert self.process is not None
        self.killed_at.append(time.time())
        self.process.kill()
        self.process.wait(20)

    def stop_all(self) -> None:
        """End it with whatever it started, as when the host loses power."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)

    def set(self, weather: Weather) -> None:
        """Set the same weather on all links."""
        for link in self.links:
            link.set(weather)

    def events(self) -> Iterator[dict[str, object]]:
        """The agent's log events."""
        for line in self.log_file.read_text(errors="replace").splitlines():
            if line.startswith("{"):
                try:
                    yield json.loads(line)
                except ValueError:
                    continue  # cut off by a kill

    def wait_started(self, timeout_seconds: float = 180.0) -> None:
        """Wait until it polls for work in its current life."""

        def polls() -> bool:
            assert self.process is not None
            if self.process.poll() is not None:
                raise AssertionError(f"{self.name} ended with {self.process.returncode}; see {self.log_file}")
            # The log holds all lives of the worker: one such event for each start.
            return sum(event.get("event") == "poller.started" for event in self.events()) >= self.starts

        wait_for(polls, f"{self.name} to poll", timeout_seconds)


@dataclass
class Fleet:
    """The workers of a platform that has none of its own. `close` ends them all."""

    platform: LocalPlatform
    network: Network
    environ: Mapping[str, str]
    """Settings that all workers share, as AIRBRIDGE_WORKER_* variables."""
    task_env: Mapping[str, str] = field(default_factory=dict)
    region: str = HOME_REGION
    within: tuple[str, ...] = ()
    """Command that starts its workers elsewhere, see `Worker`."""
    workers: list[Worker] = field(default_factory=list)

    @property
    def gateway_port(self) -> int:
        """Port of the platform's gateway."""
        return self._port(self.platform.state.gateway_url)

    def add(self, name: str, pool: str, **environ: str) -> Worker:
        """Make a worker, with variables of its own if need be; it is not started."""
        home = self.platform.directory.root / "fleet" / name
        (home / "durable").mkdir(parents=True)
        gateway = self.network.link(self.gateway_port, f"{name} to gateway")
        aws = self._port(self.platform.state.aws_url)
        sqs, s3 = self.network.link(aws, f"{name} to SQS"), self.network.link(aws, f"{name} to S3")
        (home / "join.token").write_text(self._join_token(pool))
        env = {
            **environment.base(os.environ),
            **environment.aws_variables(self.region),
            "PYTHONPATH": str(ROOT),
            "HOME": str(home),
            "AIRFLOW_HOME": str(home / "airflow"),
            "AIRBRIDGE_WORKER_GATEWAY_URL": f"https://{LOOPBACK}:{gateway.port}",
            "AIRBRIDGE_WORKER_CA_FILE": str(self.platform.directory.ca_file),
            "AIRBRIDGE_WORKER_REGION": self.region,
            "AIRBRIDGE_WORKER_POOL": pool,
            "AIRBRIDGE_WORKER_NAME": name,
            "AIRBRIDGE_WORKER_STATE_DIR": str(home / "state"),
            "AIRBRIDGE_WORKER_JOIN_TOKEN_FILE": str(home / "join.token"),
            "AIRBRIDGE_WORKER_TASK_ENV": json.dumps(dict(self.task_env)),
            agent.SQS_URL: f"http://{LOOPBACK}:{sqs.port}",
            agent.S3_URL: f"http://{LOOPBACK}:{s3.port}",
            agent.DURABLE: str(home / "durable"),
            **self.environ,
            **environ,
        }
        worker = Worker(name, pool, home, env, gateway, sqs, s3, self.within)
        self.workers.append(worker)
        return worker

    def close(self) -> None:
        """End every worker."""
        for worker in self.workers:
            worker.stop_all()

    def _join_token(self, pool: str) -> str:
        asked = {"kind": "join", "region": self.region, "pool": pool, "ttl_seconds": 86_400, "uses": None}
        with self.platform.operator() as operator:
            answer = operator.post("/operator/v1/tokens", json={"token": asked})
            answer.raise_for_status()
            return str(answer.json()["token"])

    @staticmethod
    def _port(url: str) -> int:
        port = urlsplit(url).port
        assert port is not None
        return port
