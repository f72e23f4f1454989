"""The network fails, the work does not: cuts at every boundary, in compressed time."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from contextlib import closing
from typing import Any

import pytest
from tests.integration.edge_worker import control_plane
from tests.integration.edge_worker.conftest import World, until
from tests.integration.edge_worker.cut import Weather
from tests.integration.edge_worker.test_agent import Gate, succeed

from airbridge.edge_worker.agent import ExitCode
from airbridge.edge_worker.frames import Reply
from airbridge.edge_worker.testing import FakeSupervisor
from airbridge.executor.protocol import DisconnectPolicy, RefusalReason

# httpcore does not close a connection whose TLS handshake is cancelled, as a worker that ends may have to do.
pytestmark = pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")

CUTS = [Weather.REFUSE, Weather.BLACK_HOLE, Weather.ONE_WAY]


@pytest.mark.parametrize("weather", CUTS)
def test_a_cut_in_the_middle_of_a_run_loses_nothing(world: World, weather: Weather) -> None:
    """A task that ends while the link is cut sees no error; its XComs and its state arrive when it is back, once."""
    gate = Gate()
    replies: list[Reply] = []

    def work(task: FakeSupervisor) -> None:
        gate(task)
        replies.append(task.set_xcom("after", [1, 2]))

    def task_in_the_cut(task: FakeSupervisor) -> None:
        task.start()
        gate.entered += 1
        gate.go.wait(20)
        replies.append(task.set_xcom("made", {"in": "the cut"}))
        replies.append(task.succeed())

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(task_in_the_cut) as agent:
            await until(lambda: gate.entered == 1)
            world.cut.set(weather)
            await asyncio.sleep(0.3)
            gate.go.set()
            await until(lambda: len(replies) == 2)
            await asyncio.sleep(1.0)
            assert item.state == "claimed" or weather is Weather.ONE_WAY
            world.cut.set(Weather.FAIR)
            await until(lambda: item.state == "settled" and not agent.status()["tasks"])
        assert [reply.status for reply in replies] == [201, 204]
        assert item.states == ["success"]
        assert item.xcoms == {"made": {"in": "the cut"}}
        assert world.exit_code is ExitCode.OK

    asyncio.run(scenario())


def test_two_hundred_results_made_in_a_cut_arrive_in_order_and_once(world: World) -> None:
    """Everything that ended during a long cut is reported when it is over."""
    seen = threading.Semaphore(0)

    def work(task: FakeSupervisor) -> None:
        task.start()
        seen.release()
        go.wait(30)
        for n in range(3):
            task.set_xcom(f"k{n}", n)
        task.succeed()

    go = threading.Event()

    async def scenario() -> None:
        items = [world.submit() for _ in range(200)]
        async with world.worker(work, slots=200) as agent:
            await until(lambda: len(agent.status()["tasks"]) == 200, 30)
            await until(lambda: agent.status()["slots"]["used"] == 200, 30)
            world.cut.set(Weather.REFUSE)
            go.set()
            await until(lambda: agent.status()["slots"]["used"] == 0, 30)
            assert agent.status()["journal"]["pending"] >= 800
            world.cut.set(Weather.FAIR)
            await until(lambda: all(item.state == "settled" for item in items), 30)
        for item in items:
            assert item.states == ["success"]
            assert [record.seq for record in item.applied] == [1, 2, 3, 4]

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["claim", "exchange", "heartbeat"])
def test_a_lost_answer_is_asked_for_again(world: World, what: str) -> None:
    """A request that was applied and whose answer was lost has its effect once."""

    async def scenario() -> None:
        world.control_plane.fault = control_plane.lose_answers(what)
        item = world.submit()
        async with world.worker(succeed):
            await until(lambda: sum(w == what for _, w in world.control_plane.requests) >= 3)
            world.control_plane.fault = None
            await until(lambda: item.state == "settled")
        assert item.states == ["success"]
        assert item.epoch == 1

    asyncio.run(scenario())


def test_work_already_pulled_starts_during_a_cut(world: World) -> None:
    """A claimed task that waits for a slot starts when there is one, link or no link."""
    gate = Gate()
    started = []

    def work(task: FakeSupervisor) -> None:
        started.append(task.spec.item_id)
        gate(task)

    async def scenario() -> None:
        items = [world.submit(), world.submit()]
        async with world.worker(work, slots=1, prefetch=1) as agent:
            await until(lambda: len(agent.status()["tasks"]) == 2 and gate.running == 1)
            world.cut.set(Weather.REFUSE)
            gate.go.set()
            await until(lambda: len(started) == 2)
            world.cut.set(Weather.FAIR)
            await until(lambda: all(item.states == ["success"] for item in items))

    asyncio.run(scenario())


FAULTS = {
    "busy": control_plane.busy,
    "html": control_plane.garbage,
    "noise": control_plane.noise,
    "half": control_plane.half_an_answer,
    "swapped": control_plane.somebody_elses_answer,
    "redirect": control_plane.redirected,
    "error page": control_plane.broken_inside,
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_gateway_out_of_its_mind_loses_nothing(world: World, kind: str) -> None:
    """503s, and answers that are not the protocol's, are waited out: each write is committed once, in order.

    Requests are applied though they are answered with nonsense: what is sent again must not count twice. A task that
    waits for an answer is let go after `cut_off_after`, as in a cut.
    """
    gate = Gate()
    replies: list[Reply] = []

    def work(task: FakeSupervisor) -> None:
        task.start()
        gate.entered += 1
        gate.go.wait(20)
        replies.append(task.set_xcom("made", kind))
        replies.append(task.call("PUT", "variables/colour", {"val": "blue"}))
        replies.append(task.succeed())

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(work):
            await until(lambda: gate.entered == 1)
            world.control_plane.fault = FAULTS[kind]()
            gate.go.set()
            await until(lambda: len(replies) == 3 or kind == "swapped")
            await asyncio.sleep(0.5)
            world.control_plane.fault = None
            await until(lambda: item.state == "settled")
        assert [reply.status for reply in replies] == [201, 201, 204]
        assert [record.seq for record in item.applied] == [1, 2, 3]
        assert item.states == ["success"]

    asyncio.run(scenario())


def test_retry_after_is_obeyed(world: World) -> None:
    """A gateway that asks for two seconds of patience gets them."""

    async def scenario() -> None:
        async with world.worker(succeed):
            await until(lambda: world.control_plane.heartbeats)
            world.control_plane.fault = control_plane.busy(retry_after=1.5)
            count = len(world.control_plane.requests)
            await until(lambda: len(world.control_plane.requests) > count)
            await asyncio.sleep(1.2)
            assert len(world.control_plane.requests) == count + 1
            world.control_plane.fault = None

    asyncio.run(scenario())


def test_a_refusal_reaches_the_task_while_connected(world: World) -> None:
    """A DAG run that exists already: Airflow's 409 is the task's to see."""
    replies: list[Reply] = []

    def work(task: FakeSupervisor) -> None:
        task.start()
        replies.append(task.call("POST", "dag-runs/other/run1", {}))
        replies.append(task.call("POST", "xcoms/dag/run/task/return_value", [1] * 9, "mapped_length=9"))
        task.succeed()

    async def scenario() -> None:
        world.control_plane.denied = {
            "dag-runs/other": (409, '{"detail": "exists"}'),
            "xcoms/": (400, '{"detail": "too long"}'),
        }
        item = world.submit()
        async with world.worker(work):
            await until(lambda: item.state == "settled")
        assert [reply.status for reply in replies] == [409, 400]
        assert json.loads(replies[0].body or "") == {"detail": "exists"}

    asyncio.run(scenario())


def test_every_kind_of_write_is_on_the_disk_before_it_is_acknowledged(world: World) -> None:
    """In a cut, each write is answered as Airflow would, and the journal's file holds it by then; all arrive in order."""
    gate = Gate()
    seen: list[tuple[int, int]] = []

    def work(task: FakeSupervisor) -> None:
        task.start()
        gate.entered += 1
        gate.go.wait(20)
        for method, path, body in writes_of(task):
            reply = task.call(method, path, body)
            seen.append((reply.status, on_disk()))

    def on_disk() -> int:
        with closing(sqlite3.connect(world.settings().journal_file)) as connection:
            return int(connection.execute("SELECT count(*) FROM records").fetchone()[0])

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(work):
            await until(lambda: gate.entered == 1)
            world.cut.set(Weather.REFUSE)
            gate.go.set()
            await until(lambda: len(seen) == 9)
            world.cut.set(Weather.FAIR)
            await until(lambda: item.state == "settled")
        accepted = [201, 201, 200, 201, 204, 204, 204, 204, 204]
        assert seen == [(status, number) for number, status in enumerate(accepted, 1)]
        assert [record.seq for record in item.applied] == [*range(1, 10)]

    asyncio.run(scenario())


def writes_of(task: FakeSupervisor) -> list[tuple[str, str, Any]]:
    """One of each: rendered fields, XCom, its deletion, variable, its deletion, run, its clearing, skip, state with assets."""
    mine = f"task-instances/{task.spec.grant.ti_id}"
    events = {
        "state": "success",
        "end_date": "2025-01-01T00:00:00Z",
        "task_outlets": [{"name": "a", "uri": "s3://b/a", "type": "Asset"}],
        "outlet_events": [{"dest_asset_key": {"name": "a", "uri": "s3://b/a"}, "extra": {"rows": 3}}],
    }
    return [
        ("PUT", f"{mine}/rtif", {"bash_command": "true"}),
        ("POST", "xcoms/dag/run/task/made", {"in": "the cut"}),
        ("DELETE", "xcoms/dag/run/task/made", None),
        ("PUT", "variables/colour", {"val": "blue"}),
        ("DELETE", "variables/colour", None),
        ("POST", "dag-runs/other/run1", {}),
        ("POST", "dag-runs/other/run1/clear", {}),
        ("PATCH", f"{mine}/skip-downstream", {"tasks": ["next"]}),
        ("PATCH", f"{mine}/state", events),
    ]


@pytest.mark.parametrize(
    "state",
    [
        {"state": "deferred", "classpath": "a.Trigger", "trigger_kwargs": {}, "next_method": "resume"},
        {"state": "up_for_reschedule", "reschedule_date": "2025-01-01T00:00:00Z"},
        {"state": "up_for_retry"},
        {"state": "skipped"},
        {"state": "failed"},
    ],
    ids=lambda state: state["state"],
)
def test_every_way_to_end_survives_a_cut(world: World, state: dict[str, str]) -> None:
    """Deferral, reschedule, retry, skip and failure are accepted in a cut, and committed as they were said."""
    gate = Gate()
    replies: list[Reply] = []

    def work(task: FakeSupervisor) -> None:
        task.start()
        gate.entered += 1
        gate.go.wait(20)
        replies.append(task.call("PATCH", f"task-instances/{task.spec.grant.ti_id}/state", state))

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(work):
            await until(lambda: gate.entered == 1)
            world.cut.set(Weather.REFUSE)
            gate.go.set()
            await until(lambda: replies)
            world.cut.set(Weather.FAIR)
            await until(lambda: item.state == "settled")
        assert [reply.status for reply in replies] == [204]
        assert [json.loads(record.body or "") for record in item.applied] == [state]

    asyncio.run(scenario())


@pytest.mark.parametrize("weather", CUTS)
def test_cut_off_such_a_write_is_accepted_and_sent_later(world: World, weather: Weather) -> None:
    """Beyond a small grace the worker vouches for the write; it reaches Airflow in its place in the order."""
    gate = Gate()
    replies: list[Reply] = []

    def work(task: FakeSupervisor) -> None:
        task.start()
        gate.entered += 1
        gate.go.wait(20)
        replies.append(task.call("PUT", "variables/colour", {"val": "blue", "description": None}))
        replies.append(task.call("GET", "variables/colour"))
        replies.append(task.succeed())

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(work):
            await until(lambda: gate.entered == 1)
            world.cut.set(weather)
            gate.go.set()
            await until(lambda: len(replies) == 3)
            world.cut.set(Weather.FAIR)
            await until(lambda: item.state == "settled")
        assert [reply.status for reply in replies] == [201, 200, 204]
        assert json.loads(replies[1].body or "")["value"] == "blue"
        assert world.control_plane.variables == {"colour": "blue"}
        assert "write.accepted_locally" in world.control_plane.told
        assert [record.path.split("/")[-1] for record in item.applied] == ["colour", "state"]

    asyncio.run(scenario())


def test_an_accepted_write_that_is_refused_later_is_told_in_the_log(world: World) -> None:
    """The task went on, believing; its log says what the control plane made of the write."""
    gate = Gate()

    def work(task: FakeSupervisor) -> None:
        task.start()
        task.set_xcom("big", "x")
        task.call("GET", "variables/none")  # flushes the write
        gate.go.wait(20)
        task.succeed()

    async def scenario() -> None:
        world.control_plane.denied = {"xcoms/": (400, '{"detail": "not this one"}')}
        item = world.submit()
        async with world.worker(work):
            await until(lambda: world.control_plane.reads)
            gate.go.set()
            await until(lambda: world.log_of(item))
        assert "not this one" in (world.log_of(item) or "")
        assert item.states == ["success"]

    asyncio.run(scenario())


def test_a_read_waits_for_the_network(world: World) -> None:
    """A variable that nobody read before cannot come from the cache: the task waits, and then has it."""
    gate = Gate()
    replies: list[Reply] = []

    def work(task: FakeSupervisor) -> None:
        task.start()
        gate.entered += 1
        gate.go.wait(20)
        replies.append(task.call("GET", "variables/far"))
        task.succeed()

    async def scenario() -> None:
        world.control_plane.variables["far"] = "away"
        item = world.submit()
        async with world.worker(work):
            await until(lambda: gate.entered == 1)
            world.cut.set(Weather.REFUSE)
            gate.go.set()
            await asyncio.sleep(1.0)
            assert replies == []
            world.cut.set(Weather.FAIR)
            await until(lambda: item.state == "settled")
        assert json.loads(replies[0].body or "")["value"] == "away"

    asyncio.run(scenario())


def test_a_read_seen_before_is_served_from_the_cache_in_a_cut(world: World) -> None:
    """Connected, a variable is read afresh each time; cut off, the value read last serves."""
    gate = Gate()
    values: list[str] = []

    def read(task: FakeSupervisor) -> None:
        values.append(json.loads(task.call("GET", "variables/v").body or "")["value"])

    def work(task: FakeSupervisor) -> None:
        task.start()
        read(task)
        world.control_plane.variables["v"] = "two"
        read(task)
        gate.entered += 1
        gate.go.wait(20)
        read(task)
        task.succeed()

    async def scenario() -> None:
        world.control_plane.variables["v"] = "one"
        item = world.submit()
        async with world.worker(work):
            await until(lambda: gate.entered == 1)
            world.cut.set(Weather.REFUSE)
            gate.go.set()
            await until(lambda: len(values) == 3)
            world.cut.set(Weather.FAIR)
            await until(lambda: item.state == "settled")
        assert values == ["one", "two", "two"]

    asyncio.run(scenario())


def test_a_read_comes_behind_the_tasks_own_writes(world: World) -> None:
    """A task that reads what it has just written finds it, though the write was only journalled when it went on."""
    values = []

    def work(task: FakeSupervisor) -> None:
        task.start()
        task.set_xcom("mine", "new")
        values.append(json.loads(task.call("GET", "xcoms/dag/run/task/mine").body or "")["value"])
        task.succeed()

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(work, linger_seconds=10.0):
            await until(lambda: item.state == "settled")
        assert values == ["new"]

    asyncio.run(scenario())


def test_a_late_result_is_refused_and_the_worker_lives_on(world: World) -> None:
    """The control plane gave the attempt up during the cut: its result is refused with a reason, others are not."""
    gate = Gate()

    async def scenario() -> None:
        lost, kept = world.submit(), world.submit()
        async with world.worker(gate) as agent:
            await until(lambda: gate.running == 2)
            world.cut.set(Weather.REFUSE)
            gate.go.set()
            await until(lambda: gate.running == 0)
            world.control_plane.lose(lost)
            world.cut.set(Weather.FAIR)
            await until(lambda: kept.state == "settled" and not agent.status()["tasks"])
        assert lost.states == []
        assert kept.states == ["success"]
        assert {result.refused for result in world.control_plane.refused} == {RefusalReason.LOST}

    asyncio.run(scenario())


def test_stop_after_stops_work_that_must_never_run_twice(world: World) -> None:
    """Out of contact for `stop_after`, the worker stops the task itself, and reports it failed without a retry."""
    gate = Gate()
    policy = DisconnectPolicy(lost_after=600, stop_after=1.0, replace=False)

    async def scenario() -> None:
        item = world.submit(disconnect=policy, should_retry=True)
        other = world.submit()
        async with world.worker(gate):
            await until(lambda: gate.running == 2)
            world.cut.set(Weather.BLACK_HOLE)
            await until(lambda: gate.running == 1, 5)
            world.cut.set(Weather.FAIR)
            await until(lambda: item.state == "settled")
            gate.go.set()
            await until(lambda: other.state == "settled")
            await until(lambda: world.log_of(item))
        assert item.states == ["failed"]
        assert other.states == ["success"]
        assert "stop_after" in (world.log_of(item) or "")

    asyncio.run(scenario())


def test_a_drain_during_a_cut_leaves_results_for_the_next_start(world: World) -> None:
    """A drained worker that cannot report exits with 75; the next one reports what it left."""

    async def scenario() -> None:
        gate = Gate()
        item = world.submit()
        async with world.worker(gate, drain_flush_seconds=0.3) as agent:
            await until(lambda: gate.running == 1)
            world.cut.set(Weather.REFUSE)
            gate.go.set()
            await until(lambda: gate.running == 0)
            agent.drain()
        assert world.exit_code is ExitCode.NOT_FLUSHED
        assert item.states == []
        world.cut.set(Weather.FAIR)
        async with world.worker(gate):
            await until(lambda: item.state == "settled")
        assert item.states == ["success"]

    asyncio.run(scenario())
