"""Many simulated workers against one gateway process on one core: heartbeats at their default pace, claims and reports.

    python -m tests.benchmarks.swarm                       # 10, 100, 1,000 and 10,000 workers
    python -m tests.benchmarks.swarm --workers 10 100      # fewer
    python -m tests.benchmarks.swarm --transport gateway --workers 1000   # each also holds a long poll of its queue
    python -m tests.benchmarks.swarm --transport gateway --gateways 4     # spread over four processes

Each has a certificate, an access token and connections of its own, as a worker has: more than one while a heartbeat and work are
under way at the same time. The gateway is the local platform's, alone on one core; Postgres, the scheduler, the AWS emulator and this program share
the others. Several gateways are bound to a core each and share all of them with everything else. Latency is measured from when a
request was due, so a gateway that falls behind is seen to; how much of it is this program's own, because it was late to send, stands
beside it (``sent_late``). Writes ``tests/benchmarks/results/swarm.json``; with the
transport gateway ``swarm-gateway.json``, and with several gateways ``-four`` before the ending of either.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import random
import shutil
import sys
import tempfile
import time
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

import boto3
import psycopg2
import uvloop
from psycopg2.extras import execute_values
from tests.benchmarks import database_counters, gateways, processes
from tests.benchmarks.airflow_api import AirflowApi
from tests.benchmarks.edge import Edge
from tests.benchmarks.gateways import GatewayProcess
from tests.benchmarks.measured import percentiles
from tests.benchmarks.simulated_workers import (
    VERSIONS,
    Identities,
    SimulatedConnection,
    SimulatedWorker,
    encoded,
    heartbeat,
    refusals,
    success,
)
from tests.benchmarks.systems import DAG_COUNT, WORKLOADS, end_well

from airbridge.control_plane.gateway.threads import HEARTBEAT_RETRY_SECONDS
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.control_plane.local.services.airflow_config import TRUST_DOMAIN
from airbridge.core.protocol import Grant

REGION: Final = "us-east-1"
FACTORY: Final = "factory-7"
"""Region whose workers receive through the gateway; its queue is in `REGION`."""
RESULTS: Final = Path(__file__).parent / "results"
POLL_SECONDS: Final = 20.0
"""Longest wait of a poll through the gateway, as a worker's own."""
GATEWAY_CORE: Final = 0
SIZES: Final = (10, 100, 1_000, 10_000)
INTERVAL_SECONDS: Final = 10.0
"""`[airbridge] heartbeat_interval` by default."""
MEASURE_SECONDS: Final = 30.0
REST_SECONDS: Final = 180.0
"""Longest wait before a stage until the gateways tell the usual interval: connecting is a load of its own."""
HANDSHAKES_AT_ONCE: Final = 50
KEPT_SECONDS: Final = 30.0
"""Idle time after which a connection has a request, while others are being made."""
KEPT_AT_ONCE: Final = 32
TASKS_A_STAGE: Final = 200


@dataclass
class Tally:
    """Results of one stage's requests: seconds from when each was due to its answer, by kind."""

    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: defaultdict[str, int] = field(default_factory=lambda: defaultdict(int))
    reasons: dict[str, str] = field(default_factory=dict)
    """Error of the first failed request of each kind."""
    sent_late: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Seconds from when each was due to when this program sent it."""
    due: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    """Monotonic times at which they were due."""

    def fail(self, kind: str, reason: str) -> None:
        """Count a request that was not answered as it should be."""
        self.failed[kind] += 1
        self.reasons.setdefault(kind, reason[:300])

    def as_json(self) -> dict[str, Any]:
        """Return counts and percentiles by kind of request."""
        kinds = sorted({*self.seconds, *self.failed})
        return {
            kind: {
                "answered": len(self.seconds[kind]),
                "failed": self.failed[kind],
                "first_failure": self.reasons.get(kind),
                "seconds": percentiles(self.seconds[kind]),
                "sent_late": percentiles(self.sent_late[kind]),
                "span_seconds": round(max(self.due[kind], default=0.0) - min(self.due[kind], default=0.0), 2),
            }
            for kind in kinds
        }


class Gateway(Protocol):
    """Platform as a swarm knows it; `Edge` is one."""

    gateway_port: int
    database_url: str
    aws_url: str
    queue_url: str


class Swarm:
    """The simulated workers and the work that they do."""

    def __init__(
        self, edge: Gateway, identities: Identities, region: str = REGION, ports: Sequence[int] = ()
    ) -> None:
        self._edge = edge
        self._identities = identities
        self._region = region
        self._ports = ports or (edge.gateway_port,)
        self._workers: list[SimulatedWorker] = []
        self._rng = random.Random(1)
        # Connections, and when each had its last request, while others are being made.
        self._idle: deque[tuple[float, SimulatedConnection]] = deque()
        self._sqs = boto3.client(
            "sqs",
            region_name=REGION,
            endpoint_url=edge.aws_url,
            aws_access_key_id="bench",
            aws_secret_access_key="bench",
        )

    async def grow(self, size: int) -> tuple[float, int]:
        """Enrol and connect workers until there are `size`; return how many seconds connecting took, and how many could not."""
        fresh = [self._enrolled(number) for number in range(len(self._workers), size)]
        self._write_rows([(worker.name, certificate) for worker, certificate in fresh])
        began = time.monotonic()
        gate = asyncio.Semaphore(HANDSHAKES_AT_ONCE)

        async def connect(worker: SimulatedWorker) -> bool:
            async with gate:
                for _ in range(5):
                    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                        # One is for the poll that a worker of the factory holds; handshakes are no part of a stage.
                        for connection in worker.reserve(2 if self._region == FACTORY else 1):
                            await connection.connect()
                            # The gateway closes connections on which no request arrives.
                            await connection.post("heartbeat", heartbeat)
                            self._idle.append((time.monotonic(), connection))
                        return True
                return False

        async with self._kept_open():
            connected = await asyncio.gather(*(connect(worker) for worker, _ in fresh))
            took = time.monotonic() - began
            self._workers += [worker for worker, _ in fresh]
            await self._at_rest(took)
        # Walking over what ten thousand connections are made of, again and again, would make this program late.
        gc.collect()
        gc.freeze()
        return took, connected.count(False)

    async def _at_rest(self, connecting_seconds: float) -> None:
        """Wait until every gateway tells the usual interval again."""
        until = time.monotonic() + (REST_SECONDS if connecting_seconds > 1 else 0)
        while time.monotonic() < until:
            told = []
            for worker in self._workers[: max(1, len(self._ports))]:
                with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                    _, answer, _ = await worker.free.post("heartbeat", heartbeat)
                    told.append(json.loads(answer).get("interval_seconds"))
            if set(told) == {INTERVAL_SECONDS}:
                return
            await asyncio.sleep(2.0)

    @contextlib.asynccontextmanager
    async def _kept_open(self) -> AsyncIterator[None]:
        """Have a request on each connection in time, while others are made, so that the gateway does not close it."""
        self._idle = deque((time.monotonic(), each) for worker in self._workers for each in worker.reserve(1))

        async def keep() -> None:
            while True:
                while self._idle and time.monotonic() - self._idle[0][0] > KEPT_SECONDS:
                    _, connection = self._idle.popleft()
                    with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError):
                        await connection.post("heartbeat", heartbeat)
                    self._idle.append((time.monotonic(), connection))
                await asyncio.sleep(0.1)

        # Several: one alone would fall behind where an answer takes as long as a handshake.
        keepers = [asyncio.create_task(keep()) for _ in range(KEPT_AT_ONCE)]
        try:
            yield
        finally:
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            self._idle.clear()

    def _enrolled(self, number: int) -> tuple[SimulatedWorker, PeerCertificate]:
        name = WorkerName(TRUST_DOMAIN, self._region, "default", f"sim-{number:05d}")
        context, token, certificate = self._identities.issue(name)
        port = self._ports[number % len(self._ports)]
        return SimulatedWorker(name, context, token, port), certificate

    @property
    def workers(self) -> Sequence[SimulatedWorker]:
        """All workers that were connected."""
        return self._workers

    @property
    def connections(self) -> int:
        """Number of connections of all workers."""
        return sum(worker.connections for worker in self._workers)

    def _write_rows(self, fresh: Sequence[tuple[WorkerName, PeerCertificate]]) -> None:
        versions = VERSIONS.model_dump_json()
        rows = [
            (name.worker, name.region, name.pool, versions, certificate.thumbprint, certificate.not_after)
            for name, certificate in fresh
        ]
        statement = (
            "INSERT INTO airbridge_worker (id, region, pool, state, versions, certificate_thumbprint,"
            " certificate_expires_at, enrolled_at) VALUES %s"
        )
        template = "(%s, %s, %s, 'active', %s, %s, %s, now())"
        connection = psycopg2.connect(self._edge.database_url.replace("+psycopg2", ""))
        with contextlib.closing(connection), connection, connection.cursor() as cursor:
            execute_values(cursor, statement, rows, template, page_size=500)

    async def stage(self, seconds: float, *, work: bool = True) -> Tally:
        """Have every worker send heartbeats for so long, and some of them claim, start and finish tasks, if there is `work`."""
        tally = Tally()
        until = time.monotonic() + seconds
        beats = [asyncio.create_task(self._beat(worker, until, tally)) for worker in self._workers]
        if self._region == FACTORY:
            beats += [asyncio.create_task(self._poll(worker, until, tally)) for worker in self._workers]
        elif work:
            await self._work(until, tally)
        await asyncio.gather(*beats)
        return tally

    async def _beat(self, worker: SimulatedWorker, until: float, tally: Tally) -> None:
        due = time.monotonic() + self._rng.uniform(0, INTERVAL_SECONDS)
        while due < until:
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            answer = await self.timed(worker.free, "heartbeat", heartbeat, due, tally)
            if answer is None:
                # As a worker does: after the Retry-After of a gateway that sheds load, with jitter.
                due = time.monotonic() + HEARTBEAT_RETRY_SECONDS + self._rng.uniform(0, 1)
                continue
            worker.interval_seconds = json.loads(answer)["interval_seconds"]
            due = max(due + worker.interval_seconds, time.monotonic())

    async def _poll(self, worker: SimulatedWorker, until: float, tally: Tally) -> None:
        """Hold a long poll through the gateway, and see through what it brings, as a worker of one slot.

        Polls begin spread over their longest wait, as those of workers that have run for long are.
        """
        await asyncio.sleep(self._rng.uniform(0, min(POLL_SECONDS, until - time.monotonic())))
        while (left := until - time.monotonic()) > 0:
            asked = {"limit": 1, "wait_seconds": max(1.0, min(POLL_SECONDS, left))}
            answer = await self.timed(
                worker.free, "queue/receive", partial(encoded, asked), time.monotonic(), tally
            )
            if answer is None:
                await asyncio.sleep(1.0)
            for message in json.loads(answer)["messages"] if answer else ():
                await self._see_through(message["body"], tally, worker)
                receipts = partial(encoded, {"receipts": [message["receipt"]]})
                await self.timed(worker.free, "queue/delete", receipts, time.monotonic(), tally)

    async def timed(
        self, over: SimulatedConnection, what: str, body: Callable[[], bytes], due: float, tally: Tally
    ) -> bytes | None:
        """Make a request that is due, and count it; return the answer's body, or None if it failed."""
        try:
            status, answer, sent = await over.post(what, body)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            tally.fail(what, repr(error))
            return None
        if status != 200:
            tally.fail(what, f"{status}: {answer.decode(errors='replace')}")
            return None
        tally.seconds[what].append(time.monotonic() - due)
        tally.sent_late[what].append(sent - due)
        tally.due[what].append(due)
        return answer

    async def _work(self, until: float, tally: Tally) -> None:
        """Take messages from the region's queue, and have workers claim the items and report their tasks' success."""
        doing: set[asyncio.Task[None]] = set()
        while time.monotonic() < until:
            messages = await asyncio.to_thread(self.receive)
            for message in messages:
                task = asyncio.create_task(self._see_through(message, tally))
                doing.add(task)
                task.add_done_callback(doing.discard)
        await asyncio.gather(*doing)

    def receive(self) -> list[str]:
        """Take up to five messages from the region's queue; wait up to a second for one."""
        answer = self._sqs.receive_message(
            QueueUrl=self._edge.queue_url, MaxNumberOfMessages=5, WaitTimeSeconds=1
        )
        messages = answer.get("Messages", [])
        for message in messages:
            self._sqs.delete_message(QueueUrl=self._edge.queue_url, ReceiptHandle=message["ReceiptHandle"])
        return [message["Body"] for message in messages]

    async def _see_through(self, envelope: str, tally: Tally, worker: SimulatedWorker | None = None) -> None:
        worker = worker or self._rng.choice(self._workers)
        claim = json.dumps({"envelopes": [envelope]}).encode()
        answer = await self.timed(worker.free, "claim", lambda: claim, time.monotonic(), tally)
        grants = json.loads(answer)["grants"] if answer else []
        for each in grants:
            grant = Grant.model_validate(each)
            body = partial(success, grant)
            reported = await self.timed(worker.free, "exchange", body, time.monotonic(), tally)
            for refusal in refusals(reported):
                tally.fail("record", refusal)

    async def close(self) -> None:
        """Close every connection."""
        for worker in self._workers:
            await worker.close()


async def measure(
    edge: Edge,
    folder: Path,
    options: argparse.Namespace,
    processes_of_gateway: Sequence[GatewayProcess],
    keep: Callable[[list[dict[str, Any]]], None],
) -> None:
    """Measure each size in turn, the workers of the smaller ones staying; `keep` what was found after each."""
    api = AirflowApi(edge.base_url, edge.database_url)
    api.wait_for_dags(DAG_COUNT)
    pids, postgres = [each.pid for each in processes_of_gateway], edge.database_pid
    for number, pid in enumerate(pids):
        bind_to_one_core(pid, (GATEWAY_CORE + number) % (os.cpu_count() or 1))
    region = FACTORY if options.transport == "gateway" else REGION
    ports = [each.port for each in processes_of_gateway]
    swarm = Swarm(edge, Identities(edge.secrets_dir, folder), region, ports)
    empty_mb = processes.total_pss_mb(pids)
    found: list[dict[str, Any]] = []
    try:
        for size in options.workers:
            connecting, unconnected = await swarm.grow(size)
            for number in range(TASKS_A_STAGE // 100):
                api.trigger("fanout_100", f"swarm-{size}-{number}")
            cpu, database = processes.cpu_seconds(pids), processes.cpu_seconds([postgres])
            written = database_counters.read(edge.database_url)
            began, load, own = time.monotonic(), os.getloadavg()[0], time.process_time()
            tally = await swarm.stage(MEASURE_SECONDS)
            took = time.monotonic() - began
            full_mb = processes.total_pss_mb(pids)
            counters = database_counters.read(edge.database_url) - written
            figures = {
                "workers": size,
                "transport": options.transport,
                "gateways": len(pids),
                "seconds": round(took, 1),
                "load_before": round(load, 2),
                "connect_seconds": round(connecting, 1),
                "could_not_connect": unconnected,
                "gateway_cpu_share_of_a_core": round((processes.cpu_seconds(pids) - cpu) / took, 3),
                "postgres_cpu_share_of_a_core": round(
                    (processes.cpu_seconds([postgres]) - database) / took, 3
                ),
                "simulator_cpu_share_of_a_core": round((time.process_time() - own) / took, 3),
                "wal_bytes": counters.wal_bytes,
                "gateway_pss_mb": round(full_mb, 1),
                "connections": swarm.connections,
                # All that came since the first connection, caches and threads' arenas included.
                "gateway_kb_per_connection": round((full_mb - empty_mb) * 1e3 / swarm.connections, 1),
                "requests": tally.as_json(),
                # As the gateways told it last: longer than the usual one where they could not keep up.
                "heartbeat_interval_s": percentiles([worker.interval_seconds for worker in swarm.workers]),
            }
            found.append(figures)
            keep(found)
            print(json.dumps(figures), file=sys.stderr, flush=True)
    finally:
        await swarm.close()


def leave_a_core(gateway_count: int) -> None:
    """Confine this process, and all that it starts, to other cores than that of a single gateway, where there are others."""
    cores = os.sched_getaffinity(0)
    if gateway_count == 1 and len(cores) > 1:
        os.sched_setaffinity(0, cores - {GATEWAY_CORE})


def bind_to_one_core(pid: int, core: int) -> None:
    """Confine all threads of a process to a core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", nargs="*", type=int, default=SIZES)
    parser.add_argument("--transport", choices=("direct", "gateway"), default="direct")
    parser.add_argument("--gateways", type=int, default=1, help="gateway processes that share the workers")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    through = options.transport == "gateway"
    name = f"swarm{'-gateway' if through else ''}{'-four' if options.gateways > 1 else ''}.json"
    output = options.output or RESULTS / name
    logging.disable(logging.INFO)
    end_well()
    leave_a_core(options.gateways)
    with tempfile.TemporaryDirectory(prefix="airbridge-bench-swarm-") as folder:
        Path(folder).chmod(0o755)
        regions = (REGION, f"{FACTORY}@{REGION}") if through else (REGION,)
        dags = _workloads(Path(folder) / "dags", through)
        edge = Edge(Path(folder) / "home", dags, workers=0, regions=regions)
        try:
            edge.start()
            with (
                gateways.beside(edge, options.gateways) as running,
                asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
            ):
                runner.run(measure(edge, Path(folder), options, running, partial(_keep, output)))
        finally:
            edge.stop()
    return 0


def _workloads(folder: Path, through: bool) -> Path:
    """Return the folder of DAGs, whose tasks run in the factory where work goes through the gateway."""
    shutil.copytree(WORKLOADS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    if through:
        fanout = folder / "fanout_100.py"
        fanout.write_text(fanout.read_text().replace("@task\n", f'@task(queue="{FACTORY}")\n'))
    return folder


def _keep(output: Path, found: list[dict[str, Any]]) -> None:
    report = {
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "heartbeat_interval_s": INTERVAL_SECONDS,
        "cpus": os.cpu_count(),
        "stages": found,
    }
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
