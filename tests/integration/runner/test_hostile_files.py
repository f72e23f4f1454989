"""DAG files that a fork could break behave as if each task had parsed them itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from structlog.testing import LogCapture
from tests.integration.runner.attacks import TAIL
from tests.integration.runner.world import World

HEAD = """
import os, random, socket, subprocess, sys, threading, time, uuid
from datetime import datetime
from airflow.sdk import DAG, Variable, task, get_parsing_context
"""
# Code, and words of the violation that the runner must log: each would break or leak if tasks were forked after the import.
HOSTILE = {
    "a thread at import": (
        (
            "queue = []\ndef work():\n    while True:\n        queue.append(1)\n        time.sleep(0.01)\n"
            "threading.Thread(target=work, daemon=True).start()\n"
            "def result():\n    before = len(queue)\n    time.sleep(0.3)\n    return len(queue) > before\n"
        ),
        "starts threads",
    ),
    "an open socket at import": (
        "server = socket.create_server(('127.0.0.1', 0))\ndef result():\n    return server.getsockname()[1] > 0\n",
        "binds a socket",
    ),
    "a connection at import": (
        (
            "import sqlite3\ndb = sqlite3.connect('/var/tmp/airbridge-test.db')\n"
            "def result():\n    return db.execute('select 1').fetchone() == (1,)\n"
        ),
        "opens a database",
    ),
    "a file kept open": (
        "log = open(__file__)\ndef result():\n    return log.tell() == 0\n",
        "leaves",
    ),
    "a file read from outside of the snapshot": (
        "CONFIG = open('/var/tmp/airbridge-test-config', 'a+').name\ndef result():\n    return bool(CONFIG)\n",
        "writes the file",
    ),
    "a child process at import": (
        "VERSION = subprocess.run(['echo', '1'], capture_output=True).stdout\ndef result():\n    return VERSION == b'1\\n'\n",
        "starts a process",
    ),
    "a parsing-context filter": (
        (
            "CONTEXT = get_parsing_context()\n"
            "def result():\n    return [CONTEXT.dag_id, CONTEXT.task_id] == ['d', 't']\n"
        ),
        "reads the parsing context",
    ),
    "a random seed": (
        "random.seed(42)\nwanted = random.Random(42).random()\ndef result():\n    return random.random() == wanted\n",
        "draws or seeds random numbers",
    ),
    "a random number at import": (
        "token = uuid.uuid4().hex\ndef result():\n    return len(token) == 32\n",
        "draws random numbers from the system",
    ),
    "a variable read at import": (
        "word = Variable.get('word')\ndef result():\n    return word == 'current'\n",
        "control plane",
    ),
    "a signal handler at import": (
        (
            "import signal\nsignal.signal(signal.SIGUSR1, lambda *_: None)\n"
            "def result():\n    return signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL\n"
        ),
        "sets signal handlers",
    ),
}

# Common in real DAG files, and preserved by a fork.
HARMLESS = {
    "a module-level counter": "count = [0]\ndef result():\n    count[0] += 1\n    return count[0] == 1\n",
    "an environment variable set at import": "os.environ['MINE'] = '1'\ndef result():\n    return os.environ['MINE'] == '1'\n",
    "a file read from the snapshot": "TEXT = open(__file__).read()\ndef result():\n    return 'TEXT' in TEXT\n",
    "random numbers in the task": "def result():\n    return random.random()\n",
}


@contextmanager
def captured_events() -> Iterator[list[Any]]:
    """Capture the runner's log events."""
    capture = LogCapture()
    old = structlog.get_config()["processors"]
    structlog.configure(processors=[capture])
    try:
        yield capture.entries
    finally:
        structlog.configure(processors=old)


@pytest.mark.parametrize("name", HOSTILE)
def test_unsafe_file_is_parsed_per_task(world: World, name: str) -> None:
    """The reason is logged, and each task parses the file itself."""
    code, violation = HOSTILE[name]
    world.api.variables["word"] = "current"
    root = world.write(HEAD + code + TAIL)
    with captured_events() as events:
        first = world.do(world.run(root, "t"))
        second = world.do(world.run(root, "t"))
    unshared = [entry for entry in events if entry["event"] == "runner.file_not_shared"]
    assert [first.proxy.pushed(), second.proxy.pushed()] == [True, True], first.log
    assert len(unshared) == 1
    assert any(violation in each for each in unshared[0]["violations"]), unshared


@pytest.mark.parametrize("name", HARMLESS)
def test_a_harmless_file_is_shared(world: World, name: str) -> None:
    """Tasks start from the parsed file, each from the same state."""
    root = world.write(HEAD + HARMLESS[name] + TAIL)
    with captured_events() as events:
        pushed = [world.do(world.run(root, "t")).proxy.pushed() for _ in range(2)]
    assert [entry for entry in events if entry["event"] == "runner.file_not_shared"] == []
    assert all(pushed)


def test_tasks_draw_different_random_numbers(world: World) -> None:
    """The generator is seeded anew after the fork."""
    root = world.write(HEAD + "def result():\n    return [random.random(), uuid.uuid4().hex]\n" + TAIL)
    pushed = [world.do(world.run(root, "t")).proxy.pushed() for _ in range(3)]
    assert len({number for number, _ in pushed}) == 3
    assert len({word for _, word in pushed}) == 3


def test_changed_file_runs_as_changed(world: World) -> None:
    """Templates are per snapshot: old and new code run side by side."""
    old, new = (world.write(HEAD + f"def result():\n    return {number}\n" + TAIL) for number in (1, 2))
    pushed = [world.do(world.run(root, "t")).proxy.pushed() for root in (old, new, old)]
    assert pushed == [1, 2, 1]


def test_modules_of_snapshots_are_separate(world: World) -> None:
    """A helper module of the same name is each snapshot's own."""
    roots = []
    for word in ("one", "two"):
        root = world.write(
            HEAD + f"import shared_helper  # {word}\ndef result():\n    return shared_helper.WORD\n" + TAIL
        )
        (root / "shared_helper.py").write_text(f"WORD = '{word}'\n")
        roots.append(root)
    assert [world.do(world.run(root, "t")).proxy.pushed() for root in roots] == ["one", "two"]


def test_parser_crash_fails_own_tasks(world: World) -> None:
    """A crash at import is the task's crash, as it is under Airflow."""
    root = world.write(HEAD + "import ctypes\nctypes.string_at(0)\n" + TAIL)
    run = world.do(world.run(root, "t"))
    assert run.proxy.states == ["failed"]
    assert "SIGSEGV" in world.exit.detail


def test_a_task_may_opt_out(world: World) -> None:
    """``warm=False`` parses in the task: the module's state is of that very process."""
    root = world.write(HEAD + "PID = os.getpid()\ndef result():\n    return PID == os.getpid()\n" + TAIL)
    assert world.do(world.run(root, "t", warm=False)).proxy.pushed() is True
    assert world.do(world.run(root, "t", warm=True)).proxy.pushed() is False


@pytest.mark.parametrize(
    "settings", [{"parse_ttl_seconds": 0.0}, {"max_templates": 1}, {"template_memory_bytes": 1}]
)
def test_templates_are_bounded(tmp_path: Path, settings: dict[str, Any]) -> None:
    """By age, number and memory: of two files in turn none is served from the template that it had before."""
    world = World(tmp_path, **settings)
    try:
        roots = [
            world.write(HEAD + f"PID = os.getpid()  # {n}\ndef result():\n    return PID\n" + TAIL)
            for n in (1, 2)
        ]
        pids = [world.do(world.run(roots[n], "t")).proxy.pushed() for n in (0, 1, 0, 1)]
        # Two files in turn, four runs, four parses: each bound evicts the template before its file's next turn.
        assert len(set(pids)) == 4
    finally:
        world.close()


def test_templates_are_kept_while_they_fit(world: World) -> None:
    """The same file is parsed once."""
    root = world.write(HEAD + "PID = os.getpid()\ndef result():\n    return [PID]\n" + TAIL)
    assert len({world.do(world.run(root, "t")).proxy.pushed()[0] for _ in range(3)}) == 1


# Code that makes the reasons why it is not shared as long as one message may be, which is longer with the file's name.
LONG_REASONS = {
    "long paths": (
        "for n in range(10):\n"
        "    try:\n        open('/' + str(n) * 6483)\n"
        "    except OSError:\n        pass\n"
    ),
    "its own": (
        "from airbridge.edge_worker.runner.forking import fork_safety\n"
        "if fork_safety._watches:\n"
        "    fork_safety._watches[-1].violations[:] = [str(n) * 6535 for n in range(10)]\n"
    ),
}


@pytest.mark.parametrize("name", LONG_REASONS)
def test_long_reasons_end_no_other_task(world: World, name: str) -> None:
    """A file that is not shared for long reasons leaves the zygote, and so the tasks of other files, alone."""
    sleeper = world.write(HEAD + "def result():\n    time.sleep(3)\n    return 'slept'\n" + TAIL)
    long = world.write(HEAD + LONG_REASONS[name] + "def result():\n    return True\n" + TAIL)

    async def scenario() -> None:
        other = await world.spawn(sleeper, "t")
        zygote = world.runner.zygote_pid
        own = await world.run(long, "t")
        assert (await other.ended()).clean
        assert other.proxy.pushed() == "slept"
        assert own.proxy.pushed() is True
        assert world.runner.zygote_pid == zygote

    with captured_events() as events:
        world.do(asyncio.wait_for(scenario(), 60))
    [unshared] = [entry for entry in events if entry["event"] == "runner.file_not_shared"]
    assert [len(each) for each in unshared["violations"]] == [500] * 10


# Packets on the template's socket to the zygote, each of which msgspec refuses in another way.
FORGED = {
    "no UTF-8": r"b'\x81\xa4type\xa6\xffarsed'",
    "deeply nested": r"b'\x82\xa4type\xa6Parsed\xa4more' + b'\x91' * 60_000 + b'\xc0'",
}


@pytest.mark.parametrize("name", FORGED)
def test_forged_packet_ends_no_other_task(world: World, name: str) -> None:
    """A DAG file that writes any bytes to its template's socket leaves the zygote, and so the tasks of other files, alone."""
    sleeper = world.write(HEAD + "def result():\n    time.sleep(3)\n    return 'slept'\n" + TAIL)
    forging = f"""
PACKET = {FORGED[name]}
for entry in os.listdir("/proc/self/fd"):
    try:
        with socket.socket(fileno=os.dup(int(entry))) as held:
            # Only the template's channel to the zygote is of this type.
            if held.type == socket.SOCK_SEQPACKET:
                held.send(PACKET)
    except OSError:
        pass
def result():
    return "ran"
"""
    hostile = world.write(HEAD + forging + TAIL)

    async def scenario() -> None:
        other = await world.spawn(sleeper, "t")
        zygote = world.runner.zygote_pid
        own = await world.run(hostile, "t")
        assert own.proxy.pushed() == "ran"
        assert world.runner.zygote_pid == zygote
        assert (await other.ended()).clean
        assert other.proxy.pushed() == "slept"

    world.do(asyncio.wait_for(scenario(), 60))
