"""Cost of observability per task, in CPU: its events at the edge and at the gateway, its spans, a scrape of the metrics.

    python -m tests.benchmarks.observing --tasks 300

CPU time of the thread that does the work, so that a busy machine changes little; the database's own is not in it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

from tests.support import airflow_home, postgres
from tests.support.collector import collecting

NAMES = ("message.received", "message.claimed", "task.forked", "task.ended", "report.delivered")


def cpu(work: Callable[[], Any]) -> float:
    """Return the CPU milliseconds that this thread spends on some work."""
    began = time.thread_time()
    work()
    return (time.thread_time() - began) * 1000


async def at_the_edge(tasks: int, directory: Path) -> float:
    """Return the milliseconds that a task's events cost the agent: noted, journalled, put into heartbeats, dropped."""
    from airbridge.edge_worker.clock import SystemClock
    from airbridge.edge_worker.journal.journal import Journal
    from airbridge.edge_worker.ops.events import EventLog

    journal, _ = await Journal.open(directory / "journal.sqlite", clock=SystemClock(), max_bytes=10**9)
    log = EventLog(journal, SystemClock())
    began = time.process_time()  # the journal's thread is part of it
    for _ in range(tasks):
        item = str(uuid4())
        for name in NAMES:
            log.emit(name, (item, 1), began_at=log.now, warm=True)
    await log.flush()
    while taken := log.pending():
        _ = [said.model_dump_json() for said in taken]
        log.acknowledge(taken)
    spent = time.process_time() - began
    await journal.close()
    return spent * 1000 / tasks


def at_the_gateway(tasks: int) -> dict[str, float]:
    """Return the milliseconds a task: to take its events, to export its spans; and those of one scrape."""
    from airflow import settings
    from tests.integration.gateway import seeding
    from tests.integration.gateway.world import CATALOGUE

    from airbridge.control_plane.gateway.background.metrics import Metrics
    from airbridge.control_plane.gateway.work import edge_events
    from airbridge.control_plane.identity.spiffe import WorkerName
    from airbridge.control_plane.parity import Parity
    from airbridge.control_plane.read_model.platform import Platform
    from airbridge.control_plane.tracing.exporter import TraceExporter
    from airbridge.control_plane.tracing.otlp import Collector
    from airbridge.core.protocol import EdgeEvent
    from airbridge.executor.ledger import events, leases
    from airbridge.executor.ledger.models import Outcome

    with settings.NonScopedSession() as session:
        rows = seeding.placed_items(session, seeding.queued_tasks(session, tasks), region="eu-west-1")
        for row in rows:
            row.trace = {"traceparent": f"00-{uuid4().hex}-{uuid4().hex[:16]}-01"}
        session.commit()
        ids = [row.id for row in rows]
    now = datetime.now(UTC)
    said = [
        EdgeEvent(
            uid=uuid4(), event=name, at=now, began_at=now - timedelta(seconds=1), item_id=UUID(item), epoch=1
        )
        for item in ids
        for name in NAMES
    ]
    caller: Any = SimpleNamespace(name=WorkerName("airbridge.test", "eu-west-1", "default", "worker-1"))
    with collecting() as receiver:
        exporter = TraceExporter(Collector(receiver.endpoint))
        for _ in range(4):
            exporter.export()

        def take() -> None:
            for start in range(0, len(said), 500):
                edge_events.record(caller, said[start : start + 500], at=now, skew_seconds=0.0)

        taking = cpu(take)
        with settings.NonScopedSession() as session:
            for row in leases.lock(session, ids).values():
                events.record(session, "item.sent", "outbox", row=row, at=now)
                events.record(session, "claim.granted", "spiffe://w", row=row, at=now)
                leases.settle(session, row, Outcome.SUCCESS, "success", at=now)
            session.commit()

        def export() -> None:
            for _ in range(4):
                while exporter.export():
                    pass

        exporting = cpu(export)
        spans = len(receiver.spans)
    metrics = Metrics(Platform(CATALOGUE, Parity.load(None)))
    metrics.render()
    counted = cpu(lambda: [metrics.granted("eu-west-1", "default") for _ in range(10_000)]) / 10_000
    fresh = Metrics(Platform(CATALOGUE, Parity.load(None)))
    return {
        "events taken, ms a task": taking / tasks,
        "spans exported, ms a task": exporting / tasks,
        "spans a task": spans / tasks,
        "one count, ms": counted,
        "one scrape, ms": cpu(fresh.render),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--tasks", type=int, default=300)
    tasks = parser.parse_args().tasks
    airflow_home.isolate()
    with tempfile.TemporaryDirectory() as directory, postgres.serve() as server:
        found = {"events at the edge, ms a task": asyncio.run(at_the_edge(tasks, Path(directory)))}
        name = server.create()
        airflow_home.migrate(server.url(name))
        with airflow_home.pointed_at(server.url(name)):
            found |= at_the_gateway(tasks)
    print(json.dumps({key: round(value, 4) for key, value in found.items()}, indent=1))


if __name__ == "__main__":
    main()
