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
from tests.integration.edge_worker.cut import LinkState
from tests.integration.edge_worker.test_agent import Gate, succeed

from airbridge.core.protocol import DisconnectPolicy, RefusalReason
from airbridge.edge_worker.agent import ExitCode
from airbridge.edge_worker.proxy.protocol import Reply
from airbridge.edge_worker.testing import FakeSupervisor

# httpcore does not close a connection whose TLS handshake is cancelled, as a worker that ends may have to do.
pytestmark = pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")

CUTS = [LinkState.REFUSE, LinkState.BLACK_HOLE, LinkState.ONE_WAY]


@pytest.mark.parametrize("link_state", CUTS)
def test_cut_during_run_loses_nothing(world: World, link_state: LinkState) -> None:
    """A task that ends while the link is cut sees no error; its XComs and its state arrive after the cut, once."""
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
            world.cut.set(link_state)
            await asyncio.sleep(0.3)
            gate.go.set()
            await until(lambda: len(replies) == 2)
            await asyncio.sleep(1.0)
            # One way, the report arrives and only its answer is lost.
            assert item.state == "claimed" or link_state is LinkState.ONE_WAY
            world.cut.set(LinkState.UP)
            await until(lambda: item.state == "settled" and not agent.status()["tasks"])
        assert [reply.status for reply in replies] == [201, 204]
        assert item.states == ["success"]
        assert item.xcoms == {"made": {"in": "the cut"}}
        assert world.exit_code is ExitCode.OK

    asyncio.run(scenario())


def test_results_of_cut_arrive_once(world: World) -> None:
    """Two hundred results of a long cut are reported after it, in order and once each."""
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
            world.cut.set(LinkState.REFUSE)
            go.set()
            await until(lambda: agent.status()["slots"]["used"] == 0, 30)
            # Three XComs and a final state of each of the 200 tasks.
            assert agent.status()["journal"]["pending"] >= 800
            world.cut.set(LinkState.UP)
            await until(lambda: all(item.state == "settled" for item in items), 30)
        for item in items:
            assert item.states == ["success"]
            assert [record.seq for record in item.applied] == [1, 2, 3, 4]

    asyncio.run(scenario())


@pytest.mark.parametrize("what", ["claim", "exchange", "heartbeat"])
def test_lost_response_is_requested_again(world: World, what: str) -> None:
    """A request that was applied and whose response was lost has its effect once."""

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


def test_claimed_work_starts_in_cut(world: World) -> None:
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
            world.cut.set(LinkState.REFUSE)
            gate.go.set()
            await until(lambda: len(started) == 2)
            world.cut.set(LinkState.UP)
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
def test_malformed_responses_lose_nothing(world: World, kind: str) -> None:
    """Malformed responses and 503s are retried: each write is committed once, in order."""
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
            # A swapped answer matches no record: the task's calls wait until the fault is over.
            await until(lambda: len(replies) == 3 or kind == "swapped")
            await asyncio.sleep(0.5)
            world.control_plane.fault = None
            await until(lambda: item.state == "settled")
        assert [reply.status for reply in replies] == [201, 201, 204]
        assert [record.seq for record in item.applied] == [1, 2, 3]
        assert item.states == ["success"]

    asyncio.run(scenario())


def test_retry_after_is_respected(world: World) -> None:
    """The Retry-After of a busy gateway is respected."""

    async def scenario() -> None:
        async with world.worker(succeed):
            await until(lambda: world.control_plane.heartbeats)
            world.control_plane.fault = control_plane.busy(retry_after=1.5)
            count = len(world.control_plane.requests)
            await until(lambda: len(world.control_plane.requests) > count)
            await asyncio.sleep(1.2)
            # The answer with Retry-After, and nothing in the 1.2 s after it.
            assert len(world.control_plane.requests) == count + 1
            world.control_plane.fault = None

    asyncio.run(scenario())


def test_refusal_reaches_connected_task(world: World) -> None:
    """Airflow's 409 for a DAG run that exists already reaches the task."""
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


def test_writes_are_durable_before_acknowledged(world: World) -> None:
    """In a cut each write is in the journal's file before it is answered as Airflow would; all arrive in order."""
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
            world.cut.set(LinkState.REFUSE)
            gate.go.set()
            await until(lambda: len(seen) == 9)
            world.cut.set(LinkState.UP)
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
def test_every_final_state_survives_cut(world: World, state: dict[str, str]) -> None:
    """Deferral, reschedule, retry, skip and failure are accepted in a cut, and committed as reported."""
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
            world.cut.set(LinkState.REFUSE)
            gate.go.set()
            await until(lambda: replies)
            world.cut.set(LinkState.UP)
            await until(lambda: item.state == "settled")
        assert [reply.status for reply in replies] == [204]
        assert [json.loads(record.body or "") for record in item.applied] == [state]

    asyncio.run(scenario())


@pytest.mark.parametrize("link_state", CUTS)
def test_passed_write_accepted_in_cut(world: World, link_state: LinkState) -> None:
    """After the grace period of a cut the worker accepts the write itself; it reaches Airflow in order."""
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
            world.cut.set(link_state)
            gate.go.set()
            await until(lambda: len(replies) == 3)
            world.cut.set(LinkState.UP)
            await until(lambda: item.state == "settled")
        assert [reply.status for reply in replies] == [201, 200, 204]
        assert json.loads(replies[1].body or "")["value"] == "blue"
        assert world.control_plane.variables == {"colour": "blue"}
        assert "write.accepted_locally" in world.control_plane.reported_events
        assert [record.path.split("/")[-1] for record in item.applied] == ["colour", "state"]

    asyncio.run(scenario())


def test_late_refusal_is_logged(world: World) -> None:
    """A write that was accepted in a cut and refused later is named in the task's log."""
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
    """A variable that was never read before cannot come from the cache: the task waits, and then has it."""
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
            world.cut.set(LinkState.REFUSE)
            gate.go.set()
            await asyncio.sleep(1.0)
            assert replies == []
            world.cut.set(LinkState.UP)
            await until(lambda: item.state == "settled")
        assert json.loads(replies[0].body or "")["value"] == "away"

    asyncio.run(scenario())


def test_cached_read_is_served_in_cut(world: World) -> None:
    """Connected, a variable is read afresh each time; in a cut the value read last is served."""
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
            world.cut.set(LinkState.REFUSE)
            gate.go.set()
            await until(lambda: len(values) == 3)
            world.cut.set(LinkState.UP)
            await until(lambda: item.state == "settled")
        assert values == ["one", "two", "two"]

    asyncio.run(scenario())


def test_read_follows_own_writes(world: World) -> None:
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


def test_late_result_is_refused(world: World) -> None:
    """The result of an attempt that was given up during the cut is refused with a reason; others are not."""
    gate = Gate()

    async def scenario() -> None:
        lost, kept = world.submit(), world.submit()
        async with world.worker(gate) as agent:
            await until(lambda: gate.running == 2)
            world.cut.set(LinkState.REFUSE)
            gate.go.set()
            await until(lambda: gate.running == 0)
            world.control_plane.lose(lost)
            world.cut.set(LinkState.UP)
            await until(lambda: kept.state == "settled" and not agent.status()["tasks"])
        assert lost.states == []
        assert kept.states == ["success"]
        assert {result.refused for result in world.control_plane.refused} == {RefusalReason.LOST}

    asyncio.run(scenario())


def test_stop_after_stops_task(world: World) -> None:
    """Out of contact for `stop_after` the worker stops the task itself, and reports it failed without a retry."""
    gate = Gate()
    policy = DisconnectPolicy(lost_after=600, stop_after=1.0, replace=False)

    async def scenario() -> None:
        item = world.submit(disconnect=policy, should_retry=True)
        other = world.submit()
        async with world.worker(gate):
            await until(lambda: gate.running == 2)
            world.cut.set(LinkState.BLACK_HOLE)
            await until(lambda: gate.running == 1, 5)
            world.cut.set(LinkState.UP)
            await until(lambda: item.state == "settled")
            gate.go.set()
            await until(lambda: other.state == "settled")
            await until(lambda: world.log_of(item))
        assert item.states == ["failed"]
        assert other.states == ["success"]
        assert "stop_after" in (world.log_of(item) or "")

    asyncio.run(scenario())


def test_short_policy_shortens_interval(world: World) -> None:
    """A gateway that tells workers a long interval ends no task whose `stop_after` is shorter, claimed later or not."""
    gate = Gate()
    policy = DisconnectPolicy(lost_after=600, stop_after=3.0, replace=False)

    async def scenario() -> None:
        async with world.worker(gate):
            await until(lambda: len(world.control_plane.heartbeats) >= 2)
            told = len(world.control_plane.heartbeats)
            world.control_plane.heartbeat_seconds = 60.0
            await until(lambda: len(world.control_plane.heartbeats) > told)
            item = world.submit(disconnect=policy)
            await until(lambda: gate.running == 1)
            await asyncio.sleep(5)
            assert gate.running == 1
            gate.go.set()
            await until(lambda: item.state == "settled")
        assert item.states == ["success"]
        assert len(world.control_plane.heartbeats) - told < 9

    asyncio.run(scenario())


def test_one_lost_heartbeat_ends_nothing(world: World) -> None:
    """A heartbeat that is not answered is given up in time for another one before `stop_after`."""
    gate = Gate()
    policy = DisconnectPolicy(lost_after=600, stop_after=4.0, replace=False)
    held: list[bytes] = []

    def hold_back(what: str, content: bytes) -> bool:
        if what == "heartbeat" and not held:
            held.append(content)
        return content in held and not gate.go.is_set()

    async def scenario() -> None:
        async with world.worker(gate, request_timeout_seconds=20.0):
            item = world.submit(disconnect=policy)
            await until(lambda: gate.running == 1)
            world.control_plane.hold_back = hold_back
            await asyncio.sleep(6)
            assert gate.running == 1
            gate.go.set()
            await until(lambda: item.state == "settled")
        assert item.states == ["success"]

    asyncio.run(scenario())


def test_result_given_up_asks_for_no_heartbeats(world: World) -> None:
    """A result that cannot be delivered, of an attempt that the control plane has given up, does not quicken heartbeats."""

    async def scenario() -> None:
        async with world.worker(succeed) as agent:
            world.control_plane.fault = control_plane.busy()
            world.control_plane.fault.when = "exchange"
            item = world.submit(disconnect=DisconnectPolicy(lost_after=2))
            await until(lambda: bool(agent.status()["tasks"]))
            world.control_plane.lose(item)
            told = len(world.control_plane.heartbeats)
            world.control_plane.heartbeat_seconds = 60.0
            await until(lambda: len(world.control_plane.heartbeats) > told)
            await asyncio.sleep(6)
            assert len(world.control_plane.heartbeats) <= told + 3
            world.control_plane.fault = None

    asyncio.run(scenario())


def test_drain_in_cut_keeps_results(world: World) -> None:
    """A drained worker that cannot report exits with 75; the next start reports what is left."""

    async def scenario() -> None:
        gate = Gate()
        item = world.submit()
        async with world.worker(gate, drain_flush_seconds=0.3) as agent:
            await until(lambda: gate.running == 1)
            world.cut.set(LinkState.REFUSE)
            gate.go.set()
            await until(lambda: gate.running == 0)
            agent.drain()
        assert world.exit_code is ExitCode.NOT_FLUSHED
        assert item.states == []
        world.cut.set(LinkState.UP)
        async with world.worker(gate):
            await until(lambda: item.state == "settled")
        assert item.states == ["success"]

    asyncio.run(scenario())


def test_large_result_over_a_slow_line(world: World) -> None:
    """A request that is larger than the line carries within a time-out is sent once, and delays no other task's result."""

    def work(task: FakeSupervisor) -> None:
        task.start()
        task.set_xcom("large", "x" * 2 * 1024 * 1024)
        task.succeed()

    async def scenario() -> None:
        large = world.submit()
        async with world.worker(work, request_timeout_seconds=0.5, slots=1):
            await until(lambda: large.state == "claimed")
            world.cut.upload_rate = 1024 * 1024
            await until(lambda: large.state == "settled", 15)
        assert large.states == ["success"]
        assert len(large.xcoms["large"]) == 2 * 1024 * 1024
        sent = [what for _, what in world.control_plane.requests if what == "exchange"]
        assert len(sent) <= 3

    asyncio.run(scenario())
