"""1,000 workers lose the gateway together and find it again together: what the gateway goes through, and for how long.

    python -m tests.benchmarks.stampede [--workers 1000] [--cut-seconds 60] [--picture docs/images/stampede.png]

The gateway is a process of its own over Postgres; each simulated worker is the real heartbeat, reporter, backoff and TLS client of
the worker (without tasks and queue), enrolled over the wire, holding one task that ends during the cut. Measured, never
asserted, but for one thing: every result is committed.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import structlog
from tests.benchmarks.processes import cpu_seconds
from tests.support import airflow_home

TRUST_DOMAIN = "airbridge.test"
REGION = "us-east-1"
SECOND = 1.0
SETTLE_SECONDS = 20.0
AFTER_SECONDS = 20.0
DRAIN_LIMIT_SECONDS = 900.0
REGIONS = f"""
home_region = "{REGION}"
[[region]]
name = "{REGION}"
log_bucket = "logs"
bundle_bucket = "dags"
[[region.pool]]
queue_url = "http://127.0.0.1:1/queue"
"""


@dataclass
class Figures:
    """Measurements, by seconds since the link was restored."""

    workers: int
    cut_seconds: float
    load: float = field(default_factory=lambda: round(os.getloadavg()[0], 1))
    mended_at: float = 0.0
    requests: list[tuple[float, str, str]] = field(default_factory=list)
    """(time of its end, request, outcome)"""
    cpu: list[tuple[float, float]] = field(default_factory=list)
    """(when, cores that the gateway used since the last time)"""
    waiting: list[tuple[float, int]] = field(default_factory=list)
    """(when, results not committed yet)"""
    drained_after: float | None = None

    def per_second(self, how: str) -> dict[int, int]:
        """Count the requests with this outcome in each second; 0 is the restored link."""
        found = Counter(
            int((at - self.mended_at) // SECOND) for at, _, ended in self.requests if ended == how
        )
        return dict(found)

    def summary(self) -> dict[str, Any]:
        """The figures that a table shows."""
        before = [at for at, _, ended in self.requests if ended == "answered" and at < self._cut_at]
        after = [(at, ended) for at, _, ended in self.requests if at >= self.mended_at]
        until = self.drained_after or 0.0
        drained = [ended for at, ended in after if at <= self.mended_at + until]
        cores = [used for at, used in self.cpu if self.mended_at <= at <= self.mended_at + max(until, 1.0)]
        quiet = [used for at, used in self.cpu if at < self._cut_at]
        everything = Counter(int(at - self.mended_at) for at, _ in after)
        return {
            "workers": self.workers,
            "cut_seconds": self.cut_seconds,
            "load_average_at_the_start": self.load,
            "requests_a_second_before": round(len(before) / SETTLE_SECONDS, 1),
            "most_requests_in_a_second_after": max(everything.values(), default=0),
            "requests_until_drained": dict(Counter(drained)),
            "requests_a_worker_until_drained": round(len(drained) / self.workers, 2),
            "seconds_to_drain": None if self.drained_after is None else round(self.drained_after, 1),
            "gateway_cores_before": round(sum(quiet) / max(1, len(quiet)), 2),
            "gateway_cores_while_draining": round(sum(cores) / max(1, len(cores)), 2),
            "gateway_cpu_seconds_until_drained": round(sum(cores), 1),
            "gateway_cores_at_most": round(max(cores, default=0.0), 2),
        }

    @property
    def _cut_at(self) -> float:
        return self.mended_at - self.cut_seconds


# --- the control plane ------------------------------------------------------------------------------


@dataclass(frozen=True)
class ControlPlane:
    """A gateway process over a seeded database, and the switch before it."""

    pid: int
    url: str
    ca_file: Path
    token_file: Path
    grants: Sequence[Any]
    switch: subprocess.Popen[bytes]

    def turn(self, *, on: bool) -> None:
        """Restore or cut the link."""
        assert self.switch.stdin is not None
        assert self.switch.stdout is not None
        self.switch.stdin.write(b"on\n" if on else b"off\n")
        self.switch.stdin.flush()
        self.switch.stdout.readline()


@contextmanager
def control_plane(directory: Path, workers: int) -> Iterator[ControlPlane]:
    """Start Postgres, seed it, start the gateway and the switch."""
    from tests.support import postgres

    from airbridge.control_plane.identity import secrets, tokens

    with ExitStack() as stack:
        server = stack.enter_context(postgres.serve())
        url = server.url(server.create())
        airflow_home.migrate(url)
        secrets.create_all(directory / "secrets", TRUST_DOMAIN, datetime.now(UTC))
        with airflow_home.pointed_at(url) as metadata:
            grants = _seed(metadata, workers)
            with metadata.session() as session:
                token = tokens.create_join(
                    session, region=REGION, pool="default", owner="bench", ttl=timedelta(hours=1), uses=None
                ).text
                session.commit()
        (directory / "join.token").write_text(token)
        ports = [_free_port() for _ in range(3)]
        gateway = stack.enter_context(_process(_gateway_command(), _environment(directory, url, ports)))
        switch = stack.enter_context(
            _process(
                [sys.executable, "-m", "tests.benchmarks.switch", str(ports[2]), str(ports[0])],
                dict(os.environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        )
        _wait_until_ready(f"https://127.0.0.1:{ports[0]}", directory / "secrets" / "ca.crt", gateway)
        yield ControlPlane(
            pid=gateway.pid,
            url=f"https://127.0.0.1:{ports[2]}",
            ca_file=directory / "secrets" / "ca.crt",
            token_file=directory / "join.token",
            grants=grants,
            switch=switch,
        )


def _gateway_command() -> list[str]:
    return [sys.executable, "-m", "airbridge.control_plane.cli", "gateway"]


def _environment(directory: Path, url: str, ports: Sequence[int]) -> dict[str, str]:
    regions = directory / "regions.toml"
    regions.write_text(REGIONS)
    options = {
        "REGIONS_FILE": str(regions),
        "SECRETS_DIR": str(directory / "secrets"),
        "TRUST_DOMAIN": TRUST_DOMAIN,
        "GATEWAY_PORT": str(ports[0]),
        "OPERATOR_PORT": str(ports[1]),
    }
    ours = {f"AIRFLOW__AIRBRIDGE__{name}": value for name, value in options.items()}
    return {**os.environ, **airflow_home.environment(directory / "airflow", url), **ours}


@contextmanager
def _process(command: list[str], env: dict[str, str], **pipes: Any) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, env=env, stderr=subprocess.DEVNULL, **pipes)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait(5)


def _wait_until_ready(url: str, ca_file: Path, process: subprocess.Popen[bytes]) -> None:
    context = ssl.create_default_context(cafile=str(ca_file))
    with httpx.Client(verify=context, trust_env=False) as client:
        for _ in range(900):
            with contextlib.suppress(httpx.TransportError):
                if client.get(f"{url}/readyz").status_code == 200:
                    return
            if process.poll() is not None:
                break
            time.sleep(0.1)
    raise RuntimeError(f"the gateway is not ready; exit status {process.poll()}")


def _seed(metadata: Any, workers: int) -> list[Any]:
    """Give each worker a task that it holds under epoch 1, as its claim would have left it."""
    from airflow.models.taskinstance import TaskInstance
    from tests.integration.gateway import seeding

    from airbridge.executor.ledger import clock, leases

    rows: list[Any] = []
    with metadata.session() as session:
        while len(rows) < workers:
            tasks = seeding.queued_tasks(session, min(200, workers - len(rows)))
            rows += seeding.placed_items(session, tasks, region=REGION)
        now = clock.now(session)
        for number, row in enumerate(rows):
            name = _name(number)
            started_as = {"hostname": name, "unixname": "airbridge", "pid": 1}
            started = {"start_date": now.isoformat(), "started_as": started_as, "ti_context": {}}
            leases.claim(session, row, name, 60.0, 3600.0, started, at=now)
            ti = session.get(TaskInstance, row.ti_id)
            ti.state, ti.hostname, ti.unixname, ti.pid = "running", name, "airbridge", 1
            ti.start_date = ti.last_heartbeat_at = now
        grants = [_grant(row) for row in rows]
        session.commit()
    return grants


def _grant(row: Any) -> Any:
    from airbridge.core.protocol import BundleRef, Grant

    return Grant(
        item_id=row.id,
        ti_id=row.ti_id,
        epoch=1,
        lease_seconds=60,
        ti=row.workload["ti"],
        ti_context={},
        start_date=row.started["start_date"],
        started_as=row.started["started_as"],
        dag_rel_path="dag.py",
        bundle=BundleRef.model_validate(row.workload["bundle"]),
        log_path=row.workload["log_path"],
    )


def _name(number: int) -> str:
    return f"worker-{number}"


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- the workers ------------------------------------------------------------------------------------


class NoJournal:
    """A journal that is never in the way: disks are not what is measured."""

    bytes = pending = 0
    events: tuple[Any, ...] = ()
    damages: tuple[Any, ...] = ()

    def submit(self, _: Any) -> asyncio.Future[None]:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.set_result(None)
        return done


class Deaf:
    """Listens to no command; none is given."""

    def __getattr__(self, _: str) -> Any:
        return lambda *arguments: None


class Simulated:
    """The part of a worker that talks to the gateway."""

    def __init__(self, number: int, plane: ControlPlane, figures: Figures) -> None:
        from airbridge.core.backoff import Backoff
        from airbridge.core.protocol import Versions, WorkerState
        from airbridge.edge_worker.clock import SystemClock
        from airbridge.edge_worker.gateway_client import tls
        from airbridge.edge_worker.gateway_client.client import Gateway
        from airbridge.edge_worker.gateway_client.connectivity import Connectivity
        from airbridge.edge_worker.gateway_client.heartbeat import HeartbeatLoop
        from airbridge.edge_worker.gateway_client.identity import Identity
        from airbridge.edge_worker.gateway_client.join import TokenJoin
        from airbridge.edge_worker.gateway_client.rejoin_key import RejoinKey
        from airbridge.edge_worker.gateway_client.reporter import Reporter
        from airbridge.edge_worker.ops.events import EventLog
        from airbridge.edge_worker.proxy.recorder import Recorder
        from airbridge.edge_worker.settings import WorkerSettings
        from airbridge.edge_worker.work.attempts import Attempt, Attempts, Phase

        default = {name: each.default for name, each in WorkerSettings.model_fields.items()}
        rng = random.Random(number)
        clock = SystemClock()
        journal: Any = NoJournal()
        handler: Any = Deaf()
        events = EventLog(journal, clock)
        connectivity = Connectivity(clock, events.connectivity_changed)

        def backoff() -> Backoff:
            return Backoff(default["retry_base_seconds"], default["retry_cap_seconds"], rng.random)

        class Counted(Gateway):
            async def _request(self, what: str, *arguments: Any) -> Any:
                try:
                    answer = await super()._request(what, *arguments)
                except Exception as error:
                    figures.requests.append((time.monotonic(), what, type(error).__name__))
                    raise
                figures.requests.append((time.monotonic(), what, "answered"))
                return answer

        self.gateway = Counted(
            plane.url,
            tls.anonymous_context(plane.ca_file.read_text()),
            connectivity,
            clock,
            timeout_seconds=default["request_timeout_seconds"],
            connect_timeout_seconds=default["connect_timeout_seconds"],
        )
        versions = Versions(airbridge="0.1.0", airflow="3.0.4", task_sdk="1.0.4", python="3.11.7")
        self.identity = Identity(
            region=REGION,
            pool="default",
            name=_name(number),
            gateway=self.gateway,
            join=TokenJoin(plane.token_file),
            rejoin_key=RejoinKey(plane.token_file.with_name(f"{_name(number)}.rejoin.key")),
            versions=versions,
            backoff=backoff,
            changed=lambda _: None,
        )
        self.attempt = Attempt(plane.grants[number], phase=Phase.STARTED, contact_at=clock.elapsed())
        attempts = Attempts(slots=8)
        attempts.add(self.attempt)
        self.reporter = Reporter(
            gateway=self.gateway,
            journal=journal,
            connectivity=connectivity,
            clock=clock,
            events=events,
            backoff=backoff(),
            on_answer=lambda *_: None,
            on_fenced=lambda *_: None,
            on_identity=lambda *_: None,
        )
        self.recorder = Recorder(journal, clock, self.reporter.wake, default["linger_seconds"])
        self.heartbeat = HeartbeatLoop(
            gateway=self.gateway,
            attempts=attempts,
            journal=journal,
            clock=clock,
            rng=rng,
            backoff=backoff(),
            versions=versions,
            state=lambda: WorkerState.ACTIVE,
            trust_version=lambda: self.identity.trust_version,
            queue_error=lambda: None,
            claiming=lambda: (),
            handler=handler,
            events=events,
            interval_seconds=default["heartbeat_seconds"],
        )
        self._rng = rng
        self._loops: list[asyncio.Task[None]] = []

    def start(self) -> None:
        self._loops = [asyncio.create_task(self.heartbeat.run()), asyncio.create_task(self.reporter.run())]

    async def finish_within(self, seconds: float) -> None:
        """End the task at some moment of the cut: an XCom, and success."""
        from airbridge.edge_worker.proxy.protocol import Call
        from airbridge.edge_worker.work.attempts import Phase

        await asyncio.sleep(self._rng.uniform(0, seconds))
        ti = self.attempt.grant.ti
        xcom = f"xcoms/{ti['dag_id']}/{ti['run_id']}/{ti['task_id']}/return_value"
        state = json.dumps({"state": "success", "end_date": datetime.now(UTC).isoformat()})
        await self.recorder.write(self.attempt, Call(1, "POST", xcom, "", '"done"'))
        path = f"task-instances/{self.attempt.grant.ti_id}/state"
        await self.recorder.write(self.attempt, Call(2, "PATCH", path, "", state), final=True)
        self.attempt.enter(Phase.ENDED)

    async def stop(self) -> None:
        for loop in self._loops:
            loop.cancel()
        await asyncio.gather(*self._loops, return_exceptions=True)
        await self.gateway.close()


async def enrol(workers: Sequence[Simulated]) -> None:
    """Enrol all, some at a time."""
    limit = asyncio.Semaphore(16)

    async def one(worker: Simulated) -> None:
        async with limit:
            await worker.identity.enrol_persistently()

    await asyncio.gather(*(one(worker) for worker in workers))


async def scenario(plane: ControlPlane, figures: Figures) -> None:
    """Settle, cut, restore, drain."""
    report(f"enrolling {figures.workers} workers")
    workers = [Simulated(number, plane, figures) for number in range(figures.workers)]
    await enrol(workers)
    sampling = asyncio.create_task(sample(plane, workers, figures))
    for worker in workers:
        # As if started over one heartbeat interval.
        asyncio.get_running_loop().call_later(random.uniform(0, 10), worker.start)
    await asyncio.sleep(10 + SETTLE_SECONDS)
    report(f"cutting the link for {figures.cut_seconds:g} s; every task ends meanwhile")
    plane.turn(on=False)
    cut_at = time.monotonic()
    await asyncio.gather(*(worker.finish_within(figures.cut_seconds * 0.9) for worker in workers))
    await asyncio.sleep(max(0.0, cut_at + figures.cut_seconds - time.monotonic()))
    plane.turn(on=True)
    figures.mended_at = time.monotonic()
    report("mended")
    from airbridge.edge_worker.work.attempts import Outcome

    async with asyncio.timeout(DRAIN_LIMIT_SECONDS):
        while not all(worker.attempt.outcome is Outcome.COMMITTED for worker in workers):
            await asyncio.sleep(0.05)
    figures.drained_after = time.monotonic() - figures.mended_at
    report(f"drained in {figures.drained_after:.1f} s")
    await asyncio.sleep(AFTER_SECONDS)
    sampling.cancel()
    await asyncio.gather(*(worker.stop() for worker in workers))


async def sample(plane: ControlPlane, workers: Sequence[Simulated], figures: Figures) -> None:
    """Note the gateway's CPU and what is left to report, each second."""
    at, used = time.monotonic(), cpu_seconds([plane.pid])
    while True:
        await asyncio.sleep(SECOND)
        now, now_used = time.monotonic(), cpu_seconds([plane.pid])
        figures.cpu.append((now, (now_used - used) / (now - at)))
        figures.waiting.append((now, sum(bool(each.attempt.unanswered) for each in workers)))
        at, used = now, now_used


# --- the picture ------------------------------------------------------------------------------------


def draw(figures: Figures, path: Path) -> None:
    """Draw requests, CPU and what is left over time."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    def since(at: float) -> float:
        return at - figures.mended_at

    first, last = -figures.cut_seconds - SETTLE_SECONDS, (figures.drained_after or 0) + AFTER_SECONDS
    figure, (requests, cpu, left) = plt.subplots(3, 1, figsize=(9, 7), sharex=True, layout="constrained")
    seconds = range(int(first), int(last))
    bottom = [0] * len(seconds)
    for how, label, colour in (
        ("answered", "answered", "#2a7f62"),
        ("GatewayBusy", "asked for patience (503)", "#e0a030"),
        ("GatewayUnreachable", "no connection", "#b0b0b0"),
    ):
        counts = [figures.per_second(how).get(second, 0) for second in seconds]
        requests.bar(seconds, counts, bottom=bottom, width=1.0, align="edge", label=label, color=colour)
        bottom = [a + b for a, b in zip(bottom, counts, strict=True)]
    requests.set_ylabel("requests a second")
    requests.legend(loc="upper left", frameon=False)
    cpu.step(
        [since(at) for at, _ in figures.cpu], [used for _, used in figures.cpu], where="pre", color="#2a5f9e"
    )
    cpu.set_ylabel("gateway, CPU cores")
    cpu.set_ylim(bottom=0)
    left.plot(
        [since(at) for at, _ in figures.waiting], [count for _, count in figures.waiting], color="#8a3d3d"
    )
    left.set_ylabel("results to report")
    left.set_ylim(bottom=0)
    left.set_xlabel("seconds since the link was mended")
    for axes in (requests, cpu, left):
        axes.axvspan(-figures.cut_seconds, 0, color="#f3e3e3", zorder=0)
        axes.set_xlim(first, last)
        axes.spines[["top", "right"]].set_visible(False)
    requests.set_title(f"{figures.workers} workers, one gateway process, a cut of {figures.cut_seconds:g} s")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def report(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main() -> None:
    """Run it; print the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--cut-seconds", type=float, default=60.0)
    parser.add_argument("--picture", type=Path, help="where to draw it (PNG or SVG; needs matplotlib)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    airflow_home.isolate()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    figures = Figures(arguments.workers, arguments.cut_seconds)
    with tempfile.TemporaryDirectory(prefix="airbridge-stampede-") as directory:
        report("starting Postgres and the gateway")
        with control_plane(Path(directory), arguments.workers) as plane:
            asyncio.run(scenario(plane, figures))
    if arguments.picture is not None:
        draw(figures, arguments.picture)
        report(f"drawn to {arguments.picture}")
    print(json.dumps(figures.summary(), indent=2))


if __name__ == "__main__":
    main()
