"""Twelve hours without a network: what ended meanwhile arrives, in order, once.

A real gateway with its certificates over a real Postgres, and a real agent with its journal. Three clocks go fast:
the worker's, which leaps ahead with every task that ends; the ledger's, whose rows are set back as far; and the
certificate, which lives for seconds, so that it really lapses in the cut and the worker has to enrol again.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from tests.integration.gateway.world import World, running
from tests.support import weather
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres
from tests.support.weather import Link, Network

from airbridge.edge_worker.agent import Agent
from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.join import join_method
from airbridge.edge_worker.parts import Parts
from airbridge.edge_worker.queue import AsyncQueue
from airbridge.edge_worker.settings import load
from airbridge.edge_worker.testing import FakeRunner, FakeSupervisor
from airbridge.executor import snapshot
from airbridge.executor.ledger.models import Outcome, RecordRow, WorkItemRow
from airbridge.executor.protocol import BundleRef, Versions
from airbridge.executor.queue import MemoryQueue, Outgoing
from airbridge.executor.store import MemoryStore

pytestmark = pytest.mark.filterwarnings("ignore:.*:pytest.PytestUnraisableExceptionWarning")

TASKS = 200
CUT = timedelta(hours=12)
CERTIFICATE_SECONDS = 4.0
REGION, WORKER = "eu-west-1", "far-away"


class LeapingClock(SystemClock):
    """The worker's clock for durations, put forward by hand."""

    def __init__(self) -> None:
        self.leapt = 0.0

    def elapsed(self) -> float:
        return super().elapsed() + self.leapt


@pytest.fixture
def world(postgres: Postgres, postgres_template: str, tmp_path: Path) -> Iterator[World]:
    name = postgres.create(postgres_template)
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(metadata, tmp_path, certificate_lifetime=CERTIFICATE_SECONDS) as it,
    ):
        yield it
    postgres.drop(name)


@pytest.fixture
def link(world: World) -> Iterator[Link]:
    with Network() as network:
        yield network.link(world.gateway.edge_port)


class Tasks:
    """What the 200 tasks do: wait for the cut, take their share of the twelve hours, push a value, succeed."""

    def __init__(self, clock: LeapingClock) -> None:
        self.clock = clock
        self.cut = threading.Event()
        self.ended: list[str] = []
        self._lock = threading.Lock()

    def __call__(self, task: FakeSupervisor) -> None:
        task.start()
        self.cut.wait(150)
        with self._lock:
            self.clock.leapt += CUT.total_seconds() / TASKS
            number = len(self.ended)
            assert task.set_xcom("number", number).status < 400
            task.succeed()
            self.ended.append(str(task.spec.grant.ti_id))


def parts(world: World, settings: Any, clock: LeapingClock, tasks: Tasks, envelopes: list[str]) -> Parts:
    queue, stores = MemoryQueue(), {name: MemoryStore(name) for name in ("eu-dags", "eu-logs")}
    for start in range(0, len(envelopes), 10):
        queue.send([Outgoing(str(n), text) for n, text in enumerate(envelopes[start : start + 10])])
    packed = bundle(world.directory)
    stores["eu-dags"].put(f"bundles/dags/{snapshot.hex_of(packed.version)}.tar.gz", packed.compressed())
    return Parts(
        runner=FakeRunner(tasks),
        join=join_method(settings),
        versions=Versions(airbridge="0.1.0", airflow="3.0.4", task_sdk="1.0.4", python="3.11.7"),
        queue=lambda _: AsyncQueue(lambda: queue),
        store=lambda _, bucket: stores[bucket],
        clock=clock,
        rng=random.Random(1),
    )


def bundle(directory: Path) -> Any:
    source = directory / "dags"
    source.mkdir(exist_ok=True)
    (source / "dag.py").write_text("print('a DAG')\n")
    return snapshot.pack(source)


def place(world: World) -> list[str]:
    """200 queued tasks, patient enough for a day; their ids."""
    ids = world.items(TASKS)
    version = bundle(world.directory).version
    with world.metadata.session() as session:
        for row in session.scalars(select(WorkItemRow)):
            row.workload = {**row.workload, "bundle": {"name": "dags", "version": version}}
            row.disconnect = {**row.disconnect, "lost_after": 86_400.0}
        session.commit()
    return ids


def set_back(world: World) -> None:
    """Let twelve hours pass in the ledger: everything in it happened twelve hours earlier."""
    columns = ("claimed_at", "renewed_at", "lease_until", "lost_at")
    moved = ", ".join(f"{name} = {name} - interval '{CUT.total_seconds():.0f} seconds'" for name in columns)
    with world.metadata.session() as session:
        session.execute(text(f"UPDATE airbridge_work_item SET {moved} WHERE state = 'claimed'"))
        session.commit()


async def until(condition: Any, what: str, seconds: float = 150.0) -> None:
    deadline = time.monotonic() + seconds
    while not await asyncio.to_thread(condition):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.05)


@pytest.mark.timeout(600)
def test_two_hundred_results_of_a_twelve_hour_cut(world: World, link: Link, tmp_path: Path) -> None:
    """200 tasks end in a cut of twelve hours: 200 results are committed, each task's writes in order, each of them once."""
    clock = LeapingClock()
    tasks = Tasks(clock)
    ids = place(world)
    token = tmp_path / "join.token"
    token.write_text(world.join_token(REGION, ttl=timedelta(days=1), uses=None))
    settings = load(
        None,
        gateway_url=f"https://127.0.0.1:{link.port}",
        ca_file=_ca_file(world, tmp_path),
        region=REGION,
        name=WORKER,
        state_dir=tmp_path / "state",
        join_token_file=token,
        slots=20,
        prefetch=TASKS,
        heartbeat_seconds=0.5,
        poll_seconds=0,
        retry_base_seconds=0.05,
        retry_cap_seconds=0.5,
        cut_off_after_seconds=0.5,
        request_timeout_seconds=5.0,
        min_free_mib=1,
        reserve_mib=1,
    )
    version = bundle(world.directory).version
    envelopes = [world.envelope(item, bundle=BundleRef(name="dags", version=version)) for item in ids]

    def states(wanted: str) -> int:
        with world.metadata.session() as session:
            return sum(row.state == wanted for row in session.scalars(select(WorkItemRow)))

    async def scenario() -> None:
        agent = Agent(settings, parts(world, settings, clock, tasks, envelopes))
        working = asyncio.create_task(agent.run())
        await until(lambda: states("claimed") == TASKS, "all to be claimed")
        link.set(weather.REFUSE)
        began = datetime.now(UTC)
        tasks.cut.set()
        await until(lambda: len(tasks.ended) == TASKS, "all to end in the cut")
        assert states("settled") == 0
        left = CERTIFICATE_SECONDS - (datetime.now(UTC) - began).total_seconds()
        await asyncio.sleep(max(0.0, left) + 0.5)
        await asyncio.to_thread(set_back, world)
        link.set(weather.FAIR)
        await until(lambda: states("settled") == TASKS, "all to be reported")
        agent.drain()
        await asyncio.wait_for(working, 60)

    asyncio.run(scenario())
    assert clock.leapt == pytest.approx(CUT.total_seconds())
    _check(world, tasks.ended)


def _check(world: World, ended: list[str]) -> None:
    from airflow.models.taskinstance import TaskInstance
    from airflow.models.xcom import XComModel

    with world.metadata.session() as session:
        rows = {row.ti_id: row for row in session.scalars(select(WorkItemRow))}
        assert {Outcome.SUCCESS: TASKS} == _counted(row.outcome for row in rows.values())
        assert {1: TASKS} == _counted(row.epoch for row in rows.values())
        states = {str(ti.id): ti.state for ti in session.scalars(select(TaskInstance))}
        assert {"success": TASKS} == _counted(states.values())
        values = session.execute(
            select(XComModel.task_id, XComModel.value).where(XComModel.key == "number")
        ).all()
        numbers = {
            task_id: json.loads(value) if isinstance(value, str) else value for task_id, value in values
        }
        order = {rows[ti_id].task_id: number for number, ti_id in enumerate(ended)}
        assert numbers == order
        for ti_id in ended:
            records = session.scalars(
                select(RecordRow).where(RecordRow.item_id == rows[ti_id].id).order_by(RecordRow.seq)
            ).all()
            assert [1, 2] == [record.seq for record in records]
            assert all(record.status < 300 for record in records)
    assert world.events("worker.enrolled")[-1].worker_id == WORKER
    assert len(world.events("worker.enrolled")) >= 2


def _counted(values: Any) -> dict[Any, int]:
    found: dict[Any, int] = {}
    for value in values:
        found[value] = found.get(value, 0) + 1
    return found


def _ca_file(world: World, directory: Path) -> Path:
    path = directory / "ca.crt"
    path.write_text(world.ca.certificate_pem)
    return path
