"""An executor over a real database, with in-memory queues in place of SQS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from tests.support.airflow_home import Metadata
from tests.support.scheduler import Hand, Scheduler
from tests.unit.executor.catalogues import catalogue

from airbridge.executor import _airflow
from airbridge.executor.backoff import Backoff
from airbridge.executor.bell import Bell
from airbridge.executor.executor import EdgeExecutor, Machinery
from airbridge.executor.intake import Intake
from airbridge.executor.keeper import Keeper
from airbridge.executor.outbox import Outbox
from airbridge.executor.pace import Pace, Rests
from airbridge.executor.placement import Placement
from airbridge.executor.queue import MemoryQueue
from airbridge.executor.regions import Pool, Region
from airbridge.executor.scaling import Scaling
from airbridge.executor.settings import Settings
from airbridge.executor.signing import Signer

OPTIONS = {
    "regions_file": "/nowhere/regions.toml",
    "secrets_dir": "/nowhere/secrets",
    "outbox_interval": "0.05",
    "outbox_backoff_base": "0.01",
    "outbox_backoff_limit": "0.1",
    "keeper_interval": "0.05",
}


class Queues(defaultdict[tuple[str, str], MemoryQueue]):
    """The queue of each pool, made when first asked for."""

    def __init__(self) -> None:
        super().__init__(MemoryQueue)

    def of(self, region: Region, pool: Pool) -> MemoryQueue:
        return self[region.name, pool.name]


def still_bell(owner_job_id: int) -> Bell:
    """A bell that is never rung: nothing listens, and an idle scheduler sleeps as Airflow has it."""
    return Bell(
        owner_job_id=owner_job_id,
        connect=lambda: None,
        idle_with=lambda _sleep: lambda: None,
        backoff=Backoff(0.01, 0.1, lambda: 0.5),
    )


class StillExecutor(EdgeExecutor):
    """An executor whose loops do not run by themselves: a test turns them."""

    settings: Settings
    queues: Queues

    def start(self) -> None:
        signer = Signer.generate()
        bell = still_bell(int(self.job_id or 0))
        outbox = Outbox(
            catalogue().regions,
            settings=self.settings,
            signer=signer,
            new_session=_airflow.new_session,
            queue_of=self.queues.of,
            random=lambda: 0.5,
        )
        self._machinery = Machinery(
            intake=Intake(Placement(catalogue(), self.settings)),
            outbox=outbox,
            keeper=Keeper(
                settings=self.settings,
                owner_job_id=int(self.job_id or 0),
                new_session=_airflow.new_session,
                heartbeat_timeout=300.0,
            ),
            scaling=Scaling({}),
            bell=bell,
            pace=Pace(bell, outbox.full, batch=128),
        )

    @property
    def keeper(self) -> Keeper:
        return self._started.keeper

    @property
    def outbox(self) -> Outbox:
        return self._started.outbox

    def turn_outbox(self, region: str) -> None:
        self.outbox._loops[region].turn()

    def pace_with(self, bell: Rests) -> None:
        pace = Pace(bell, self.outbox.full, batch=128)
        self._machinery = replace(self._started, pace=pace)


@pytest.fixture
def settings() -> Settings:
    return Settings.read(OPTIONS.get)


@pytest.fixture
def queues() -> Queues:
    return Queues()


@pytest.fixture
def hand(metadata: Metadata) -> Hand:
    return Hand(metadata)


@pytest.fixture
def new_scheduler(
    metadata: Metadata, settings: Settings, queues: Queues
) -> Iterator[Callable[[], Scheduler]]:
    """Starts schedulers, each with an executor of its own, over the same database and queues."""
    started: list[Scheduler] = []

    def start() -> Scheduler:
        executor = StillExecutor(parallelism=100)
        executor.settings, executor.queues = settings, queues
        scheduler = Scheduler(metadata, executor)
        executor.start()
        started.append(scheduler)
        return scheduler

    yield start
    for scheduler in started:
        scheduler.executor.end()


@pytest.fixture
def scheduler(new_scheduler: Callable[[], Scheduler]) -> Scheduler:
    return new_scheduler()
