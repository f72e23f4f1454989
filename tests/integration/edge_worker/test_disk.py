"""The disk fills, the journal is damaged, S3 is away: no result is lost."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.edge_worker.conftest import World, until
from tests.integration.edge_worker.cut import LinkState
from tests.integration.edge_worker.test_agent import Gate, succeed

from airbridge.core.aws.queue import Outgoing
from airbridge.edge_worker.agent import ExitCode
from airbridge.edge_worker.testing import FakeSupervisor


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
