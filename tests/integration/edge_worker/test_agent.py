"""The worker, from a message on the queue to a result in the ledger."""

from __future__ import annotations

import asyncio
import errno
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.integration.edge_worker.conftest import World, until
from tests.integration.edge_worker.cut import LinkState

from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.aws.queue import MemoryQueue, Outgoing, Received
from airbridge.core.exceptions import QueueError
from airbridge.core.protocol import RefusalReason, WorkerState
from airbridge.edge_worker import cli
from airbridge.edge_worker.agent import ExitCode
from airbridge.edge_worker.exceptions import RunnerError
from airbridge.edge_worker.testing import FakeRunner, FakeSupervisor, FakeTask
from airbridge.edge_worker.work import outcome
from airbridge.edge_worker.work.task import TaskSpec


def succeed(task: FakeSupervisor) -> None:
    task.start()
    task.log("hello")
    task.set_xcom("return_value", 42)
    task.succeed()


class Gate:
    """A task that runs until it is let go."""

    def __init__(self) -> None:
        self.entered = 0
        self.running = 0
        self.most = 0
        self.go = threading.Event()
        self._lock = threading.Lock()

    def __call__(self, task: FakeSupervisor) -> None:
        task.start()
        with self._lock:
            self.entered += 1
            self.running += 1
            self.most = max(self.most, self.running)
        try:
            while not self.go.wait(0.02):
                if task.cancelled.is_set():
                    return
            task.succeed()
        finally:
            with self._lock:
                self.running -= 1


def test_task_result_is_committed(world: World) -> None:
    """A message becomes a grant, a run, an XCom, one final state and a whole log; the message is deleted."""

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(succeed):
            await until(lambda: item.state == "settled")
            await until(lambda: world.log_of(item))
        assert item.states == ["success"]
        assert item.xcoms == {"return_value": 42}
        assert world.log_of(item) == '{"event": "hello"}\n'
        assert world.queue.depth().visible == world.queue.depth().in_flight == 0
        assert world.exit_code is ExitCode.OK

    asyncio.run(scenario())


def test_a_task_costs_two_requests(world: World) -> None:
    """Fields, XComs and the final state of a short task travel together: one claim, one exchange, besides heartbeats."""

    async def scenario() -> None:
        item = world.submit()
        # Long enough that records wait for the final state and travel with it.
        async with world.worker(succeed, linger_seconds=5.0):
            await until(lambda: item.state == "settled")
        asked = [what for _, what in world.control_plane.requests if what not in {"heartbeat", "enrol"}]
        assert asked == ["claim", "exchange"]

    asyncio.run(scenario())


def test_idle_worker_only_sends_heartbeats(world: World) -> None:
    """A worker without work sends the control plane nothing but its heartbeat."""

    async def scenario() -> None:
        async with world.worker(succeed):
            await until(lambda: len(world.control_plane.heartbeats) >= 5)
        assert {what for _, what in world.control_plane.requests} == {"enrol", "heartbeat"}

    asyncio.run(scenario())


def test_slots_are_honoured(world: World) -> None:
    """No more tasks run at once than there are slots; a task takes as many as its pool_slots."""
    gate = Gate()

    async def scenario() -> None:
        items = [world.submit(slots=2) for _ in range(3)]
        async with world.worker(gate, slots=4):
            await until(lambda: gate.entered == 2)
            await asyncio.sleep(0.3)
            assert gate.most == 2
            gate.go.set()
            await until(lambda: all(item.state == "settled" for item in items))
        assert gate.most == 2

    asyncio.run(scenario())


def test_oversized_task_takes_all_slots(world: World) -> None:
    """A task that wants more slots than there are runs alone rather than never."""

    async def scenario() -> None:
        item = world.submit(slots=9)
        async with world.worker(succeed, slots=2):
            await until(lambda: item.state == "settled")
        assert item.states == ["success"]

    asyncio.run(scenario())


@pytest.mark.parametrize(("should_retry", "state"), [(False, "failed"), (True, "up_for_retry")])
def test_a_supervisor_that_crashes_is_reported(world: World, should_retry: bool, state: str) -> None:
    """If the supervisor ends without a final state the agent reports the failure, with the reason in the task's log."""

    def crash(task: FakeSupervisor) -> None:
        task.start()
        raise RuntimeError("segfault, say")

    async def scenario() -> None:
        item = world.submit(should_retry=should_retry)
        async with world.worker(crash):
            await until(lambda: item.state == "settled")
            await until(lambda: world.log_of(item))
        assert item.states == [state]
        assert "segfault, say" in (world.log_of(item) or "")

    asyncio.run(scenario())


def test_cancelled_task_is_not_reported(world: World) -> None:
    """A task that the control plane cancels is stopped; nothing more is reported for it, and its lease is dropped."""
    gate = Gate()

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(gate) as agent:
            await until(lambda: gate.running == 1)
            world.control_plane.commands.append(
                {
                    "kind": "cancel",
                    "item_id": item.item_id,
                    "epoch": 1,
                    "reason": RefusalReason.CANCELLED,
                    "detail": "marked failed",
                }
            )
            await until(lambda: gate.running == 0)
            await until(lambda: not agent.status()["tasks"])
            count = len(world.control_plane.heartbeats)
            await until(lambda: len(world.control_plane.heartbeats) > count + 1)
        assert item.states == []
        assert world.control_plane.heartbeats[-1].leases == ()

    asyncio.run(scenario())


def test_cancelled_task_still_reads(world: World) -> None:
    """A task whose write is refused because it was cancelled is stopped, and reads until it has ended; it writes nothing more."""
    ready, go = threading.Event(), threading.Event()
    statuses: list[int] = []

    def clean_up(task: FakeSupervisor) -> None:
        task.start()
        ready.set()
        go.wait(30)
        task.set_xcom("job", 7)
        statuses.append(task.call("GET", "variables/colour").status)
        task.cancelled.wait(30)
        statuses.append(task.call("GET", "variables/colour").status)
        statuses.append(task.set_xcom("late", 8).status)

    async def scenario() -> None:
        world.control_plane.variables["colour"] = "red"
        item = world.submit()
        async with world.worker(clean_up) as agent:
            await until(ready.is_set)
            item.outcome = "cancelled"
            go.set()
            await until(lambda: not agent.status()["tasks"])
        assert statuses == [200, 200, 409]
        assert item.xcoms == {}

    asyncio.run(scenario())


def test_callback_outlives_the_next_attempt(world: World) -> None:
    """A call that is refused after the result is committed fails by itself: the callback goes on, and nothing is given up."""
    reported, go = threading.Event(), threading.Event()
    statuses: list[int] = []

    def call_back(task: FakeSupervisor) -> None:
        task.start()
        task.succeed()
        reported.set()
        go.wait(30)
        statuses.append(task.set_xcom("late", 1).status)
        statuses.append(task.call("PUT", "variables/colour", {"val": "blue"}).status)
        statuses.append(task.call("GET", "variables/colour").status)
        statuses.append(409 if task.cancelled.is_set() else 200)

    async def scenario() -> None:
        world.control_plane.variables["colour"] = "red"
        item = world.submit()
        async with world.worker(call_back) as agent:
            await until(lambda: reported.is_set() and item.state == "settled")
            item.queued_again = True
            go.set()
            await until(lambda: not agent.status()["tasks"])
            await until(lambda: world.log_of(item))
        assert statuses == [201, 409, 200, 200]
        assert item.states == ["success"]
        log = world.log_of(item) or ""
        assert "XCom 'late' was accepted here, and then refused" in log
        assert "given this attempt up" not in log

    asyncio.run(scenario())


def test_unresponsive_task_is_killed(world: World) -> None:
    """A supervisor that does not stop when cancelled is killed after the grace period."""
    stubborn = threading.Event()

    def ignore(task: FakeSupervisor) -> None:
        task.start()
        stubborn.set()
        time.sleep(60)

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(ignore, cancel_grace_seconds=0.2) as agent:
            await until(stubborn.is_set)
            world.control_plane.commands.append(
                {"kind": "cancel", "item_id": item.item_id, "epoch": 1, "reason": RefusalReason.CANCELLED}
            )
            await until(lambda: not agent.status()["tasks"], 5)

    asyncio.run(scenario())


def test_drain_finishes_and_releases(world: World) -> None:
    """On SIGTERM the running task finishes, a claimed one that waits is released, and the exit code is 0."""
    gate = Gate()

    async def scenario() -> None:
        items = [world.submit(), world.submit()]
        async with world.worker(gate, slots=1, prefetch=1) as agent:
            await until(lambda: gate.running == 1)
            await until(lambda: len(agent.status()["tasks"]) == 2)
            agent.drain()
            await until(lambda: any(what == "release" for _, what in world.control_plane.requests))
            # Which of the two the last heartbeat had is a matter of timing; DRAINING is for an operator's order.
            assert world.control_plane.heartbeats[-1].state in {WorkerState.ACTIVE, WorkerState.STOPPING}
            gate.go.set()
        assert sorted(item.state for item in items) == ["sent", "settled"]
        assert [item.states for item in items if item.state == "settled"] == [["success"]]
        assert world.exit_code is ExitCode.OK

    asyncio.run(scenario())


def test_a_hard_stop_fails_what_runs(world: World) -> None:
    """A second signal ends running tasks at once and reports them failed, for retry where Airflow would."""
    gate = Gate()

    async def scenario() -> None:
        item = world.submit(should_retry=True)
        async with world.worker(gate) as agent:
            await until(lambda: gate.running == 1)
            agent.drain()
            agent.hard_stop()
        assert item.states == ["up_for_retry"]
        assert world.exit_code is ExitCode.HARD_STOP

    asyncio.run(scenario())


def test_second_signal_is_prompt_in_cut(world: World) -> None:
    """The second signal ends a worker that drains without a link at once, not after its time-outs."""
    gate = Gate()

    async def scenario() -> None:
        world.submit()
        async with world.worker(gate, drain_flush_seconds=60.0) as agent:
            await until(lambda: gate.running == 1)
            world.cut.set(LinkState.REFUSE)
            gate.go.set()
            await until(lambda: gate.running == 0)
            agent.drain()
            await asyncio.sleep(0.3)
            agent.hard_stop()
            started = time.monotonic()
        assert time.monotonic() - started < 15
        assert world.exit_code is ExitCode.HARD_STOP

    asyncio.run(scenario())


def test_an_operator_may_drain_and_resume(world: World) -> None:
    """While the control plane wants it drained the worker claims nothing; after a resume it claims again."""

    async def scenario() -> None:
        async with world.worker(succeed) as agent:
            world.control_plane.commands.append({"kind": "drain"})
            await until(lambda: agent.status()["mode"] == "draining")
            await asyncio.sleep(1.2)  # a poll that had begun comes back empty
            item = world.submit()
            await asyncio.sleep(0.5)
            assert item.state == "sent"
            assert world.control_plane.heartbeats[-1].state is WorkerState.DRAINING
            world.control_plane.commands.append({"kind": "resume"})
            await until(lambda: item.state == "settled")

    asyncio.run(scenario())


def test_operators_drain_releases_what_waits(world: World) -> None:
    """A worker that an operator drains finishes what runs and releases what waits for a slot; a cut only delays that."""
    gate = Gate()

    async def scenario() -> None:
        items = [world.submit(), world.submit()]
        async with world.worker(gate, slots=1, prefetch=1) as agent:
            await until(lambda: gate.running == 1)
            await until(lambda: len(agent.status()["tasks"]) == 2)
            world.control_plane.commands.append({"kind": "drain"})
            await until(lambda: agent.status()["mode"] == "draining")
            await until(lambda: sorted(item.state for item in items) == ["claimed", "sent"], 2)
            gate.go.set()
            await until(lambda: sorted(item.state for item in items) == ["sent", "settled"])
            await asyncio.sleep(0.3)
            assert gate.entered == 1

    asyncio.run(scenario())


def test_drain_in_a_cut_starts_nothing(world: World) -> None:
    """What waits for a slot stays unstarted while the gateway cannot take it back, and is released after the cut."""
    gate = Gate()

    async def scenario() -> None:
        items = [world.submit(), world.submit()]
        async with world.worker(gate, slots=1, prefetch=1) as agent:
            await until(lambda: gate.running == 1)
            await until(lambda: len(agent.status()["tasks"]) == 2)
            world.cut.set(LinkState.REFUSE)
            assert agent._worker is not None
            agent._worker._lifecycle.drain("to be upgraded")
            gate.go.set()
            await until(lambda: gate.running == 0)
            await asyncio.sleep(0.5)
            assert gate.entered == 1
            world.cut.set(LinkState.UP)
            await until(lambda: sorted(item.state for item in items) == ["sent", "settled"], 15)
            assert gate.entered == 1

    asyncio.run(scenario())


def test_status_is_served_on_the_socket(world: World) -> None:
    """`airbridge-worker status` finds out what runs, without secrets."""
    from airbridge.edge_worker.ops import health

    gate = Gate()

    async def scenario() -> None:
        world.submit()
        async with world.worker(gate) as agent:
            await until(lambda: gate.running == 1)
            path = agent._settings.status_socket
            status = await asyncio.to_thread(health.read_status, path)
            assert status["mode"] == "active"
            assert [task["task_id"] for task in status["tasks"]] == ["task"]
            assert "token" not in json.dumps(status)
            gate.go.set()

    asyncio.run(scenario())


def test_unreadable_queue_is_reported(world: World) -> None:
    """While polls fail, heartbeats and the status have the error; once one succeeds, neither has it."""

    class Failing(MemoryQueue):
        error: QueueError | None = QueueError("Unable to locate credentials")

        def receive(self, **how: Any) -> list[Received]:
            if self.error is not None:
                raise self.error
            return super().receive(**how)

    async def scenario() -> None:
        queue = world.queue = Failing()
        async with world.worker(succeed) as agent:
            beats = world.control_plane.heartbeats
            await until(lambda: bool(beats) and beats[-1].queue_error == "Unable to locate credentials")
            status = agent.status()
            assert "Unable to locate credentials" == status["queue"]["error"]
            assert "\ncannot receive from its queue: Unable to locate" in cli._as_text(status)
            queue.error = None
            await until(lambda: beats[-1].queue_error == "")
            assert "cannot receive" not in cli._as_text(agent.status())

    asyncio.run(scenario())


def test_many_tasks_each_commit_once(world: World) -> None:
    """Fifty tasks on four slots: every one is committed once, in batches of claims."""

    async def scenario() -> None:
        items = [world.submit() for _ in range(50)]
        async with world.worker(succeed, linger_seconds=5.0):
            await until(lambda: all(item.state == "settled" for item in items), 30)
        assert [item.states for item in items] == [["success"]] * 50
        claims = sum(what == "claim" for _, what in world.control_plane.requests)
        exchanges = sum(what == "exchange" for _, what in world.control_plane.requests)
        # Without batches it would be a claim and at least one exchange for each of the 50.
        assert claims + exchanges <= 100

    asyncio.run(scenario())


def test_invalid_messages_have_no_effect(world: World) -> None:
    """Messages signed by another key, altered, or not work items at all stay on the queue; a duplicate is dropped."""
    from airbridge.core.signing import Signer

    ran = []

    def count(task: FakeSupervisor) -> None:
        ran.append(task.spec.item_id)
        succeed(task)

    async def scenario() -> None:
        item = world.submit()
        message = world.control_plane.envelope(item)
        foreign = world.control_plane.envelope(item, Signer.generate())
        # One character more in the signed payload.
        altered = message.replace('"payload":"', '"payload":"A')
        bad = [foreign, altered, "not json", "{}", "\x00" * 100]
        world.queue.send([Outgoing(str(n), body) for n, body in enumerate([message, *bad])])
        async with world.worker(count):
            await until(lambda: item.state == "settled")
            await until(lambda: world.queue.depth().in_flight == len(bad))
            world.queue.send([Outgoing("late", message)])  # after its task finished
            await until(lambda: world.queue.depth().visible == 0)
            await asyncio.sleep(0.3)
        assert ran == [item.item_id]
        assert item.states == ["success"]
        assert world.queue.depth().in_flight == len(bad)

    asyncio.run(scenario())


def test_redelivery_while_running(world: World) -> None:
    """A message that is redelivered while its task runs is deleted, and the task is not started twice."""
    gate = Gate()

    async def scenario() -> None:
        item = world.submit()
        message = world.control_plane.envelope(item)
        async with world.worker(gate):
            await until(lambda: gate.running == 1)
            world.queue.send([Outgoing("again", message)])
            await until(lambda: world.queue.depth().visible == 0 and world.queue.depth().in_flight == 0)
            gate.go.set()
            await until(lambda: item.state == "settled")
        assert gate.entered == 1

    asyncio.run(scenario())


def test_forged_code_fails_the_task(world: World) -> None:
    """A forged snapshot never runs: the attempt fails, and its log gives the reason."""
    ran = []

    async def scenario() -> None:
        item = world.submit()
        [key] = [info.key for info in world.bucket("dags").list("bundles/")]
        world.bucket("dags").put(key, world.bucket("dags").get(key).data[:-20] + b"x" * 20)
        async with world.worker(ran.append):
            await until(lambda: item.state == "settled")
            await until(lambda: world.log_of(item))
        assert item.states == ["failed"]
        assert "DAG code main sha256:" in (world.log_of(item) or "")
        assert ran == []

    asyncio.run(scenario())


class Failing(FakeRunner):
    """Runner that starts no task."""

    error: Exception = OverflowError("can't serialize ints")

    async def spawn(self, spec: TaskSpec, proxy_socket: socket.socket) -> FakeTask:
        proxy_socket.close()
        raise self.error


class Unavailable(Failing):
    """Runner without a place for a task."""

    error = RunnerError("no place to run in")


@pytest.mark.parametrize("runner", [Failing, Unavailable])
def test_unexpected_error_frees_the_slot(world: World, runner: type[Failing]) -> None:
    """Whatever an attempt dies of, it is reported as failed with the reason in its log, and its slot is free again."""
    world.make_runner = runner

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(succeed, slots=1) as agent:
            await until(lambda: item.state == "settled")
            await until(lambda: world.log_of(item))
            await until(lambda: not agent.status()["tasks"])
            second = world.submit()
            await until(lambda: second.state == "settled")
        assert item.states == ["failed"]
        assert str(runner.error) in (world.log_of(item) or "")
        assert world.exit_code is ExitCode.OK

    asyncio.run(scenario())


def test_cancel_during_a_failure_report(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A task that is cancelled while its failure is being logged is let go of, as any cancelled task is."""
    world.make_runner = Unavailable
    logging, go_on = threading.Event(), threading.Event()
    append = outcome.append_to_log

    def slowly(*arguments: Any) -> None:
        logging.set()
        go_on.wait(20)
        append(*arguments)

    monkeypatch.setattr(outcome, "append_to_log", slowly)

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(succeed) as agent:
            await until(logging.is_set)
            world.control_plane.commands.append(
                {"kind": "cancel", "item_id": item.item_id, "epoch": 1, "reason": RefusalReason.CANCELLED}
            )
            worker = agent._worker
            assert worker is not None
            await until(lambda: all(one.stop is not None for one in worker._objects.attempts))
            go_on.set()
            await until(lambda: not agent.status()["tasks"])
        assert item.states == []

    asyncio.run(scenario())


class FullOnce(MemoryStore):
    """Store of DAG code whose first download finds the worker's disk full."""

    downloads = 0

    def stream(self, key: str) -> Iterator[bytes]:
        self.downloads += 1
        if self.downloads == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().stream(key)


def test_code_waits_for_disk_space(world: World) -> None:
    """A snapshot for which the disk has no space is fetched again, as one that the bucket does not give is."""
    store = world.buckets["dags"] = FullOnce("dags")

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(succeed):
            await until(lambda: item.state == "settled")
        assert item.states == ["success"]
        assert store.downloads == 2

    asyncio.run(scenario())
