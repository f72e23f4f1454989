"""The disk fills, the journal is damaged, S3 is away: no result is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.integration.edge_worker.conftest import World, until
from tests.integration.edge_worker.cut import LinkState
from tests.integration.edge_worker.test_agent import Gate, succeed

from airbridge.core.aws.queue import Outgoing
from airbridge.core.protocol import TriggerSpec
from airbridge.edge_worker.agent import ExitCode
from airbridge.edge_worker.testing import FakeRunner, FakeSupervisor, FakeTask, Script
from airbridge.edge_worker.triggers import messages
from airbridge.edge_worker.work.task import TaskSpec


@pytest.mark.parametrize("damage", ["truncate", "delete"])
def test_damage_while_running_loses_no_result(world: World, damage: str) -> None:
    """A journal that is cut or removed while results wait in it is rebuilt from memory, and they are reported."""
    gate = Gate()

    async def scenario() -> None:
        items = [world.submit() for _ in range(3)]
        async with world.worker(gate) as agent:
            await until(lambda: gate.running == 3)
            world.cut.set(LinkState.REFUSE)
            journal = agent._settings.journal_file
            if damage == "delete":
                journal.unlink()
            else:
                os.truncate(journal, 100)
            gate.go.set()
            await until(lambda: gate.running == 0)
            await until(lambda: agent.status()["journal"]["damages"])
            world.cut.set(LinkState.UP)
            await until(lambda: all(item.states == ["success"] for item in items))
            await until(lambda: "journal.damaged" in world.control_plane.reported_events)
        assert [*journal.parent.glob("*.corrupt-*")] or damage == "delete"

    asyncio.run(scenario())


def test_journal_damaged_between_runs(world: World) -> None:
    """A worker that finds a truncated journal reports it and goes on; whole results in it still arrive."""
    gate = Gate()

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(gate, drain_flush_seconds=0.2):
            await until(lambda: gate.running == 1)
            world.cut.set(LinkState.REFUSE)
            gate.go.set()
            await until(lambda: gate.running == 0)
            await asyncio.sleep(0.2)
        assert world.exit_code is ExitCode.NOT_FLUSHED
        journal = world.settings().journal_file
        with journal.open("r+b") as file:  # the page after the last table's: an unused one
            file.seek(0, os.SEEK_END)
            file.write(b"\xff" * 100)
        # The mark is the number of the last commit: ahead of the file's own, it reveals that commits are missing.
        (journal.parent / "journal.sqlite.mark").write_text(f"{10**6:020d}")
        world.cut.set(LinkState.UP)
        async with world.worker(gate) as agent:
            assert agent.status()["journal"]["damages"]
            await until(lambda: item.state == "settled")
            fresh = world.submit()
            await until(lambda: fresh.state == "settled")
        assert item.states == fresh.states == ["success"]
        assert [*journal.parent.glob("*.corrupt-*")]

    asyncio.run(scenario())


def test_s3_outage_delays_only_logs(world: World) -> None:
    """Results are committed without the log bucket; the log stays on the disk and is whole once the bucket is reachable."""

    async def scenario() -> None:
        item = world.submit()
        world.bucket("logs").unreachable = True
        async with world.worker(succeed, drain_flush_seconds=0.3):
            await until(lambda: item.state == "settled")
        assert item.states == ["success"]
        assert world.exit_code is ExitCode.NOT_FLUSHED
        world.bucket("logs").unreachable = False
        async with world.worker(succeed):
            await until(lambda: world.log_of(item))
        assert world.log_of(item) == '{"event": "hello"}\n'
        assert [*(world.settings().logs_dir).iterdir()] == []

    asyncio.run(scenario())


def test_running_log_can_be_followed(world: World) -> None:
    """Chunks hold only new lines; at the end the whole log replaces them."""
    gate = Gate()

    def work(task: FakeSupervisor) -> None:
        task.start()
        task.log("one")
        gate.entered += 1
        gate.go.wait(20)
        task.log("two")
        task.succeed()

    async def scenario() -> None:
        item = world.submit()
        async with world.worker(work):
            await until(lambda: world.log_of(item, "00000001.log"))
            assert world.log_of(item, "00000001.log") == '{"event": "one"}\n'
            gate.go.set()
            await until(lambda: world.log_of(item))
            await until(lambda: world.log_of(item, "00000001.log") is None)
        assert world.log_of(item) == '{"event": "one"}\n{"event": "two"}\n'

    asyncio.run(scenario())


def test_nearly_full_disk_stops_claims(world: World) -> None:
    """Below the least free space nothing is claimed; the message stays for others."""

    async def scenario() -> None:
        item = world.submit()
        # More than any disk has.
        async with world.worker(succeed, min_free_mib=10**9):
            await until(lambda: len(world.control_plane.heartbeats) > 5)
        assert item.state == "sent"
        assert world.queue.depth().visible == 1

    asyncio.run(scenario())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB."""
    mount = tmp_path / "small"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m,mode=700", "airbridge-test", str(mount)],
        check=False,
        capture_output=True,
    )
    if made.returncode != 0:
        pytest.skip(f"cannot mount a small file system here: {made.stderr.decode().strip()}")
    try:
        yield mount
    finally:
        subprocess.run(["umount", "-l", str(mount)], check=True)


def test_a_full_disk_loses_no_result(world: World, small_disk: Path) -> None:
    """With the disk full the reserve is given up for results; writes wait rather than vanish; all are committed."""
    gate = Gate()
    written = []

    def work(task: FakeSupervisor) -> None:
        task.start()
        gate.entered += 1
        gate.go.wait(20)
        for n in range(3):
            task.set_xcom(f"k{n}", "x" * 200_000)
        task.succeed()
        written.append(task)

    async def scenario() -> None:
        items = [world.submit() for _ in range(4)]
        async with world.worker(work, state_dir=small_disk / "state") as agent:
            await until(lambda: gate.entered == 4)
            world.cut.set(LinkState.REFUSE)
            filler = small_disk / "filler"
            free = shutil.disk_usage(small_disk).free
            # Leaves 64 KiB, less than the results need.
            filler.write_bytes(b"\0" * max(0, free - 65536))
            gate.go.set()
            await until(lambda: agent.status()["journal"]["full"])
            await until(lambda: not (small_disk / "state/reserve").exists())
            world.cut.set(LinkState.UP)
            await asyncio.sleep(0.5)
            filler.unlink()
            await until(lambda: all(item.states == ["success"] for item in items), 30)
        assert all(len(item.xcoms) == 3 for item in items)

    asyncio.run(scenario())


def test_s3_outage_delays_uncached_code(world: World) -> None:
    """A task whose code is cached runs and is committed; one with new code waits until the bucket is reachable."""

    async def scenario() -> None:
        first = world.submit()
        cached = world.control_plane.place(first.bundle)
        new = world.control_plane.place(world.publish("print('new')\n"))
        async with world.worker(succeed) as agent:
            await until(lambda: first.state == "settled" and world.log_of(first))
            world.bucket("dags").unreachable = world.bucket("logs").unreachable = True
            world.queue.send([Outgoing(str(n), envelope) for n, (_, envelope) in enumerate((cached, new))])
            await until(lambda: cached[0].state == "settled")
            await until(lambda: new[0].state == "claimed")
            assert {task["task_id"] for task in agent.status()["tasks"]} == {"task"}
            world.bucket("dags").unreachable = world.bucket("logs").unreachable = False
            await until(lambda: new[0].state == "settled")
            await until(lambda: world.log_of(cached[0]) and world.log_of(new[0]))
        assert cached[0].states == new[0].states == ["success"]
        assert world.log_of(cached[0]) == world.log_of(new[0]) == '{"event": "hello"}\n'

    asyncio.run(scenario())


class TriggerRunner(FakeRunner):
    """Runner of trigger hosts: each trigger logs a line, and fires if it is to."""

    def __init__(self, _: Script, *, fires: bool) -> None:
        super().__init__(succeed)
        self.fires = fires
        self.host_logs: list[Path] = []

    async def spawn(self, spec: TaskSpec, proxy_socket: socket.socket) -> FakeTask:
        """Serve the host's socket in a thread."""
        self.host_logs.append(spec.log_file)
        spec.log_file.write_text("printed by the host\n")
        without: Any = SimpleNamespace(hit=None)
        task = FakeTask(without, proxy_socket, lambda _: self._serve(proxy_socket))
        self.tasks.append(task)
        return task

    def _serve(self, sock: socket.socket) -> None:
        with suppress(OSError):
            while head := sock.recv(messages.LENGTH.size, socket.MSG_WAITALL):
                found = messages.decode_to_host(sock.recv(*messages.LENGTH.unpack(head), socket.MSG_WAITALL))
                if isinstance(found, messages.Run):
                    sock.sendall(messages.encode(messages.Logged(found.number, b'{"event": "waiting"}')))
                    if self.fires:
                        sock.sendall(messages.encode(messages.Fired(found.number, '{"event": 1}')))


def triggers(*, fires: bool) -> Callable[[Script], FakeRunner]:
    return lambda script: TriggerRunner(script, fires=fires)


SPEC = TriggerSpec(trigger_id=7, classpath="mine.Trigger", encoded_kwargs={})


def test_trigger_log_outlives_the_worker(world: World) -> None:
    """The log of a trigger that fired while the log bucket was away is shipped by the next process of the worker."""
    world.make_runner = triggers(fires=True)

    async def scenario() -> None:
        item = world.submit(trigger=SPEC)
        world.bucket("logs").unreachable = True
        async with world.worker(succeed, drain_flush_seconds=0.3):
            await until(lambda: item.state == "settled")
        assert item.event == '{"event": 1}'
        assert world.exit_code is ExitCode.NOT_FLUSHED
        world.bucket("logs").unreachable = False
        async with world.worker(succeed):
            await until(lambda: world.log_of(item))
        assert world.log_of(item) == '{"event": "waiting"}\n'
        assert [*(world.settings().logs_dir).iterdir()] == []

    asyncio.run(scenario())


def test_released_trigger_leaves_no_log(world: World) -> None:
    """The log of a trigger that a drain releases is shipped, and neither it nor its host's stays on the disk."""
    world.make_runner = triggers(fires=False)

    async def scenario() -> None:
        item = world.submit(trigger=SPEC)
        async with world.worker(succeed) as agent:
            await until(lambda: world.log_of(item, "00000001.log"))
            world.control_plane.commands.append({"kind": "drain"})
            await until(lambda: item.state == "sent")
            await until(lambda: world.log_of(item))
            await until(lambda: agent.status()["logs"]["bytes"] == 0)
        assert world.log_of(item) == '{"event": "waiting"}\n'
        assert [*(world.settings().logs_dir).iterdir()] == []

    asyncio.run(scenario())


def test_restarted_trigger_keeps_its_log(world: World) -> None:
    """A trigger that the next process of the worker runs again goes on in the same log, which is shipped once, whole."""
    world.make_runner = triggers(fires=False)

    async def scenario() -> None:
        item = world.submit(trigger=SPEC)
        async with world.worker(succeed, drain_flush_seconds=0.3):
            await until(lambda: world.log_of(item, "00000001.log"))
            world.cut.set(LinkState.REFUSE)
        world.cut.set(LinkState.UP)
        world.make_runner = triggers(fires=True)
        async with world.worker(succeed):
            await until(lambda: item.state == "settled")
            await until(lambda: world.log_of(item))
        assert world.log_of(item) == '{"event": "waiting"}\n' * 2
        assert world.log_of(item, "00000001.log") is None

    asyncio.run(scenario())


def test_host_log_is_bounded(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a trigger host prints without end does not fill the disk, and goes with its host."""
    monkeypatch.setattr("airbridge.edge_worker.triggers.host_log.MAX_BYTES", 1000)
    monkeypatch.setattr("airbridge.edge_worker.triggers.host_log.CHECK_SECONDS", 0.05)
    made: list[TriggerRunner] = []

    def make(script: Script) -> FakeRunner:
        made.append(TriggerRunner(script, fires=False))
        return made[-1]

    world.make_runner = make

    async def scenario() -> None:
        world.submit(trigger=SPEC)
        async with world.worker(succeed):
            await until(lambda: made[0].host_logs)
            [path] = made[0].host_logs
            with path.open("a") as file:
                file.write("x" * 2000)
                file.flush()
                await until(lambda: path.stat().st_size < 1000)
                file.write("y" * 10)
            assert path.read_text().endswith("y" * 10)
        assert not path.exists()

    asyncio.run(scenario())
