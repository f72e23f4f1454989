"""A worker against a control plane in miniature: real TLS, real journal, real files; tasks are Python functions."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.integration.edge_worker.control_plane import ControlPlane, Item
from tests.integration.edge_worker.cut import Cut

from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.aws.queue import MemoryQueue, Outgoing
from airbridge.core.code import snapshot
from airbridge.core.protocol import BundleRef, RegionSettings, Versions
from airbridge.edge_worker.agent import Agent, ExitCode
from airbridge.edge_worker.gateway_client.join import join_method
from airbridge.edge_worker.settings import WorkerSettings, load
from airbridge.edge_worker.testing import FakeRunner, Script
from airbridge.edge_worker.wiring import WorkerComponents
from airbridge.edge_worker.work.queue import AsyncQueue

VERSIONS = Versions(airbridge="0", airflow="3.0.4", task_sdk="1.0.4", python="3.11")
# Defaults are seconds to minutes; these make a cut of half a second a long one.
FAST = {
    "heartbeat_seconds": 0.1,
    "poll_seconds": 1,
    "retry_base_seconds": 0.02,
    "retry_cap_seconds": 0.2,
    "cut_off_after_seconds": 0.4,
    "request_timeout_seconds": 2.0,
    "linger_seconds": 0.05,
    "cancel_grace_seconds": 1.0,
    "drain_flush_seconds": 5.0,
    "log_chunk_seconds": 0.1,
    "min_free_mib": 1,
    "reserve_mib": 1,
    "slots": 4,
}


@dataclass
class World:
    """Everything around a worker, and the worker itself while it runs."""

    directory: Path
    control_plane: ControlPlane
    cut: Cut
    queue: MemoryQueue = field(default_factory=MemoryQueue)
    dead_letters: MemoryQueue = field(default_factory=MemoryQueue)
    buckets: dict[str, MemoryStore] = field(default_factory=dict)
    agent: Agent | None = None
    make_runner: Callable[[Script], FakeRunner] = FakeRunner

    def settings(self, **overrides: Any) -> WorkerSettings:
        """Settings of a fast worker."""
        token = self.directory / "join.token"
        token.write_text("join-me\n")
        values = {
            "gateway_url": self.cut.url,
            "ca_file": self.control_plane.ca_file,
            "region": "eu-west-1",
            "name": "worker-1",
            "state_dir": self.directory / "state",
            "join_token_file": token,
            **FAST,
            **overrides,
        }
        return load(None, **values)

    def bucket(self, name: str) -> MemoryStore:
        """A bucket of the region."""
        return self.buckets.setdefault(name, MemoryStore(name))

    def publish(self, code: str = "print('hello')\n") -> BundleRef:
        """Put DAG code into the region's bucket."""
        source = self.directory / "dags"
        source.mkdir(exist_ok=True)
        (source / "dag.py").write_text(code)
        packed = snapshot.pack(source)
        key = f"bundles/main/{snapshot.hex_of(packed.version)}.tar.gz"
        self.bucket("dags").put(key, packed.compressed())
        return BundleRef(name="main", version=packed.version)

    def submit(self, **kwargs: Any) -> Item:
        """Place a task and send its message."""
        item, envelope = self.control_plane.place(self.publish(), **kwargs)
        self.queue.send([Outgoing("1", envelope)])
        return item

    def parts(self, script: Script) -> WorkerComponents:
        """A worker's parts, with tasks that run `script`."""
        return WorkerComponents(
            runner=self.make_runner(script),
            join=join_method(self.settings()),
            versions=VERSIONS,
            queue=lambda _: AsyncQueue(lambda: self.queue),
            store=lambda _, bucket: self.bucket(bucket),
            rng=random.Random(1),
        )

    @asynccontextmanager
    async def worker(self, script: Script, **overrides: Any) -> AsyncIterator[Agent]:
        """A running worker, drained at the end of the block."""
        agent = self.agent = Agent(self.settings(**overrides), self.parts(script))
        running = asyncio.create_task(agent.run())
        try:
            await until(lambda: agent.ready or running.done())
            yield agent
        finally:
            agent.drain()
            self.exit_code = await asyncio.wait_for(running, 30)

    exit_code: ExitCode | None = None

    def log_of(self, item: Item, name: str = "full.log") -> str | None:
        """The task's log in the bucket."""
        store = self.bucket("logs")
        keys = [
            info.key
            for info in store.list("logs/")
            if str(item.item_id) in info.key and info.key.endswith(name)
        ]
        return store.get(keys[0]).data.decode() if keys else None


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    region = RegionSettings(
        region="eu-west-1", pool="default", queue_url="memory", log_bucket="logs", bundle_bucket="dags"
    )
    control_plane = ControlPlane(tmp_path, region=region)
    control_plane.start()
    cut = Cut(control_plane.port)
    try:
        yield World(tmp_path, control_plane, cut)
    finally:
        cut.stop()
        control_plane.stop()


async def until(condition: Callable[[], Any], seconds: float = 10.0) -> None:
    """Wait for a condition. Raises `TimeoutError`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)
