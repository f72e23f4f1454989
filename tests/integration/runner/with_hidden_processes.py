"""A worker without privileges on a host whose /proc has hidepid: ``python -m tests.integration.runner.with_hidden_processes``.

Started as root; see test_hidden_processes.py.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.integration.runner.world import World

from airbridge.core.sandbox import hardening
from airbridge.edge_worker.ops import health

UID = 10001

DAG = """
import os
from datetime import datetime
from pathlib import Path
from airflow.sdk import DAG, task

with DAG("d", schedule=None, start_date=datetime(2025, 1, 1)):
    @task
    def t():
        return [os.getuid(), Path(f"/proc/{os.getppid()}/stat").exists()]
    t()
"""


def main() -> None:
    """Print as JSON the status that root reads, and what the task found warm and cold."""
    with tempfile.TemporaryDirectory(prefix="airbridge-", dir="/var/tmp") as name:
        folder = Path(name)
        os.chown(folder, UID, UID)
        found = {"status": _status_for_root(folder), "tasks": _as_worker(folder)}
    json.dump(found, sys.stdout)


def _status_for_root(folder: Path) -> Any:
    ready, served = os.pipe()
    server = os.fork()
    if server == 0:
        _become_worker()
        asyncio.run(_serve_status(folder / "agent.sock", served))
    os.read(ready, 1)
    try:
        return health.read_status(folder / "agent.sock")
    finally:
        os.kill(server, 9)
        os.waitpid(server, 0)


async def _serve_status(path: Path, served: int) -> None:
    await health.StatusServer(path, lambda: {"worker": "edge-7"}).start()
    os.write(served, b"!")
    await asyncio.Event().wait()


def _as_worker(folder: Path) -> list[Any]:
    read, write = os.pipe()
    worker = os.fork()
    if worker == 0:
        _become_worker()
        world = World(folder)
        root = world.write(DAG)
        pushed = [world.do(world.run(root, "t", warm=warm)).proxy.pushed() for warm in (True, False)]
        world.close()
        os.write(write, json.dumps(pushed).encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        answer = pipe.read()
    os.waitpid(worker, 0)
    tasks: list[Any] = json.loads(answer)
    return tasks


def _become_worker() -> None:
    os.setgroups([])
    os.setresgid(UID, UID, UID)
    os.setresuid(UID, UID, UID)
    hardening.harden()


if __name__ == "__main__":
    main()
