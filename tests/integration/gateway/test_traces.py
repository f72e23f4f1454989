"""Traces from events: into a real OTLP receiver, each span once, none before its event is committed, none lost."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
from sqlalchemy import update
from tests.integration.gateway.world import World, finished
from tests.support.collector import Collector, collecting, connected

from airbridge.control_plane.exceptions import Unavailable
from airbridge.control_plane.tracing import exporter as exporting
from airbridge.control_plane.tracing import otlp
from airbridge.control_plane.tracing.exporter import TraceExporter
from airbridge.control_plane.tracing.otlp import Collector as Sink
from airbridge.control_plane.tracing.spans import Span
from airbridge.core.protocol import EdgeEvent
from airbridge.executor.ledger import events
from airbridge.executor.ledger.models import WorkItemRow


@pytest.fixture
def collector() -> Iterator[Collector]:
    with collecting() as receiver:
        yield receiver


@pytest.fixture
def exporter(collector: Collector) -> Iterator[TraceExporter]:
    sink = Sink(collector.endpoint)
    exporter = TraceExporter(sink)
    drain(exporter)  # what other tests of the module have left
    collector.spans.clear()
    yield exporter
    sink.close()


def drain(exporter: TraceExporter) -> None:
    """Export until there is nothing new; it takes some looks to know that nothing can come in between any more."""
    for _ in range(4):
        while exporter.export():
            pass


def edge_event(item: str, name: str, at: datetime, seconds: float = 0.0) -> EdgeEvent:
    began = at - timedelta(seconds=seconds)
    return EdgeEvent(uid=uuid4(), event=name, at=at, began_at=began, item_id=UUID(item), epoch=1)


def run_through(world: World, *, traceparent: str | None = None) -> str:
    """Take a task from place to commit, with its worker's events; return its item."""
    [item] = world.items()
    with world.metadata.session() as session:
        row = session.get(WorkItemRow, item)
        from airbridge.executor.placement.workloads import root_span_id

        trace = traceparent or f"00-{uuid4().hex}-{root_span_id(item)}-01"
        session.execute(
            update(WorkItemRow).where(WorkItemRow.id == item).values(trace={"traceparent": trace})
        )
        session.refresh(row)
        events.record(session, "item.sent", "outbox", row=row)
        session.commit()
    worker = world.worker()
    worker.exchange(finished(worker.grant(item), 1))
    now = datetime.now(UTC)
    names = ("message.received", "message.claimed", "task.forked", "task.ended", "report.delivered")
    worker.beat(events=tuple(edge_event(item, name, now, 0.5) for name in names))
    return item


def test_a_task_is_one_connected_trace(world: World, collector: Collector, exporter: TraceExporter) -> None:
    """From place to commit: every step is a span under the task's own, from scheduler, gateway and worker."""
    item = run_through(world)
    drain(exporter)
    row = world.row(item)
    [spans] = list(collector.of_tasks(row.dag_id).values())
    assert connected(spans) is None
    assert [] == collector.orphans()
    services = {span.resource["service.name"] for span in spans}
    assert {"airbridge-scheduler", "airbridge-gateway", "airbridge-worker"} == services
    assert {row.worker_id} == {
        span.resource["host.name"] for span in spans if span.resource["service.name"] == "airbridge-worker"
    }


def test_trace_continues_airflow_span(world: World, collector: Collector, exporter: TraceExporter) -> None:
    """With Airflow's tracing on, the task's span is a child of Airflow's, in Airflow's trace."""
    trace, parent = uuid4().hex, "00f067aa0ba902b7"
    item = run_through(world, traceparent=f"00-{trace}-{parent}-01")
    drain(exporter)
    spans = collector.of_tasks(world.row(item).dag_id).popitem()[1]
    assert {trace} == {span.trace_id for span in spans}
    assert [parent] == [span.parent_id for span in spans if span.name == "task"]
    assert [] == collector.orphans(frozenset({parent}))


def test_collector_outage_loses_no_spans(world: World, collector: Collector, exporter: TraceExporter) -> None:
    """Spans wait in the ledger: when the collector is back they come, once each, with their own times."""
    collector.closed = True
    item = run_through(world)
    with pytest.raises(Unavailable, match="did not accept"):
        drain(exporter)
    collector.closed = False
    drain(exporter)
    spans = collector.of_tasks(world.row(item).dag_id).popitem()[1]
    assert connected(spans) is None
    count = len(collector.spans)
    drain(exporter)
    assert count == len(collector.spans)


def test_late_commit_is_exported(world: World, collector: Collector, exporter: TraceExporter) -> None:
    """Ids are given out in order and committed in any: the export waits for a transaction that is still open."""
    item = run_through(world)
    drain(exporter)
    with world.metadata.session() as slow:
        row = slow.get(WorkItemRow, item)
        events.record(slow, "item.rerouted", "outbox", row=row, reason="late")
        slow.flush()  # it has its id now, and those below have later ones
        other = run_through(world)
        drain(exporter)
        assert "item.rerouted" not in {span.name for span in collector.spans.values()}
        slow.commit()
    drain(exporter)
    assert "item.rerouted" in {span.name for span in collector.spans.values()}
    assert connected(collector.of_tasks(world.row(other).dag_id).popitem()[1]) is None


SPAN = Span(
    trace_id=1,
    span_id=2,
    parent_id=None,
    name="task",
    service="airbridge-gateway",
    host=None,
    began_at=datetime.now(UTC),
    ended_at=datetime.now(UTC),
    attributes={},
    failed=None,
)


@pytest.mark.parametrize("listening", [False, True], ids=["no listener", "no answer"])
def test_unreachable_collector_is_unavailable(listening: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A collector that nothing listens for, and one that accepts connections and never answers, may be retried."""
    monkeypatch.setattr(otlp, "TIMEOUT_SECONDS", 0.5)
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        if listening:
            bound.listen()
        sink = Sink(f"http://127.0.0.1:{bound.getsockname()[1]}/v1/traces")
        with pytest.raises(Unavailable, match="did not accept 1 spans: "):
            sink.send([SPAN])
        sink.close()


class Broken:
    """Sink that fails once with an error that no sink should raise."""

    def __init__(self) -> None:
        self.failures = 1
        self.sent: list[Span] = []

    def send(self, spans: Sequence[Span]) -> None:
        """See `Sink.send`."""
        if self.failures:
            self.failures -= 1
            raise ValueError("malformed span")
        self.sent += spans

    def close(self) -> None:
        """See `Sink.close`."""


@pytest.mark.usefixtures("exporter")  # the export begins before the task does
def test_export_survives_any_error(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected error of a sink delays the export, and loses nothing."""
    monkeypatch.setattr(exporting, "RETRY_SECONDS", 0.01)
    sink = Broken()
    item = run_through(world)

    async def export() -> None:
        running = asyncio.create_task(TraceExporter(sink, every_seconds=0.01).run())
        until = time.monotonic() + 20
        while not running.done() and time.monotonic() < until:
            if "task" in {span.name for span in sink.sent}:
                break
            await asyncio.sleep(0.05)
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running

    asyncio.run(export())
    assert sink.failures == 0
    assert world.row(item).dag_id in {span.attributes["airflow.dag_id"] for span in sink.sent}
