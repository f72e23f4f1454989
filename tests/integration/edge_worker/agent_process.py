"""A worker in a process of its own, to be killed: ``python -m tests.integration.edge_worker.agent_process CONFIG``.

Its queue and buckets are directories, so that they outlive it; its tasks act by their task id.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from pathlib import Path

from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.aws.queue import MemoryQueue, Outgoing
from airbridge.core.protocol import Versions
from airbridge.edge_worker.agent import Agent
from airbridge.edge_worker.gateway_client.join import join_method
from airbridge.edge_worker.settings import load
from airbridge.edge_worker.testing import FakeRunner, FakeSupervisor
from airbridge.edge_worker.wiring import WorkerComponents
from airbridge.edge_worker.work.queue import AsyncQueue


class DirectoryStore(MemoryStore):
    """A bucket that is a directory: read at the start, written through."""

    def __init__(self, root: Path) -> None:
        super().__init__(root.name)
        self._root = root
        for path in root.rglob("*"):
            if path.is_file():
                super().put(str(path.relative_to(root)), path.read_bytes())

    def put(self, key: str, data: bytes, *, if_match: str | None = None, if_absent: bool = False) -> str:
        etag = super().put(key, data, if_match=if_match, if_absent=if_absent)
        path = self._root / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return etag


def script(marks: Path, task: FakeSupervisor) -> None:
    """Leave a mark for every start; then sleep, push and succeed, or just sleep, by the task id."""
    task.start()
    task_id = task.spec.grant.ti["task_id"]
    with (marks / f"{task_id}.starts").open("a") as file:
        file.write(f"{task.spec.epoch}\n")
    if task_id.startswith("sleep"):
        while not (marks / f"{task_id}.go").exists():
            time.sleep(0.02)
    task.set_xcom("made", task_id)
    task.succeed()
    (marks / f"{task_id}.done").touch()
    if task_id.startswith("linger"):
        time.sleep(60)


async def main(config: dict[str, object]) -> int:
    settings = load(None, **config["settings"])  # type: ignore[arg-type]  # written by the test
    root = Path(str(config["root"]))
    queue = MemoryQueue()
    # Every start reads all messages again, as a queue redelivers what was not deleted.
    for n, path in enumerate(sorted((root / "queue").glob("*"))):
        queue.send([Outgoing(str(n), path.read_text())])
    parts = WorkerComponents(
        runner=FakeRunner(lambda task: script(root / "marks", task)),
        join=join_method(settings),
        versions=Versions(airbridge="0", airflow="3.0.4", task_sdk="1.0.4", python="3.11"),
        queue=lambda _: AsyncQueue(lambda: queue),
        store=lambda _, bucket: DirectoryStore(root / "buckets" / bucket),
        rng=random.Random(1),
    )
    agent = Agent(settings, parts)
    # SIGTERM, without the real command line's second signal.
    asyncio.get_running_loop().add_signal_handler(15, agent.drain)
    return int(await agent.run())


if __name__ == "__main__":
    sys.exit(asyncio.run(main(json.loads(Path(sys.argv[1]).read_text()))))
