"""Cost of each kind of request by itself: CPU of gateway, Postgres and scheduler, and bytes of WAL.

    python -m tests.benchmarks.costs                 # 1,000 simulated workers, about four minutes
    python -m tests.benchmarks.costs --workers 200

In the stages of ``tests/benchmarks/swarm.py`` heartbeats and work come together, and each stage has the same number of tasks: a
claim, an exchange and what the processes do at rest cannot be told apart by them. Here they come one after another, on the same
platform with its gateway alone on a core: nothing at all, heartbeats at several rates, placing, claims, heartbeats of workers that hold a
lease, exchanges, and nothing at all beside a table of many workers. Writes ``tests/benchmarks/results/costs.json``, which
``tests/benchmarks/capacity.py`` reads.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any, Final

import psycopg2
import uvloop
from tests.benchmarks import database_counters, processes
from tests.benchmarks.airflow_api import AirflowApi
from tests.benchmarks.edge import Edge
from tests.benchmarks.simulated_workers import (
    VERSIONS,
    Identities,
    SimulatedWorker,
    encoded,
    heartbeat,
    refusals,
    success,
)
from tests.benchmarks.swarm import (
    GATEWAY_CORE,
    REGION,
    RESULTS,
    Swarm,
    Tally,
    bind_to_one_core,
    leave_a_core,
)
from tests.benchmarks.systems import DAG_COUNT, WORKLOADS, end_well

from airbridge.core.protocol import Grant, LeaseRef

OUTPUT: Final = RESULTS / "costs.json"
WORKERS: Final = 1_000
REST_SECONDS: Final = 12.0
RATES: Final = ((400.0, 10.0), (100.0, 10.0), (5.0, 15.0))
"""Heartbeats a second, and for how many seconds. The first ones are enough to keep every connection open until the end."""
RENEWALS: Final = ((100.0, 8.0), (400.0, 8.0))
"""The same for heartbeats that renew a lease: a batch of these has statements of its own, whatever their number."""
RUNNING_SECONDS: Final = 8.0
ROUNDS: Final = 3
TASKS_A_ROUND: Final = 200
AT_ONCE: Final = 4
"""Claims, or exchanges, under way at the same time."""
PLACING_SECONDS: Final = 120.0
MANY_ROWS: Final = 50_000
"""Workers in the table for the last phase; they have no connections."""
_MORE_ROWS: Final = (
    "INSERT INTO airbridge_worker (id, region, pool, state, versions, slots_total, enrolled_at, last_heartbeat_at)"
    " SELECT 'row-' || n, %s, 'default', 'active', %s, 1, now(), now() FROM generate_series(1, %s) AS n"
)


class Phases:
    """Phases of one measurement, over connected workers."""

    def __init__(self, edge: Edge, api: AirflowApi, swarm: Swarm) -> None:
        self._edge = edge
        self._api = api
        self._swarm = swarm
        self._gateway_pid = edge.main_pids()["gateway"]
        self._rng = random.Random(1)
        self.found: list[dict[str, Any]] = []

    async def run(self, workers: int) -> None:
        """Run all of them; `found` has the figures."""
        async with self._phase("rest", workers=0):
            await asyncio.sleep(REST_SECONDS)
        await self._swarm.grow(workers)
        async with self._phase("rest", workers=workers):
            await asyncio.sleep(REST_SECONDS)
        for rate, seconds in RATES:
            async with self._phase("heartbeats", workers=workers) as figures:
                figures["heartbeats"] = await self._heartbeats(rate, seconds)
        for number in range(ROUNDS):
            await self._round(number, workers)
        self._add_rows(MANY_ROWS)
        async with self._phase("rest", workers=workers + MANY_ROWS):
            await asyncio.sleep(REST_SECONDS)

    async def _round(self, number: int, workers: int) -> None:
        async with self._phase("placing", workers=workers) as figures:
            envelopes, figures["span_seconds"] = await self._place(number)
            figures["placed"] = len(envelopes)
        holders = list(zip(self._swarm.workers, envelopes, strict=False))
        grants: list[tuple[SimulatedWorker, Grant]] = []
        async with self._phase("claims", workers=workers, running=len(holders) / 2) as figures:
            figures["claims"] = await self._side_by_side(
                self._claim(worker, envelope, grants) for worker, envelope in holders
            )
        if number == 0:
            async with self._phase("running", workers=workers, running=len(grants)):
                await asyncio.sleep(RUNNING_SECONDS)
            for rate, seconds in RENEWALS:
                async with self._phase("renewals", workers=workers, running=len(grants)) as figures:
                    figures["heartbeats"] = figures["leases"] = await self._heartbeats(rate, seconds, grants)
        async with self._phase("exchanges", workers=workers, running=len(grants) / 2) as figures:
            figures["exchanges"] = await self._side_by_side(
                self._report(worker, grant) for worker, grant in grants
            )
            await self._ended()

    @contextlib.asynccontextmanager
    async def _phase(self, name: str, workers: int, running: float = 0) -> AsyncIterator[dict[str, Any]]:
        """Measure the block; it adds the numbers of requests that were answered. `running` is the mean number of tasks that run."""
        figures: dict[str, Any] = {"phase": name, "workers": workers, "gateways": 1, "running": running}
        # Statistics of the block before are sent when a session has been idle for a second.
        await asyncio.sleep(1.5)
        began, cpu, written = time.monotonic(), self._cpu(), database_counters.read(self._edge.database_url)
        yield figures
        took, spent = time.monotonic() - began, self._cpu()
        await asyncio.sleep(1.5)
        counters = database_counters.read(self._edge.database_url) - written
        figures |= {
            "seconds": round(took, 2),
            "cpu_seconds": {each: round(spent[each] - cpu[each], 3) for each in spent},
            "wal_bytes": counters.wal_bytes,
            "worker_updates": counters.worker_updates,
            "worker_hot_updates": counters.worker_hot_updates,
        }
        self.found.append(figures)
        print(json.dumps(figures), file=sys.stderr, flush=True)

    def _cpu(self) -> dict[str, float]:
        spent = self._edge.cpu_seconds()
        return {
            "gateway": spent["gateway"],
            "gateway_loop": processes.thread_cpu_seconds(self._gateway_pid, self._gateway_pid),
            "postgres": spent["database"],
            "scheduler": spent["scheduler"],
            "others": spent["control"] - spent["gateway"] + spent["broker"],
            "simulator": time.process_time(),
        }

    async def _heartbeats(
        self, rate: float, seconds: float, grants: Sequence[tuple[SimulatedWorker, Grant]] = ()
    ) -> int:
        """Send heartbeats at random times, each from the next worker; return how many were answered."""
        tally = Tally()
        senders = [(worker, _leases(grant)) for worker, grant in grants]
        senders = senders or [(worker, ()) for worker in self._swarm.workers]
        began = time.monotonic()
        times = sorted(self._rng.uniform(0, seconds) for _ in range(round(rate * seconds)))

        async def send(number: int, due: float) -> None:
            worker, leases = senders[number % len(senders)]
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            # The first connection, busy or not: handshakes are no part of a phase.
            (connection,) = worker.reserve(1)
            await self._swarm.timed(connection, "heartbeat", partial(heartbeat, leases), due, tally)

        await asyncio.gather(*(send(number, began + each) for number, each in enumerate(times)))
        return _answered(tally, "heartbeat")

    async def _place(self, number: int) -> tuple[list[str], float]:
        """Trigger tasks; return their messages, and the seconds from the first ones to the last. Raises `TimeoutError`."""
        for run in range(TASKS_A_ROUND // 100):
            await asyncio.to_thread(self._api.trigger, "fanout_100", f"costs-{number}-{run}")
        envelopes: list[str] = []
        came: list[float] = []
        async with asyncio.timeout(PLACING_SECONDS):
            while len(envelopes) < TASKS_A_ROUND:
                if messages := await asyncio.to_thread(self._swarm.receive):
                    envelopes += messages
                    came.append(time.monotonic())
        return envelopes, round(came[-1] - came[0], 2)

    async def _claim(
        self, worker: SimulatedWorker, envelope: str, grants: list[tuple[SimulatedWorker, Grant]]
    ) -> int:
        tally, body = Tally(), encoded({"envelopes": [envelope]})
        answer = await self._swarm.timed(worker.free, "claim", lambda: body, time.monotonic(), tally)
        grants += [(worker, Grant.model_validate(each)) for each in json.loads(answer or b"{}")["grants"]]
        return _answered(tally, "claim")

    async def _report(self, worker: SimulatedWorker, grant: Grant) -> int:
        tally, body = Tally(), success(grant)
        answer = await self._swarm.timed(worker.free, "exchange", lambda: body, time.monotonic(), tally)
        for refusal in refusals(answer):
            tally.fail("record", refusal)
        return _answered(tally, "exchange")

    async def _ended(self) -> None:
        """Wait until the scheduler has ended the runs: what that costs it and Postgres belongs to the tasks."""
        async with asyncio.timeout(PLACING_SECONDS):
            while await asyncio.to_thread(self._api.unfinished_runs, "fanout_100"):
                await asyncio.sleep(0.5)

    async def _side_by_side(self, requests: Iterable[Awaitable[int]]) -> int:
        gate = asyncio.Semaphore(AT_ONCE)

        async def one(request: Awaitable[int]) -> int:
            async with gate:
                return await request

        return sum(await asyncio.gather(*(one(request) for request in requests)))

    def _add_rows(self, count: int) -> None:
        connection = psycopg2.connect(self._edge.database_url.replace("+psycopg2", ""))
        with contextlib.closing(connection), connection, connection.cursor() as cursor:
            cursor.execute(_MORE_ROWS, (REGION, VERSIONS.model_dump_json(), count))


def _answered(tally: Tally, kind: str) -> int:
    """Return how many were answered. Raises `RuntimeError` if one was not: its cost would be another one's."""
    if tally.failed:
        raise RuntimeError(f"{sum(tally.failed.values())} requests failed: {tally.reasons}")
    return len(tally.seconds[kind])


def _leases(grant: Grant) -> tuple[LeaseRef, ...]:
    return (LeaseRef(item_id=grant.item_id, epoch=grant.epoch),)


async def measure(edge: Edge, folder: Path, workers: int, keep: Callable[[dict[str, Any]], None]) -> None:
    """Run the phases, and `keep` the report."""
    api = AirflowApi(edge.base_url, edge.database_url)
    await asyncio.to_thread(api.wait_for_dags, DAG_COUNT)
    bind_to_one_core(edge.main_pids()["gateway"], GATEWAY_CORE)
    swarm = Swarm(edge, Identities(edge.secrets_dir, folder))
    phases = Phases(edge, api, swarm)
    load = os.getloadavg()[0]
    try:
        await phases.run(workers)
    finally:
        await swarm.close()
    keep(
        {
            "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "cpus": os.cpu_count(),
            "load_before": round(load, 2),
            "worker_table_bytes_a_row": round(database_counters.bytes_a_worker(edge.database_url)),
            "phases": phases.found,
        }
    )


def main() -> int:
    """Measure, print, store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=WORKERS, help=f"at least {TASKS_A_ROUND}")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    if options.workers < TASKS_A_ROUND:
        parser.error(f"--workers {options.workers}: at least {TASKS_A_ROUND}, one for each task of a round")
    logging.disable(logging.INFO)
    end_well()
    leave_a_core(1)

    def keep(report: dict[str, Any]) -> None:
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(json.dumps(report, indent=2) + "\n")

    with tempfile.TemporaryDirectory(prefix="airbridge-bench-costs-") as folder:
        Path(folder).chmod(0o755)
        edge = Edge(Path(folder) / "home", WORKLOADS, workers=0, regions=(REGION,))
        try:
            edge.start()
            with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                runner.run(measure(edge, Path(folder), options.workers, keep))
        finally:
            edge.stop()
    return 0


if __name__ == "__main__":
    sys.exit(main())
