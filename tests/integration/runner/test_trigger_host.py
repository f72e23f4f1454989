"""Trigger hosts: many triggers in one sandboxed process, with the bundle's code, their own logs, and no way to write."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.integration.runner.world import World

from airbridge.core.protocol import TriggerSpec
from airbridge.edge_worker.proxy.protocol import Call, Reply
from airbridge.edge_worker.runner.warm_runner import WarmRunner
from airbridge.edge_worker.triggers.host import TriggerHost
from airbridge.edge_worker.work.attempts import Attempt

CODE = """
import asyncio
import os

from airflow.hooks.base import BaseHook
from airflow.sdk import Variable
from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent
from asgiref.sync import sync_to_async


class Trigger(BaseTrigger):
    def __init__(self, **kwargs):
        super().__init__()
        self.kwargs = kwargs

    def serialize(self):
        return (f"mine.{type(self).__name__}", self.kwargs)


class Says(Trigger):
    async def run(self):
        self.log.info("saying %s", self.kwargs["word"])
        yield TriggerEvent(self.kwargs["word"])
        raise AssertionError("it is not asked for a second event")


class Waits(Trigger):
    async def run(self):
        while not os.path.exists(self.kwargs["path"]):
            await asyncio.sleep(0.05)
        yield TriggerEvent({"path": self.kwargs["path"], "ti": self.task_instance.task_id})

    async def cleanup(self):
        self.log.info("cleaned up")


class Reads(Trigger):
    async def run(self):
        connection = await sync_to_async(BaseHook.get_connection)("warehouse")
        here = BaseHook.get_connection("warehouse")
        value = await asyncio.get_running_loop().run_in_executor(None, Variable.get, "colour")
        self.log.info("the password is %s", connection.password)
        yield TriggerEvent([connection.host, here.host, value])


class ReadsWhenCancelled(Trigger):
    async def run(self):
        try:
            self.log.info("waiting")
            await asyncio.sleep(600)
        except asyncio.CancelledError:
            await sync_to_async(Variable.get)("colour")
            raise
        yield


class ReadsInCleanup(Trigger):
    async def run(self):
        yield TriggerEvent("done")

    async def cleanup(self):
        await sync_to_async(Variable.get)("colour")


class Leaks(Trigger):
    runs = 0

    async def run(self):
        Leaks.runs += 1
        if Leaks.runs == 1:
            inner = asyncio.ensure_future(asyncio.sleep(60))
            inner.cancel()
            await inner
        yield TriggerEvent(Leaks.runs)


class CancelsItself(Trigger):
    runs = 0

    async def run(self):
        CancelsItself.runs += 1
        if CancelsItself.runs == 1:
            asyncio.current_task().cancel()
            raise asyncio.CancelledError
        yield TriggerEvent(CancelsItself.runs)


class LeaksInCleanup(Trigger):
    runs = 0

    async def run(self):
        LeaksInCleanup.runs += 1
        yield TriggerEvent(LeaksInCleanup.runs)

    async def cleanup(self):
        raise asyncio.CancelledError


class Counts(Trigger):
    async def run(self):
        await asyncio.sleep(2)
        yield TriggerEvent(LeaksInCleanup.runs)


class Denied(Trigger):
    async def run(self):
        await sync_to_async(BaseHook.get_connection)("secret")
        yield TriggerEvent("never")


class Raises(Trigger):
    async def run(self):
        raise ValueError("no luck")
        yield


class Large(Trigger):
    async def run(self):
        self.log.info("before")
        yield TriggerEvent("x" * 3_000_000)


class Ends(Trigger):
    async def run(self):
        return
        yield


class Succeeds(Trigger):
    async def run(self):
        yield TaskSuccessEvent(xcoms={"rows": 3})


class Dies(Trigger):
    async def run(self):
        os._exit(7)
        yield


class Looks(Trigger):
    async def run(self):
        found = {}
        for path in self.kwargs["paths"]:
            try:
                found[path] = open(path).read()
            except OSError as error:
                found[path] = type(error).__name__
        yield TriggerEvent({"found": found, "parent": os.getppid(), "environment": sorted(os.environ)})
"""


@dataclass(eq=False)
class Proxy:
    """Stand-in for the agent's proxy of one trigger."""

    world: World
    calls: list[Call]

    async def answer(self, call: Call) -> Reply:
        self.calls.append(call)
        return self.world.api.answer(call)


@dataclass
class Bench:
    """One host and what it has sent."""

    world: World
    host: TriggerHost
    fired: dict[str, asyncio.Future[dict[str, Any]]]
    running: asyncio.Future[None]
    lines: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    calls: list[Call] = field(default_factory=list)

    def add(self, root: Path, name: str, classpath: str, **kwargs: Any) -> Attempt:
        attempt = attempt_of(self.world, root, name, classpath, **kwargs)
        self.fired[name] = asyncio.get_running_loop().create_future()
        self.host.add(attempt)
        return attempt

    async def event(self, name: str) -> dict[str, Any]:
        return await asyncio.wait_for(self.fired[name], 60)

    async def payload(self, name: str) -> Any:
        body = await self.event(name)
        return body["event"]["payload"]["__var"]["payload"]


def attempt_of(world: World, root: Path, name: str, classpath: str, **kwargs: Any) -> Attempt:
    spec = TriggerSpec(trigger_id=7, classpath=classpath, encoded_kwargs={"__type": "dict", "__var": kwargs})
    return Attempt(world.spec(root, name).grant.model_copy(update={"trigger": spec, "slots": 0}))


@asynccontextmanager
async def hosting(world: World, root: Path) -> AsyncIterator[Bench]:
    """A host of the code in `root`."""

    def fired(attempt: Attempt, body: str) -> None:
        bench.fired[attempt.grant.ti["task_id"]].set_result(json.loads(body))

    def logged(attempt: Attempt, line: bytes) -> None:
        bench.lines.setdefault(attempt.grant.ti["task_id"], []).append(json.loads(line))

    async def room() -> None:
        """There is room for events."""

    first = attempt_of(world, root, "first", "mine.Says", word="first")
    host = TriggerHost(
        world.runner,
        first,
        log_file=world.folder / "logs" / "host.log",
        proxy_of=lambda _: Proxy(world, bench.calls),  # type: ignore[arg-type, return-value] # what the host uses of it
        on_fired=fired,
        room=room,
        on_logged=logged,
    )
    (world.folder / "logs").mkdir(exist_ok=True)
    running = asyncio.ensure_future(host.run(root, None))
    bench = Bench(world, host, {}, running)
    try:
        yield bench
    finally:
        host.kill()
        await asyncio.wait_for(running, 30)


def run(world: World, test: Coroutine[Any, Any, None]) -> None:
    world.do(test)


@pytest.fixture
def root(world: World) -> Path:
    return world.write(CODE, "mine.py")


def test_trigger_of_the_bundle_fires(world: World, root: Path) -> None:
    """A class of the bundle's own code fires; its log lines, its own and Airflow's, are its own."""

    async def test() -> None:
        async with hosting(world, root) as bench:
            bench.add(root, "a", "mine.Says", word="hello")
            bench.add(root, "b", "mine.Says", word="world")
            assert [await bench.payload("a"), await bench.payload("b")] == ["hello", "world"]
            assert [line["event"] for line in bench.lines["a"]] == ["saying hello", "Trigger fired event"]
            assert [line["event"] for line in bench.lines["b"]] == ["saying world", "Trigger fired event"]

    run(world, test())


def test_standard_triggers_fire(world: World, root: Path, tmp_path: Path) -> None:
    """Triggers of the standard provider fire, a file's too, which the control plane refuses to run."""

    async def test() -> None:
        async with hosting(world, root) as bench:
            moment = {"__type": "datetime", "__var": 1.0}
            bench.add(
                root, "time", "airflow.providers.standard.triggers.temporal.DateTimeTrigger", moment=moment
            )
            bench.add(
                root,
                "file",
                "airflow.providers.standard.triggers.file.FileTrigger",
                filepath=str(tmp_path),
                recursive=True,
                poke_interval=0.1,
            )
            assert (await bench.payload("time"))["__type"] == "datetime"
            assert not bench.fired["file"].done()
            (tmp_path / "there").write_text("now")
            assert await bench.payload("file") is True

    run(world, test())


def test_trigger_reads_over_its_own_proxy(world: World, root: Path) -> None:
    """Connections and variables are read from the loop and from threads, by the trigger's own proxy; secrets are masked in its log."""
    world.api.connections["warehouse"] = {"conn_type": "http", "host": "db", "password": "hunter2"}
    world.api.variables["colour"] = "red"

    async def test() -> None:
        async with hosting(world, root) as bench:
            bench.add(root, "reads", "mine.Reads")
            assert await bench.payload("reads") == ["db", "db", "red"]
            text = json.dumps(bench.lines["reads"])
            assert "hunter2" not in text
            assert "the password is ***" in text

    run(world, test())


def test_denial_fails_the_trigger_with_the_reason(world: World, root: Path) -> None:
    """A read that the policy denies fails the trigger, and its task learns why."""
    world.api.denied["connections/secret"] = "no rule allows it"

    async def test() -> None:
        async with hosting(world, root) as bench:
            bench.add(root, "denied", "mine.Denied")
            body = await bench.event("denied")
            assert "AirflowRuntimeError" in "".join(body["failure"])

    run(world, test())


def test_failures_are_reported(world: World, root: Path) -> None:
    """A trigger that raises, ends without an event or cannot be loaded reports its failure; one that ends its task says how."""

    async def test() -> None:
        async with hosting(world, root) as bench:
            bench.add(root, "raises", "mine.Raises")
            bench.add(root, "ends", "mine.Ends")
            bench.add(root, "absent", "mine.Absent")
            bench.add(root, "succeeds", "mine.Succeeds")
            assert "ValueError: no luck\n" in (await bench.event("raises"))["failure"]
            assert (await bench.event("ends"))["failure"] is None
            assert "Absent" in "".join((await bench.event("absent"))["failure"])
            assert (await bench.event("succeeds"))["event"] == {
                "payload": {},
                "state": "success",
                "xcoms": {"rows": 3},
            }

    run(world, test())


def test_large_event_fails_its_trigger_alone(world: World, root: Path) -> None:
    """An event that is larger than the control plane takes fails its trigger, with the reason; the host's others go on."""

    async def test() -> None:
        async with hosting(world, root) as bench:
            bench.add(root, "large", "mine.Large")
            [why] = (await bench.event("large"))["failure"]
            assert "the trigger's event has 3000" in why
            assert "at most 1048576 are allowed" in why
            before, left_out = [line["event"] for line in bench.lines["large"]]
            assert before == "before"
            assert "bytes is left out" in left_out
            bench.add(root, "later", "mine.Says", word="later")
            assert await bench.payload("later") == "later"

    run(world, test())


def test_cancelled_trigger_reports_nothing(world: World, root: Path, tmp_path: Path) -> None:
    """A cancelled trigger cleans up and reports nothing, whatever it waits for happens."""

    async def test() -> None:
        async with hosting(world, root) as bench:
            waits = bench.add(root, "waits", "mine.Waits", path=str(tmp_path / "there"))
            bench.add(root, "says", "mine.Says", word="running")
            await bench.event("says")
            bench.host.remove(waits)
            (tmp_path / "there").touch()
            bench.add(root, "later", "mine.Says", word="later")
            await bench.event("later")
            await asyncio.sleep(0.5)
            assert not bench.fired["waits"].done()

    run(world, test())


def test_ended_trigger_blocks_no_other(world: World, root: Path) -> None:
    """A read of a trigger that was cancelled, or has fired, is refused; the others, which read in the same thread, go on."""
    world.api.connections["warehouse"] = {"conn_type": "http", "host": "db"}
    world.api.variables["colour"] = "red"

    async def test() -> None:
        async with hosting(world, root) as bench:
            cancelled = bench.add(root, "cancelled", "mine.ReadsWhenCancelled")
            async with asyncio.timeout(30):
                while "cancelled" not in bench.lines:
                    await asyncio.sleep(0.05)
            bench.host.remove(cancelled)
            bench.add(root, "reads", "mine.Reads")
            assert await asyncio.wait_for(bench.payload("reads"), 15) == ["db", "db", "red"]
            bench.add(root, "fired", "mine.ReadsInCleanup")
            assert await bench.payload("fired") == "done"
            bench.add(root, "reads again", "mine.Reads")
            assert await asyncio.wait_for(bench.payload("reads again"), 15) == ["db", "db", "red"]

    run(world, test())


def test_self_cancelled_trigger_starts_again(world: World, root: Path) -> None:
    """A cancellation that a trigger's own code lets through starts it again, unless it has fired already."""

    async def test() -> None:
        async with hosting(world, root) as bench:
            bench.add(root, "leaks", "mine.Leaks")
            assert await asyncio.wait_for(bench.payload("leaks"), 15) == 2
            assert any("starts again" in line["event"] for line in bench.lines["leaks"])
            bench.add(root, "cancels", "mine.CancelsItself")
            assert await asyncio.wait_for(bench.payload("cancels"), 15) == 2
            bench.add(root, "fired", "mine.LeaksInCleanup")
            assert await bench.payload("fired") == 1
            bench.add(root, "counts", "mine.Counts")
            assert await bench.payload("counts") == 1

    run(world, test())


def test_dead_host_leaves_its_triggers(world: World, root: Path, tmp_path: Path) -> None:
    """A trigger that ends the process ends nothing else: the others are left to be started again."""

    async def test() -> None:
        async with hosting(world, root) as bench:
            waits = bench.add(root, "waits", "mine.Waits", path=str(tmp_path / "there"))
            bench.add(root, "dies", "mine.Dies")
            await asyncio.wait_for(asyncio.shield(bench.running), 60)
            assert waits in bench.host.attempts

    run(world, test())


def test_host_is_sandboxed_as_tasks_are(world: World, root: Path) -> None:
    """A trigger reads no file of the worker, and finds none of its environment."""
    secret = world.folder / "secret"
    secret.write_text("private key")

    async def test() -> None:
        async with hosting(world, root) as bench:
            bench.add(root, "looks", "mine.Looks", paths=[str(secret), f"/proc/{os.getpid()}/environ"])
            found = (await bench.payload("looks"))["__var"]
            assert "private key" not in json.dumps(found)

    run(world, test())


def test_task_beside_a_host_runs(world: World, root: Path) -> None:
    """The runner that runs a host runs tasks as before, from the same zygote."""
    dag = world.write(
        "from airflow.sdk import DAG, task\n"
        "with DAG('d', schedule=None):\n    @task\n    def t():\n        return 5\n    t()\n"
    )

    async def test() -> None:
        async with hosting(world, root) as bench:
            bench.add(root, "says", "mine.Says", word="hello")
            run = await world.run(dag, "t")
            assert run.proxy.states == ["success"]
            assert await bench.payload("says") == "hello"

    run(world, test())


def test_stopped_runner_ends_the_host(own_world: World) -> None:
    """No process of a host outlives its runner."""
    root = own_world.write(CODE, "mine.py")

    async def test() -> None:
        async with hosting(own_world, root) as bench:
            bench.add(root, "says", "mine.Says", word="hello")
            await bench.event("says")
            runner: WarmRunner = own_world.runner
            await runner.stop()

    run(own_world, test())
