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

from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.aws.queue import MemoryQueue, Outgoing
from airbridge.core.code import snapshot
from airbridge.core.code.signature import PUBLISH_KEY
from airbridge.core.protocol import BundleRef, Versions
from airbridge.edge_worker.agent import Agent
from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.gateway_client.join import join_method
from airbridge.edge_worker.settings import load
from airbridge.edge_worker.testing import FakeRunner, FakeSupervisor
from airbridge.edge_worker.wiring import WorkerComponents
from airbridge.edge_worker.work.queue import AsyncQueue
from airbridge.executor.bundles import versions
from airbridge.executor.bundles.registry import read_signer
from airbridge.executor.ledger.models import Outcome, RecordRow, WorkItemRow

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
    """The 200 tasks: each waits for the cut, takes its share of the twelve hours, pushes a value, and succeeds."""

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


def parts(
    world: World, settings: Any, clock: LeapingClock, tasks: Tasks, envelopes: list[str]
) -> WorkerComponents:
    queue, stores = MemoryQueue(), {name: MemoryStore(name) for name in ("eu-dags", "eu-logs")}
    for start in range(0, len(envelopes), 10):
        queue.send([Outgoing(str(n), text) for n, text in enumerate(envelopes[start : start + 10])])
    packed = bundle(world.directory)
    stores["eu-dags"].put(f"bundles/dags/{snapshot.hex_of(packed.version)}.tar.gz", packed.compressed())
    return WorkerComponents(
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
    """Queue 200 tasks whose `lost_after` is a day; return their items."""
    ids = world.items(TASKS)
    version = bundle(world.directory).version
    signer = read_signer(world.directory / "secrets" / PUBLISH_KEY)
    with world.metadata.session() as session:
        versions.sign(session, "dags", version, "tests", signer.sign("dags", version, "tests"))
        session.commit()
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
def test_twelve_hour_cut_loses_nothing(world: World, link: Link, tmp_path: Path) -> None:
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
        # All 200 are claimed before the cut, and 20 of them run at a time.
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
        # The ledger has the claim before the worker has its grant: a cut in between would lose the answer.
        await until(lambda: len(agent.status().get("tasks", [])) == TASKS, "all to be granted")
        assert states("claimed") == TASKS
        link.set(weather.REFUSE)
        began = datetime.now(UTC)
        tasks.cut.set()
        await until(lambda: len(tasks.ended) == TASKS, "all to end in the cut")
        assert states("settled") == 0
        # Until the certificate has expired, so that the worker must enrol again.
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
