"""kill -9 of the agent's process at any point, then a restart."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.integration.edge_worker.conftest import World
from tests.integration.edge_worker.control_plane import Item
from tests.integration.edge_worker.cut import LinkState

ROOT = Path(__file__).parents[3]


@dataclass
class Process:
    """The agent's process, its queue and its buckets on disk."""

    world: World
    overrides: dict[str, Any] = field(default_factory=dict)
    child: subprocess.Popen[bytes] | None = None
    _began: int = 0

    def __post_init__(self) -> None:
        self.root = self.world.directory / "host"
        for name in ("queue", "marks", "buckets/dags", "buckets/logs"):
            (self.root / name).mkdir(parents=True)
        self.marks = self.root / "marks"
        self.ref = self.world.publish()
        store = self.world.bucket("dags")
        for info in store.list(""):
            path = self.root / "buckets/dags" / info.key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(store.get(info.key).data)

    def submit(self, task_id: str, **kwargs: Any) -> Item:
        item, envelope = self.world.control_plane.place(self.ref, task_id=task_id, **kwargs)
        (self.root / "queue" / task_id).write_text(envelope)
        return item

    def start(self) -> None:
        settings = json.loads(self.world.settings(**self.overrides).model_dump_json())
        config = self.root / "config.json"
        config.write_text(json.dumps({"root": str(self.root), "settings": settings}))
        log = (self.root / "agent.log").open("ab")
        self._began = log.tell()
        with log:
            self.child = subprocess.Popen(
                [sys.executable, "-m", "tests.integration.edge_worker.agent_process", str(config)],
                cwd=ROOT,
                stdout=log,
                stderr=log,
                env={**os.environ, "PYTHONPATH": str(ROOT)},
            )

    def kill(self) -> None:
        assert self.child is not None
        self.child.send_signal(signal.SIGKILL)
        self.child.wait(10)

    def stop(self) -> int:
        assert self.child is not None
        until(lambda: "poller.started" in self.log[self._began :])
        self.child.terminate()
        return self.child.wait(30)

    def starts(self, task_id: str) -> int:
        path = self.marks / f"{task_id}.starts"
        return len(path.read_text().splitlines()) if path.exists() else 0

    @property
    def log(self) -> str:
        return (self.root / "agent.log").read_text()


@pytest.fixture
def process(world: World) -> Any:
    host = Process(world)
    yield host
    if host.child is not None and host.child.poll() is None:
        host.kill()


def until(condition: Callable[[], Any], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def test_killed_during_a_task(process: Process) -> None:
    """After a restart the interrupted task is reported failed at once, for retry, and does not run again."""
    item = process.submit("sleep", should_retry=True)
    process.start()
    until(lambda: process.starts("sleep") == 1)
    process.kill()
    assert item.states == []
    process.start()
    until(lambda: item.state == "settled")
    assert item.states == ["up_for_retry"]
    assert process.stop() == 0
    assert process.starts("sleep") == 1


def test_killed_with_results_to_report(process: Process) -> None:
    """A result journalled during a cut survives kill -9, and is committed once after the restart."""
    item = process.submit("sleep")
    process.start()
    until(lambda: process.starts("sleep") == 1)
    process.world.cut.set(LinkState.REFUSE)
    (process.marks / "sleep.go").touch()
    until((process.marks / "sleep.done").exists)
    process.kill()
    process.world.cut.set(LinkState.UP)
    process.start()
    until(lambda: item.state == "settled")
    assert item.states == ["success"]
    assert item.xcoms == {"made": "sleep"}
    assert process.stop() == 0
    assert process.starts("sleep") == 1


def test_killed_after_the_result_was_committed(process: Process) -> None:
    """A task whose success is committed stays a success, whatever its supervisor was still doing."""
    item = process.submit("linger")
    process.start()
    until(lambda: item.state == "settled")
    process.kill()
    process.start()
    until(lambda: process.log.count("poller.started") == 2)
    time.sleep(0.5)
    assert process.stop() == 0
    assert item.states == ["success"]
    assert process.starts("linger") == 1


def test_killed_with_unstarted_task(process: Process) -> None:
    """A claimed task that waited for a slot starts after the restart."""
    process.overrides = {"slots": 1, "prefetch": 1}
    first, second = process.submit("sleep-1"), process.submit("sleep-2")
    process.start()
    until(lambda: first.state == second.state == "claimed")
    until(lambda: process.starts("sleep-1") + process.starts("sleep-2") == 1)
    time.sleep(0.3)
    process.kill()
    for name in ("sleep-1", "sleep-2"):
        (process.marks / f"{name}.go").touch()
    process.start()
    until(lambda: first.state == second.state == "settled")
    # The one that ran was interrupted by the kill; which of the two that is, the queue decides.
    assert sorted([*first.states, *second.states]) == ["failed", "success"]
    assert process.stop() == 0
    assert process.starts("sleep-1") == process.starts("sleep-2") == 1


def test_killed_and_restarted_offline(process: Process) -> None:
    """Without the gateway a restarted worker starts what it had claimed, and reports everything once there is a link."""
    process.overrides = {"slots": 1, "prefetch": 1}
    first, second = process.submit("sleep-1"), process.submit("sleep-2")
    process.start()
    until(lambda: first.state == second.state == "claimed")
    until(lambda: process.starts("sleep-1") + process.starts("sleep-2") == 1)
    time.sleep(0.3)
    process.kill()
    process.world.cut.set(LinkState.REFUSE)
    for name in ("sleep-1", "sleep-2"):
        (process.marks / f"{name}.go").touch()
    process.start()
    until(lambda: process.starts("sleep-1") == process.starts("sleep-2") == 1)
    until(lambda: len([*process.marks.glob("*.done")]) == 1)
    process.world.cut.set(LinkState.UP)
    until(lambda: first.state == second.state == "settled")
    assert sorted([*first.states, *second.states]) == ["failed", "success"]


def test_killed_again_and_again(process: Process) -> None:
    """Kills at random moments: every task ends in one committed state, and none succeeds without having run."""
    items = {f"quick-{n}": process.submit(f"quick-{n}") for n in range(30)}
    # About the time that the process needs to start and claim: kills come before, during and after the first tasks.
    for pause in (0.9, 1.1, 1.0, 1.3):
        process.start()
        time.sleep(pause)
        process.kill()
    process.start()
    until(lambda: all(item.state == "settled" for item in items.values()), 40)
    assert process.stop() == 0
    for task_id, item in items.items():
        assert len(item.states) == 1
        assert item.states == ["failed"] or (process.starts(task_id) == 1 and item.xcoms == {"made": task_id})


def test_interrupted_log_is_shipped(process: Process) -> None:
    """The restarted worker ships the whole log of an interrupted task, with a line about the interruption."""
    item = process.submit("sleep")
    process.start()
    until(lambda: process.starts("sleep") == 1)
    process.kill()
    process.start()
    found = process.root / "buckets/logs"
    until(lambda: [*found.rglob("full.log")])
    until(lambda: item.state == "settled")
    [log] = found.rglob("full.log")
    assert "The worker stopped while this task ran" in log.read_text()


def test_no_secret_on_the_disk(process: Process) -> None:
    """No file of the state directory holds the identity's private key, a certificate or a token; the rejoin key, no credential by itself, is its owner's alone."""
    item = process.submit("quick")
    process.start()
    until(lambda: item.state == "settled")
    state = process.world.settings().state_dir
    for path in state.rglob("*"):
        if path == process.world.settings().rejoin_key_file:
            assert path.stat().st_mode & 0o777 == 0o600
        elif path.is_file():
            content = path.read_bytes()
            assert b"PRIVATE KEY" not in content
            assert b"BEGIN CERTIFICATE" not in content
            assert b"join-me" not in content
    assert process.stop() == 0
