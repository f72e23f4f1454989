"""Deaths and cancellations of the runner's processes: all processes below end, no others do, and the cause is reported."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

from tests.integration.runner.world import Run, World, alive

from airbridge.edge_worker.runner import process

FILE = """
import ctypes, os, signal, subprocess, sys, time
from datetime import datetime
from airflow.sdk import DAG, BaseOperator, get_current_context, task

class Nap(BaseOperator):
    def __init__(self, stubborn=False, **kwargs):
        super().__init__(**kwargs)
        self.stubborn = stubborn

    def execute(self, context):
        self.child = subprocess.Popen(["sleep", "600"], start_new_session=True)
        context["ti"].xcom_push("pids", [os.getpid(), self.child.pid])
        time.sleep(600)

    def on_kill(self):
        print("on_kill called")
        if not self.stubborn:
            os._exit(5)

class Cleans(Nap):
    def on_kill(self):
        from airflow.hooks.base import BaseHook
        print("on_kill reads", BaseHook.get_connection("c").host)
        os._exit(5)

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    Nap(task_id="naps")
    Nap(task_id="naps_on", stubborn=True)
    Cleans(task_id="cleans")

    @task
    def segfaults():
        ctypes.string_at(0)

    @task
    def is_killed():
        os.kill(os.getpid(), signal.SIGKILL)

    @task
    def leaves_a_daemon():
        read, write = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                os.write(write, str(os.getpid()).encode())
                time.sleep(600)
            os._exit(0)
        return int(os.read(read, 20))

    @task
    def succeeds():
        return os.getppid()

    @task
    def asks():
        get_current_context()["ti"].xcom_pull(task_ids="other", key="k", map_indexes=-1)

    @task
    def goes_deep():
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
        os.chdir("/")

    goes_deep()
    [segfaults(), is_killed(), leaves_a_daemon(), succeeds(), asks()]
"""


async def pushed_pids(run: Run) -> list[int]:
    async with asyncio.timeout(30):
        while not run.proxy.bodies("/pids"):
            await asyncio.sleep(0.05)
    return [int(pid) for pid in run.proxy.pushed("pids")]


async def until(condition: Callable[[], bool], seconds: float = 15) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.05)


async def gone(pids: list[int]) -> None:
    await until(lambda: not any(map(alive, pids)))


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def template_of(task: int) -> int:
    parent = parent_of(task)
    assert process.name_of(parent) == process.TEMPLATE
    return parent


def test_cancelled_task_gets_on_kill(world: World) -> None:
    """SIGTERM reaches the task's on_kill and its children end; the log has the reason, and no state is reported."""

    async def scenario() -> None:
        run = await world.spawn(world.write(FILE), "naps")
        pids = await pushed_pids(run)
        run.proxy.cancel("cancelled", "marked failed by somebody")
        exit_ = await run.ended(20)
        await gone(pids)
        assert run.proxy.states == []
        assert (exit_.code, exit_.signal) == (1, None)
        assert "cancelled: marked failed by somebody" in exit_.detail
        assert "on_kill called" in run.log
        assert "marked failed by somebody" in run.log

    world.do(scenario())


def test_on_kill_reads_a_connection(world: World) -> None:
    """A task that is being stopped still reads, so that it can stop what it has started elsewhere."""
    world.api.connections["c"] = {"conn_type": "http", "host": "elsewhere"}

    async def scenario() -> None:
        run = await world.spawn(world.write(FILE), "cleans")
        pids = await pushed_pids(run)
        run.proxy.cancel("cancelled")
        exit_ = await run.ended(20)
        await gone(pids)
        assert "on_kill reads elsewhere" in run.log
        assert run.proxy.states == []
        assert exit_.code == 1

    world.do(scenario())


def test_on_kill_without_an_answer_is_killed(world: World) -> None:
    """A read that is not answered holds the end of a stopped task up for no longer than its grace period."""

    async def scenario() -> None:
        run = await world.spawn(world.write(FILE), "cleans", hold="connections")
        pids = await pushed_pids(run)
        started = time.monotonic()
        run.proxy.cancel("cancelled")
        await run.ended(20)
        await gone(pids)
        assert time.monotonic() - started < 8

    world.do(scenario())


def test_task_ignoring_sigterm_is_killed(world: World) -> None:
    """After the grace period comes SIGKILL, for the task's children too."""

    async def scenario() -> None:
        run = await world.spawn(world.write(FILE), "naps_on")
        pids = await pushed_pids(run)
        started = time.monotonic()
        run.proxy.cancel("lost")
        await run.ended(20)
        await gone(pids)
        # `World` sets a kill grace of one second.
        assert 0.9 < time.monotonic() - started < 8
        assert run.proxy.states == []

    world.do(scenario())


def test_cancellation_interrupts_unanswered_request(world: World) -> None:
    """A supervisor that waits for a reply receives the cancellation."""

    async def scenario() -> None:
        run = await world.spawn(world.write(FILE), "asks", hold="xcoms")
        await until(lambda: bool(run.proxy.calls))
        run.proxy.cancel("cancelled")
        exit_ = await run.ended(20)
        assert exit_.code == 1
        assert run.proxy.states == []

    world.do(scenario())


def test_proxy_end_stops_the_task(world: World) -> None:
    """Without its agent a task does not run on."""

    async def scenario() -> None:
        run = await world.spawn(world.write(FILE), "naps")
        pids = await pushed_pids(run)
        run.proxy.hang_up()
        exit_ = await run.ended(20)
        await gone(pids)
        assert "agent_gone" in exit_.detail

    world.do(scenario())


def test_segmentation_fault_is_reported(world: World) -> None:
    """The task fails, and log and exit name SIGSEGV; its template and its siblings go on."""

    async def scenario() -> None:
        root = world.write(FILE)
        sibling = await world.spawn(root, "naps")
        pids = await pushed_pids(sibling)
        run = await world.spawn(root, "segfaults")
        exit_ = await run.ended(20)
        assert exit_.clean
        assert "SIGSEGV" in exit_.detail
        assert run.proxy.states == ["failed"]
        assert "Segmentation Fault" in run.log
        assert all(map(alive, pids))
        assert alive(template_of(pids[0]))
        sibling.task.kill()
        await sibling.ended()
        await gone(pids)

    world.do(scenario())


def test_killed_task_is_reported(world: World) -> None:
    """A task that the kernel kills, as when memory runs out, is reported failed with the signal."""
    run = world.do(world.run(world.write(FILE), "is_killed"))
    assert run.proxy.states == ["failed"]
    assert "SIGKILL" in world.exit.detail
    assert "SIGKILL" in run.log


def test_leftovers_of_task_are_killed(world: World) -> None:
    """Processes that a task leaves running are killed at its end, daemons in sessions of their own as well."""
    run = world.do(world.run(world.write(FILE), "leaves_a_daemon"))
    assert run.proxy.states == ["success"]
    world.do(gone([run.proxy.pushed()]))


def test_kill_ends_task_and_children(world: World) -> None:
    """SIGKILL to the supervisor ends the task with it, and the template kills the task's children."""

    async def scenario() -> None:
        run = await world.spawn(world.write(FILE), "naps")
        pids = await pushed_pids(run)
        run.task.kill()
        exit_ = await run.ended(10)
        await gone([*pids, run.task.pid])
        # The supervisor was killed before it could report: the agent reports in its place.
        assert (exit_.code, exit_.signal) == (None, signal.SIGKILL)
        run.task.kill()

    world.do(scenario())


def test_dead_template_is_replaced(world: World) -> None:
    """After kill -9 of a template its running task goes on and is cleaned up after; the next task gets a new template."""

    async def scenario() -> None:
        root = world.write(FILE)
        run = await world.spawn(root, "naps")
        pids = await pushed_pids(run)
        old = template_of(pids[0])
        os.kill(old, signal.SIGKILL)
        following = await world.spawn(root, "naps")
        new = template_of((await pushed_pids(following))[0])
        assert new != old
        assert all(map(alive, pids))
        os.kill(pids[0], signal.SIGKILL)
        assert "SIGKILL" in (await run.ended(20)).detail
        assert run.proxy.states == ["failed"]
        await gone(pids)
        following.proxy.cancel("cancelled")
        await following.ended(20)

    world.do(scenario())


def test_orphan_dies_with_its_supervisor(world: World) -> None:
    """A task whose template has died is killed by the zygote when its supervisor dies."""

    async def scenario() -> None:
        run = await world.spawn(world.write(FILE), "naps")
        pids = await pushed_pids(run)
        os.kill(template_of(pids[0]), signal.SIGKILL)
        # The zygote is a subreaper: the orphan becomes its child.
        await until(lambda: parent_of(pids[0]) == world.runner.zygote_pid)
        run.task.kill()
        assert (await run.ended()).signal == signal.SIGKILL
        await gone(pids)

    world.do(scenario())


def test_task_without_template_and_zygote(own_world: World) -> None:
    """After kill -9 of template and zygote the next zygote's start kills the task, and its supervisor reports it failed."""
    world = own_world

    async def scenario() -> None:
        root = world.write(FILE)
        run = await world.spawn(root, "naps")
        pids = await pushed_pids(run)
        for pid in (world.runner.zygote_pid or 0, template_of(pids[0])):
            os.kill(pid, signal.SIGKILL)
        await until(lambda: world.runner.zygote_pid is None)
        await (await world.spawn(root, "succeeds")).ended()
        assert (await run.ended(30)).clean
        assert run.proxy.states == ["failed"]
        await gone(pids)

    world.do(scenario())


def test_idle_supervisor_may_die(world: World) -> None:
    """The next task gets another supervisor when an idle one has died."""

    async def scenario() -> None:
        root = world.write(FILE)
        first = await world.run(root, "succeeds")
        os.kill(first.task.pid, signal.SIGKILL)
        await gone([first.task.pid])
        second = await world.run(root, "succeeds")
        assert second.proxy.states == ["success"]
        assert second.task.pid != first.task.pid

    world.do(scenario())


def test_supervisor_is_reused(world: World) -> None:
    """A supervisor takes tasks of any file; killing the first after its end does nothing to the second."""

    async def scenario() -> None:
        first = await world.run(world.write(FILE), "succeeds")
        # Time for the supervisor to report itself idle; before that a second one would be started.
        await asyncio.sleep(0.2)
        second = await world.spawn(world.write(FILE + "\n# another"), "naps")
        pids = await pushed_pids(second)
        assert second.task.pid == first.task.pid
        first.task.kill()
        await asyncio.sleep(0.2)
        assert all(map(alive, [*pids, second.task.pid]))
        second.task.kill()
        await second.ended()

    world.do(scenario())


def test_dead_zygote_is_replaced(own_world: World) -> None:
    """After kill -9 of the zygote running tasks finish and are reported, their templates end, and the next spawn starts a new zygote."""
    world = own_world

    async def scenario() -> None:
        root = world.write(FILE)
        run = await world.spawn(root, "naps")
        pids = await pushed_pids(run)
        old, template = world.runner.zygote_pid, template_of(pids[0])
        assert old is not None
        os.kill(old, signal.SIGKILL)
        await gone([old])
        following = await world.spawn(root, "succeeds")
        await following.ended()
        assert following.proxy.states == ["success"]
        assert world.runner.zygote_pid not in (None, old)
        assert all(map(alive, pids))
        run.proxy.cancel("cancelled")
        exit_ = await run.ended(20)
        assert exit_.code == 1
        await gone([*pids, template])
        orphan = await world.spawn(root, "naps")
        pids = await pushed_pids(orphan)
        os.kill(world.runner.zygote_pid or 0, signal.SIGKILL)
        await until(lambda: world.runner.zygote_pid is None)
        orphan.task.kill()
        assert (await orphan.ended()).signal == signal.SIGKILL
        await gone(pids)

    world.do(scenario())


def test_stop_leaves_no_process_behind(tmp_path: Path) -> None:
    """After `stop`, zygote, templates, supervisors, tasks and their children are gone."""
    world = World(tmp_path)

    async def scenario() -> list[int]:
        run = await world.spawn(world.write(FILE), "naps")
        pids = await pushed_pids(run)
        return [*pids, run.task.pid, template_of(pids[0]), world.runner.zygote_pid or 0]

    pids = world.do(scenario())
    world.close()
    assert [pid for pid in pids if alive(pid)] == []


def test_deep_directories_end_nothing(tmp_path: Path) -> None:
    """What a task leaves in its working directory, however deep, keeps the worker neither from its end nor from its next start."""
    first = World(tmp_path)
    assert first.do(first.run(first.write(FILE), "goes_deep")).proxy.states == ["success"]
    first.close()
    # As after a kill of the agent, which removes nothing.
    left = first.settings.tasks_dir / "12345678" / "left"
    left.mkdir(parents=True)
    place = os.open(left, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=place)
        inner = os.open("d", os.O_RDONLY, dir_fd=place)
        os.close(place)
        place = inner
    os.close(place)
    second = World(tmp_path)
    try:
        assert second.do(second.run(second.write(FILE), "succeeds")).proxy.states == ["success"]
        second.do(until(lambda: not list(tmp_path.glob(".removed-*"))))
        assert second.do(second.run(second.write(FILE), "goes_deep")).proxy.states == ["success"]
    finally:
        second.close()
    assert not second.settings.tasks_dir.exists()
