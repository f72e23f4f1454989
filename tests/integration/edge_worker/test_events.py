"""Events of the edge reach the control plane in order, once, with the time at which they happened."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime

import pytest
import structlog
from tests.integration.edge_worker.conftest import World, until
from tests.integration.edge_worker.cut import LinkState
from tests.integration.edge_worker.test_agent import succeed

from airbridge.core.aws.queue import Outgoing
from airbridge.core.protocol import BundleRef, EdgeEvent
from airbridge.edge_worker.testing import FakeSupervisor

# As in test_cuts: a worker that ends in the middle of a TLS handshake.
pytestmark = pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")


def about(world: World, item_id: object) -> list[EdgeEvent]:
    return [event for event in world.control_plane.events.values() if event.item_id == item_id]


def test_events_of_one_task(world: World) -> None:
    """Received, claimed, code fetched, forked, ended, reported: each once, in order, under the grant's epoch."""

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(succeed):
            await until(lambda: item.state == "settled")
        told = about(world, item.item_id)
        assert [
            "message.received",
            "message.claimed",
            "bundle.fetched",
            "task.forked",
            "task.ended",
        ] == [
            event.event
            for event in sorted(told, key=lambda event: event.at)
            if event.event != "report.delivered"
        ]
        assert any(event.detail["final"] for event in told if event.event == "report.delivered")
        assert {1} == {event.epoch for event in told}
        assert all(event.began_at is None or event.began_at <= event.at for event in told)
        names = [event.event for event in world.control_plane.events.values()]
        assert "agent.started" in names

    asyncio.run(scenario())


def test_events_of_cut_are_reported_later(world: World) -> None:
    """Events of a cut keep their own times, survive the worker's restart, and the cut itself is one of them."""
    cut_at: list[datetime] = []
    restored_at: list[datetime] = []

    def into_the_cut(task: FakeSupervisor) -> None:
        world.cut.set(LinkState.REFUSE)
        cut_at.append(datetime.now(UTC))
        succeed(task)

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(into_the_cut, drain_flush_seconds=0.2) as agent:
            await until(lambda: bool(cut_at) and not agent.status()["link"]["up"])
            await asyncio.sleep(1.2)
        assert "task.ended" not in [event.event for event in about(world, item.item_id)]
        restored_at.append(datetime.now(UTC))
        world.cut.set(LinkState.UP)
        async with world.worker(succeed):
            await until(lambda: item.state == "settled")
        told = {event.event: event for event in about(world, item.item_id)}
        assert cut_at[0] < told["task.ended"].at < restored_at[0]
        assert told["report.delivered"].at > restored_at[0]
        everything = {event.event: event for event in world.control_plane.events.values()}
        assert cut_at[0] < everything["link.cut"].at < restored_at[0]

    asyncio.run(scenario())


def test_rejected_message_names_claimed_item(world: World) -> None:
    """The event of a tampered message names the item that it claims to be, and the reason of the rejection."""

    async def scenario() -> None:
        item, envelope = world.control_plane.place(world.publish())
        tampered = envelope.replace('"sig":"', '"sig":"AAAA')
        world.queue.send([Outgoing("1", tampered)])
        async with world.worker(succeed):
            await until(lambda: about(world, item.item_id))
        [event] = about(world, item.item_id)[:1]
        assert ("message.rejected", "bad_signature") == (event.event, event.detail["reason"])

    asyncio.run(scenario())


def test_forged_epoch_costs_nothing(world: World) -> None:
    """A message of a stranger with an epoch that no column holds is refused as any other; the worker and its tasks go on."""

    async def scenario() -> None:
        item, envelope = world.control_plane.place(world.publish())
        forged = json.loads(envelope)
        payload = json.loads(base64.urlsafe_b64decode(forged["payload"] + "=="))
        payload["epoch"] = 2**31
        forged["payload"] = base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")
        world.queue.send([Outgoing("1", json.dumps(forged))])
        async with world.worker(succeed):
            await asyncio.sleep(0.3)
            world.queue.send([Outgoing("2", envelope)])
            await until(lambda: item.state == "settled")
        assert item.states == ["success"]

    asyncio.run(scenario())


def test_missing_code_is_an_event(world: World) -> None:
    """Each failed fetch of the DAG code is an event of the task that waits for it, and so is its failure."""

    async def scenario() -> None:
        item, envelope = world.control_plane.place(BundleRef(name="main", version=f"sha256:{'9' * 64}"))
        world.queue.send([Outgoing("1", envelope)])
        async with world.worker(succeed):
            await until(lambda: item.state == "settled")
        names = [event.event for event in about(world, item.item_id)]
        assert names.count("bundle.failing") >= 2
        assert "task.failed" in names

    asyncio.run(scenario())


def test_log_lines_carry_ids(world: World) -> None:
    """Worker and region are on every log line of the agent, task instance and trace on those about a task."""
    lines: list[dict[str, object]] = []

    def keep(_logger: object, _name: str, event: structlog.typing.EventDict) -> str:
        lines.append(dict(event))
        return ""

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(succeed):
            await until(lambda: item.state == "settled")
        ended = next(line for line in lines if line["event"] == "task.ended")
        foreign = [line["event"] for line in lines if line.get("worker") != "worker-1"]
        assert set(foreign) <= {"agent.stopping"}  # logged by the thread that stops it
        assert ("eu-west-1", 1) == (ended["region"], ended["epoch"])
        assert ended["ti_id"]
        assert "trace_id" in ended

    structlog.configure(processors=[structlog.contextvars.merge_contextvars, keep])
    try:
        asyncio.run(scenario())
    finally:
        structlog.reset_defaults()
