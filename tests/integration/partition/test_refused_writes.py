"""Writes that a worker acknowledged and the real gateway refuses: each is stored, or the attempt fails."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.integration.edge_worker.cut import LinkState
from tests.integration.gateway.world import CATALOGUE
from tests.integration.partition.conftest import MakeWorld

from airbridge.control_plane.gateway.api import edge
from airbridge.control_plane.parity import Parity
from airbridge.control_plane.read_model import document, tasks
from airbridge.control_plane.read_model.platform import Platform
from airbridge.edge_worker.testing import FakeSupervisor
from airbridge.executor.ledger.models import Outcome

# httpcore does not close a connection whose TLS handshake is cancelled, as a worker that ends may have to do.
pytestmark = pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")

NUL = "fixed\x00width"
ONE_RETRY = {"retries": 1, "retry_delay": timedelta(0)}


class Once:
    """A task whose first attempt makes a bad write; its second makes none. Both report success."""

    def __init__(self, write: Any, *, wait: bool = False) -> None:
        self.write = write
        self.go = threading.Event()
        self.wrote = threading.Event()
        self.wait = wait
        self.replies: list[int] = []

    def __call__(self, task: FakeSupervisor) -> None:
        task.start()
        if not self.wrote.is_set():
            if self.wait:
                self.go.wait(20)
            self.replies.append(self.write(task).status)
            self.wrote.set()
        task.set_xcom("return_value", "made")
        task.succeed()


def push_nul(task: FakeSupervisor) -> Any:
    return task.set_xcom("note", NUL)


def push_later(task: FakeSupervisor) -> Any:
    reply = push_nul(task)
    # Behind the write: its refusal is known before the task ends.
    task.call("GET", "variables/absent")
    return reply


def push_large(task: FakeSupervisor) -> Any:
    return task.set_xcom("large", "x" * 200_000)


@pytest.mark.parametrize(
    ("write", "name"),
    [(push_nul, "XCom 'note'"), (push_later, "XCom 'note'"), (push_large, "XCom 'large'")],
    ids=["with the success", "before the success", "too large for a request"],
)
def test_acknowledged_write_is_kept(
    make_world: MakeWorld, monkeypatch: pytest.MonkeyPatch, write: Any, name: str
) -> None:
    """The attempt fails, is retried, and its log names the write, though the task had ended when it was refused."""
    monkeypatch.setattr(edge, "EXCHANGE_BODY", replace(edge.EXCHANGE_BODY, size=100_000))
    world, work = make_world(), Once(write)

    async def scenario() -> None:
        world.submit(first=ONE_RETRY)
        async with world.workers("w1", script=work):
            await world.turn_until(lambda: world.state("first") == "success")
        assert work.replies == [201]
        failed, again = world.rows("first")
        assert (failed.outcome, again.outcome) == (Outcome.FAILED, Outcome.SUCCESS)
        assert name in world.log_of("first")
        assert world.xcoms("first") == ["made"]

    asyncio.run(scenario())


def test_refused_deferred_write_fails_attempt(make_world: MakeWorld) -> None:
    """A run that another task started during the cut: the write is accepted locally, and the success becomes a failure."""
    world = make_world()
    work = Once(lambda task: task.call("POST", "dag-runs/absent/run-1", {"conf": {}}), wait=True)

    async def scenario() -> None:
        world.submit(first=ONE_RETRY)
        async with world.workers("w1", script=work) as [agent]:
            await world.turn_until(lambda: agent.status()["tasks"] and world.runs)
            world.cuts["w1"].set(LinkState.REFUSE)
            work.go.set()
            await world.turn_until(work.wrote.is_set)
            await asyncio.sleep(0.3)
            world.cuts["w1"].set(LinkState.UP)
            await world.turn_until(lambda: world.state("first") == "success")
        assert work.replies == [204]
        failed = world.rows("first")[0]
        assert failed.outcome == Outcome.FAILED
        assert "run 'run-1' of DAG 'absent'" in failed.detail
        assert "run 'run-1' of DAG 'absent'" in world.log_of("first")
        [event] = world.events("write.refused")
        assert event["path"] == "dag-runs/absent/run-1"

    asyncio.run(scenario())


def test_received_refusal_leaves_success(make_world: MakeWorld) -> None:
    """Connected, the task gets the refusal of such a write itself: if it goes on and succeeds, it has succeeded."""
    world = make_world()
    work = Once(lambda task: task.call("POST", "dag-runs/absent/run-1", {"conf": {}}))

    async def scenario() -> None:
        world.submit(first=ONE_RETRY)
        async with world.workers("w1", script=work):
            await world.turn_until(lambda: world.state("first") == "success")
        assert work.replies[0] >= 400
        assert [row.outcome for row in world.rows("first")] == [Outcome.SUCCESS]

    asyncio.run(scenario())


def test_trace_names_refused_write(make_world: MakeWorld) -> None:
    """The cause and the timeline that `airbridge trace` shows have the write and the reason."""
    world = make_world()

    async def scenario() -> None:
        world.submit(first={})
        async with world.workers("w1", script=Once(push_nul)):
            await world.turn_until(lambda: world.state("first") == "failed")

    asyncio.run(scenario())
    with world.metadata.session() as session:
        platform = Platform(catalogue=CATALOGUE, parity=Parity.load(None))
        row = world.rows("first")[0]
        task = tasks.find(session, row.dag_id, row.run_id, row.task_id, -1)
        assert task is not None
        shown = document.timeline(session, platform, task)
    assert "the control plane refused XCom 'note'" in shown["cause"]["sentence"]
    assert any("/note (body: xcom: text with a NUL" in step["what"] for step in shown["steps"])
