"""Division of a host between its tasks: real processes in real cgroups, version 1 or 2 as the host has it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.runner.test_hostile_files import captured_events
from tests.integration.runner.world import Run, World, alive

from airbridge.core.protocol import Resources
from airbridge.edge_worker.exceptions import RunnerError
from airbridge.edge_worker.runner.limits import cgroups
from airbridge.edge_worker.runner.limits.cgroups import NoCgroups
from airbridge.edge_worker.runner.limits.limits import MIB, Limit, Limits, Share
from airbridge.edge_worker.work.task import Exit

FILE = """
import logging, os, signal, subprocess, sys, time
from datetime import timedelta
from pathlib import Path
from airflow.sdk import DAG, task

with DAG("d"):
    @task
    def eats(mib):
        held = []
        for _ in range(mib):
            held.append(b"x" * 2**20)
        return len(held)
    eats(400)

    @task
    def children_eat():
        code = "held = b'x' * (120 * 2**20); import time; time.sleep(2)"
        running = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
        codes = [each.wait() for each in running]
        if any(codes):
            raise RuntimeError(f"killed: {codes}")
    children_eat()

    @task
    def forks_without_end():
        refused = 0
        for _ in range(400):
            try:
                pid = os.fork()
            except OSError:
                refused += 1
                if refused > 5:
                    break
                continue
            if pid == 0:
                while True:
                    try:
                        os.fork()
                    except OSError:
                        time.sleep(0.05)
        raise RuntimeError(f"refused {refused} times")
    forks_without_end()

    @task
    def fills_the_disk():
        with open("junk", "wb") as file:
            for _ in range(400):
                file.write(b"x" * 2**20)
                file.flush()
                time.sleep(0.05)
    fills_the_disk()

    @task
    def fills_by_small_files():
        for n in range(2000):
            Path(f"junk{n}").write_bytes(b"x" * 2**20)
            time.sleep(0.05)
    fills_by_small_files()

    @task
    def waits():
        time.sleep(3)
        return "finished"
    waits()

    @task
    def leaves_children():
        code = "import os, time; os.setsid(); os.fork() and os._exit(0); time.sleep(600)"
        for _ in range(3):
            subprocess.Popen([sys.executable, "-c", code], start_new_session=True).wait()
        return "left"
    leaves_children()

    @task
    def attacks():
        own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        found = {}
        for _, controllers, path in own:
            for place in (f"/sys/fs/cgroup{path}", *(f"/sys/fs/cgroup/{each}{path}" for each in controllers.split(","))):
                for name, value in (
                    ("cgroup.procs", str(os.getpid())), ("../cgroup.procs", str(os.getpid())),
                    ("../../cgroup.procs", str(os.getpid())), ("memory.max", "max"), ("pids.max", "max"),
                    ("memory.limit_in_bytes", "-1"), ("cgroup.kill", "1"), ("../agent/cgroup.procs", str(os.getpid())),
                ):
                    file = os.path.join(place, name)
                    if os.path.exists(os.path.join(place, ".")) and os.path.exists(file):
                        try:
                            with open(file, "w") as it:
                                it.write(value)
                            found[file] = "written"
                        except OSError as error:
                            found[file] = error.strerror
                if os.path.isdir(place):
                    try:
                        os.mkdir(os.path.join(place, "mine"))
                        found[place + "/mine"] = "made"
                    except OSError as error:
                        found[place + "/mine"] = error.strerror
        after = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
        try:
            import ctypes
            libc = ctypes.CDLL(None, use_errno=True)
            done = libc.unshare(0x02000000) == 0 and libc.mount(b"none", b"/tmp", b"cgroup2", 0, None) == 0
        except Exception as error:
            done = repr(error)
        return {"found": found, "moved": own != after, "mounted": done}
    attacks()

    @task
    def fills_shared_memory():
        import tempfile
        held = []
        for _ in range(20):
            file = tempfile.TemporaryFile(dir="/dev/shm")
            file.write(b"x" * (20 * 2**20))
            file.flush()
            held.append(file)
    fills_shared_memory()

    def to_supervisor():
        from airflow.sdk.execution_time import task_runner
        return task_runner.SUPERVISOR_COMMS.socket

    @task
    def returns_100_mebibytes():
        return "x" * (100 * 2**20)
    returns_100_mebibytes()

    @task
    def defers_with_100_mebibytes():
        from airflow.providers.standard.triggers.temporal import TimeDeltaTrigger
        from airflow.exceptions import TaskDeferred
        raise TaskDeferred(trigger=TimeDeltaTrigger(timedelta(1)), method_name="on", kwargs={"of": "x" * (100 * 2**20)})
    defers_with_100_mebibytes()

    @task
    def announces_a_gigabyte():
        to_supervisor().sendall((2**30).to_bytes(4, "big"))
        for _ in range(300):
            to_supervisor().sendall(bytes(2**20))
        time.sleep(5)
    announces_a_gigabyte()

    @task
    def requests_another_log():
        from airflow.sdk.execution_time import task_runner
        from airflow.sdk.execution_time.comms import ResendLoggingFD
        refusals = []
        for _ in range(3):
            try:
                task_runner.SUPERVISOR_COMMS.send(ResendLoggingFD())
            except Exception as error:
                refusals.append(str(error))
        return refusals
    requests_another_log()

    @task
    def sends_what_grows():
        "A list of empty lists, which takes seventy times its bytes once it is decoded."
        count = 20 * 2**20
        frame = b"\\x92\\x01\\x81\\xa1a\\xdd" + count.to_bytes(4, "big") + b"\\x90" * count
        to_supervisor().sendall(len(frame).to_bytes(4, "big") + frame)
        time.sleep(60)
    sends_what_grows()

    @task
    def prints_without_newline():
        for _ in range(64):
            os.write(1, b"x" * 2**20)
    prints_without_newline()

    @task
    def logs_long_lines():
        for size in (2**21, 17 * 2**20):
            logging.getLogger("mine").warning("y" * size)
    logs_long_lines()
"""

GREEDY = """
from airflow.sdk import DAG, task

HELD = b"x" * 2**30

with DAG("d"):
    @task
    def t():
        return len(HELD)
    t()
"""

SHARE = Share(slots=8, limits=Limits(memory=256 * MIB, cpus=2.0, processes=60, disk=64 * MIB))

needs_cgroups = pytest.mark.skipif(
    isinstance(cgroups.find(), NoCgroups), reason=f"no cgroups here: {cgroups.find()}"
)


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A worker that divides its host by cgroups."""
    world = World(tmp_path_factory.mktemp("limited"), share=SHARE, cgroups=cgroups.find())
    yield world
    world.close()
    assert [] == _folders(), "the cgroups of the worker are removed"


def limit_of(exited: Exit) -> Limit | None:
    return None if exited.hit is None else exited.hit.limit


def _folders() -> list[Path]:
    return [*Path("/sys/fs/cgroup").glob(f"**/airbridge-{os.getpid()}")]


def run(world: World, task_id: str, **options: object) -> tuple[Run, Exit]:
    async def one() -> tuple[Run, Exit]:
        started = await world.spawn(world.write(FILE), task_id, **options)  # type: ignore[arg-type]
        return started, await started.ended()

    return world.do(one())


@needs_cgroups
def test_task_out_of_memory_is_killed_alone(limited: World) -> None:
    """The task that eats memory is killed and named with its peak and limit; seven neighbours finish."""

    async def all_at_once() -> tuple[list[Run], list[Exit]]:
        root = limited.write(FILE)
        started = [await limited.spawn(root, "waits") for _ in range(7)]
        started.append(await limited.spawn(root, "eats"))
        return started, [await each.ended() for each in started]

    runs, exits = limited.do(all_at_once())
    assert ["finished"] * 7 == [each.proxy.pushed() for each in runs[:7]]
    assert [None] * 7 == [each.hit for each in exits[:7]]
    hit, used = exits[7].hit, exits[7].used
    assert Limit.MEMORY == limit_of(exits[7])
    assert "may use 256 MiB, its peak was 25" in str(hit)
    assert ["failed"] == runs[7].proxy.states
    assert used is not None
    assert 250 * MIB < used.peak_memory_bytes <= 256 * MIB


@needs_cgroups
def test_memory_of_children_counts(limited: World) -> None:
    """Memory of subprocesses is the task's, and so are memory-backed files: together they may not exceed its limit."""
    for task_id in ("children_eat", "fills_shared_memory"):
        _, exited = run(limited, task_id)
        assert Limit.MEMORY == limit_of(exited)


@needs_cgroups
def test_more_memory_is_had_by_asking(limited: World) -> None:
    """A task that asks for more memory has it."""
    started, exited = run(limited, "eats", resources=Resources(memory=640 * MIB))
    assert 400 == started.proxy.pushed()
    assert exited.hit is None
    assert exited.used is not None
    assert exited.used.peak_memory_bytes > 400 * MIB


@needs_cgroups
def test_task_of_more_slots_has_their_shares(limited: World) -> None:
    """A task of two slots has twice the memory of one."""
    started, _ = run(limited, "eats", slots=2)
    assert 400 == started.proxy.pushed()


def test_task_that_can_never_fit_is_refused(limited: World) -> None:
    """A task that asks for more than the whole worker fails before it starts, and the reason has the numbers."""
    with pytest.raises(
        RunnerError, match=r"memory of 4096 MiB, and this worker has 2048 MiB: 8 slots of 256 MiB"
    ):
        run(limited, "waits", resources=Resources(memory=4096 * MIB))


@needs_cgroups
def test_fork_bomb_is_held(limited: World) -> None:
    """A task that forks without end is held at its limit of processes, named, and nothing of it is left."""

    async def both() -> tuple[list[Run], list[Exit]]:
        root = limited.write(FILE)
        started = [await limited.spawn(root, each) for each in ("waits", "forks_without_end")]
        return started, [await each.ended() for each in started]

    runs, (neighbour, exited) = limited.do(both())
    assert "finished" == runs[0].proxy.pushed()
    assert neighbour.hit is None
    assert Limit.PROCESSES == limit_of(exited)
    assert "held at 60 processes" in str(exited.hit)
    assert ["failed"] == runs[1].proxy.states


@needs_cgroups
def test_detached_children_end_with_the_task(limited: World) -> None:
    """Children in sessions of their own, whose parents have ended, do not outlive the task."""
    started, _ = run(limited, "leaves_children")
    assert "left" == started.proxy.pushed()
    left = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and b"time.sleep(600)" in _command(entry) and alive(int(entry.name))
    ]
    assert [] == left


def _command(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


@needs_cgroups
def test_task_cannot_change_its_limits(limited: World) -> None:
    """A task can neither leave its cgroup, nor write limits, nor make cgroups beneath it, nor mount them anew."""
    started, _ = run(limited, "attacks")
    seen = started.proxy.pushed()
    assert seen["found"], "it found its own cgroup"
    assert {} == {file: what for file, what in seen["found"].items() if what in {"written", "made"}}
    assert not seen["moved"]
    assert seen["mounted"] is not True


def test_task_that_fills_the_disk_is_stopped(limited: World) -> None:
    """A task whose working directory holds more than it may is stopped and named."""
    _, exited = run(limited, "fills_by_small_files")
    assert Limit.DISK == limit_of(exited)
    assert "may hold 64 MiB" in str(exited.hit)


def test_one_file_cannot_exceed_the_disk_limit(limited: World) -> None:
    """Writing a file larger than the limit fails in the task, which can say so itself."""
    started, _ = run(limited, "fills_the_disk")
    assert "File too large" in started.log
    assert ["failed"] == started.proxy.states


def test_memory_is_limited_without_cgroups(tmp_path: Path) -> None:
    """Without cgroups each process of a task has the memory limit by itself, and the reason says why."""
    world = World(tmp_path, share=SHARE, cgroups=NoCgroups("made up"))
    try:
        assert "made up" == world.runner.limits.why_no_cgroup
        started, exited = run(world, "eats")
        assert ["failed"] == started.proxy.states
        assert Limit.MEMORY == limit_of(exited)
        assert "one by one: made up" in str(exited.hit)
        fits, _ = run(world, "eats", resources=Resources(memory=640 * MIB))
        assert 400 == fits.proxy.pushed()
    finally:
        world.close()


def peak_over_now(pid: int) -> int:
    """Return by how many bytes a process's largest resident size exceeds its present one."""
    lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return (int(lines["VmHWM"].split()[0]) - int(lines["VmRSS"].split()[0])) * 1024


def test_supervisor_keeps_no_endless_message(limited: World) -> None:
    """A message that a task announces as a gigabyte is refused at its head, and fails the task with the reason."""
    started, exited = run(limited, "announces_a_gigabyte")
    assert ["failed"] == started.proxy.states
    assert "a message of 1073741824 bytes; at most 97517568 are allowed" in exited.detail
    assert peak_over_now(started.task.pid) < 50 * MIB


def test_supervisor_that_gives_up_leaves_retries(limited: World) -> None:
    """A task whose supervisor gives up is retried if it has retries left."""
    started, exited = run(limited, "announces_a_gigabyte", should_retry=True)
    assert ["up_for_retry"] == started.proxy.states
    assert "a message of 1073741824 bytes" in exited.detail


@pytest.mark.parametrize(
    ("task_id", "message"), [("returns_100_mebibytes", "SetXCom"), ("defers_with_100_mebibytes", "DeferTask")]
)
def test_too_large_request_is_an_error_of_the_task(limited: World, task_id: str, message: str) -> None:
    """A value that is too large for a request fails the task as its own errors do: with a traceback, and with its retries."""
    memory = Resources(memory=1024 * MIB)
    started, exited = run(limited, task_id, resources=memory, should_retry=True)
    assert ["up_for_retry"] == started.proxy.states
    assert exited.clean
    assert f"{message} of 1048" in started.log
    assert "a request to the supervisor has at most 97517568 bytes" in started.log


def test_no_other_socket_for_logs_is_opened(limited: World) -> None:
    """A task that requests another socket for its logs is refused; there, nothing would bound a line."""

    async def both() -> tuple[Run, int, int]:
        started = await limited.spawn(limited.write(FILE), "requests_another_log", hold="xcoms/")
        before = open_files(started.task.pid)
        async with asyncio.timeout(30):
            while not any(call.path.startswith("xcoms/") for call in started.proxy.calls):
                await asyncio.sleep(0.05)
        after = open_files(started.task.pid)
        started.task.kill()
        await started.ended()
        return started, before, after

    started, before, after = limited.do(both())
    refusals = started.proxy.pushed()
    assert 3 == len(refusals)
    assert all("ResendLoggingFD is not supported" in each for each in refusals)
    assert after <= before


def open_files(pid: int) -> int:
    return len([*Path(f"/proc/{pid}/fd").iterdir()])


def test_supervisor_has_a_limit_of_its_own(limited: World) -> None:
    """A message that takes more memory than the task's limit allows its supervisor fails the task."""
    started, exited = run(limited, "sends_what_grows")
    assert ["failed"] == started.proxy.states
    assert "MemoryError" in exited.detail
    assert peak_over_now(started.task.pid) < 900 * MIB
    after, _ = run(limited, "waits")
    assert ("finished", started.task.pid) == (after.proxy.pushed(), after.task.pid)
    os.kill(after.task.pid, signal.SIGKILL)  # its peak would be that of the next task's supervisor


def test_endless_output_is_split(limited: World) -> None:
    """Output without a newline is in the log in pieces of a mebibyte, and the supervisor holds no more than one."""
    started, exited = run(limited, "prints_without_newline")
    assert exited.clean
    printed = [each["event"] for each in started.events if set(each["event"]) == {"x"}]
    assert [2**20] * 64 == [len(each) for each in printed]
    assert peak_over_now(started.task.pid) < 50 * MIB


def test_endless_log_line_is_left_out(limited: World) -> None:
    """A line of a log of megabytes is kept whole; a longer one is left out, and the log has its size."""
    started, exited = run(limited, "logs_long_lines")
    assert exited.clean
    kept, left_out = [each for each in started.events if each["level"] == "warning"]
    assert "y" * 2**21 == kept["event"]
    assert "one of a task's log has at most 16777216 bytes" in left_out["event"]


@needs_cgroups
def test_greedy_file_is_held_as_its_tasks_are(limited: World) -> None:
    """What a DAG file takes at import is limited to its task's share, ahead of the task as within it; others go on."""

    async def both() -> tuple[Run, Run, Exit]:
        neighbour = await limited.spawn(limited.write(FILE), "waits")
        zygote = limited.runner.zygote_pid
        greedy = await limited.spawn(limited.write(GREEDY), "t")
        exited = await greedy.ended()
        await neighbour.ended()
        assert zygote == limited.runner.zygote_pid
        return neighbour, greedy, exited

    neighbour, greedy, exited = limited.do(both())
    assert Limit.MEMORY == limit_of(exited)
    assert ["failed"] == greedy.proxy.states
    assert "finished" == neighbour.proxy.pushed()


def test_greedy_file_is_limited_without_cgroups(tmp_path: Path) -> None:
    """Without cgroups, a file that takes more than a slot's memory at import is not parsed ahead of its tasks."""
    world = World(tmp_path, share=SHARE, cgroups=NoCgroups("made up"))
    try:
        with captured_events() as events:
            started = world.do(world.run(world.write(GREEDY), "t"))
        [unshared] = [each for each in events if each["event"] == "runner.file_not_shared"]
        assert any("MemoryError" in each for each in unshared["violations"])
        assert ["failed"] == started.proxy.states
        assert "MemoryError" in started.log
    finally:
        world.close()


@needs_cgroups
def test_many_tasks_of_one_file_fit_beside_their_template(limited: World) -> None:
    """What tasks write to before they are in their own cgroups does not use up their template's."""

    async def rounds() -> list[Run]:
        root = limited.write(FILE)
        started = []
        for _ in range(4):
            each = [await limited.spawn(root, "waits") for _ in range(8)]
            for one in each:
                await one.ended()
            started += each
        return started

    started = limited.do(rounds())
    assert ["finished"] * 32 == [each.proxy.pushed() for each in started]
    assert 1 == len({each.task.template_pid for each in started})


def test_tasks_without_limits_have_no_cgroup(own_world: World) -> None:
    """A worker without limits makes no cgroups for its tasks."""
    started, exited = run(own_world, "waits")
    assert "finished" == started.proxy.pushed()
    assert exited.hit is None
