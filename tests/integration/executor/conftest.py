"""An executor over a real database, with in-memory queues in place of SQS."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from tests.support.airflow_home import Metadata
from tests.support.scheduler import Hand, Scheduler
from tests.unit.executor.catalogues import catalogue

from airbridge.core.aws.queue import MemoryQueue
from airbridge.core.backoff import Backoff
from airbridge.core.regions import Pool, Region
from airbridge.core.signing import Signer
from airbridge.executor import _airflow, plain_tracebacks
from airbridge.executor.dispatch.outbox import Outbox
from airbridge.executor.dispatch.scaling import Scaling
from airbridge.executor.executor import Components, EdgeExecutor
from airbridge.executor.placement.placement import Placement
from airbridge.executor.placement.workloads import Workloads
from airbridge.executor.scheduling.listener import NotificationListener
from airbridge.executor.scheduling.reconciler import Reconciler
from airbridge.executor.scheduling.throttle import SleepsUntilNotified, Throttle
from airbridge.executor.settings import Settings

OPTIONS = {
    "regions_file": "/nowhere/regions.toml",
    "secrets_dir": "/nowhere/secrets",
    "outbox_interval": "0.05",
    "outbox_backoff_base": "0.01",
    "outbox_backoff_limit": "0.1",
    "reconcile_interval": "0.05",
}


class Queues(defaultdict[tuple[str, str], MemoryQueue]):
    """The queue of each pool, created on first access."""

    def __init__(self) -> None:
        super().__init__(MemoryQueue)

    def of(self, region: Region, pool: Pool) -> MemoryQueue:
        return self[region.name, pool.name]


def silent_listener(owner_job_id: int) -> NotificationListener:
    """A listener that is never notified: nothing listens, and an idle scheduler sleeps as Airflow has it."""
    return NotificationListener(
        owner_job_id=owner_job_id,
        connect=lambda: None,
        replace_sleep=lambda _sleep: lambda: None,
        backoff=Backoff(0.01, 0.1, lambda: 0.5),
    )


class StillExecutor(EdgeExecutor):
    """An executor whose loops do not run by themselves: a test turns them."""

    settings: Settings
    queues: Queues

    def start(self) -> None:
        plain_tracebacks.install()
        signer = Signer.generate()
        listener = silent_listener(int(self.job_id or 0))
        outbox = Outbox(
            catalogue().regions,
            settings=self.settings,
            signer=signer,
            new_session=_airflow.new_session,
            queue_of=self.queues.of,
            random=lambda: 0.5,
        )
        self._components = Components(
            workloads=Workloads(Placement(catalogue(), self.settings)),
            outbox=outbox,
            reconciler=Reconciler(
                settings=self.settings,
                owner_job_id=int(self.job_id or 0),
                new_session=_airflow.new_session,
                heartbeat_timeout=300.0,
            ),
            scaling=Scaling({}),
            listener=listener,
            throttle=Throttle(listener, outbox.full, batch=128),
            worker_alive_seconds=self.settings.worker_alive_seconds,
        )

    @property
    def reconciler(self) -> Reconciler:
        return self._started.reconciler

    @property
    def outbox(self) -> Outbox:
        return self._started.outbox

    def turn_outbox(self, region: str) -> None:
        self.outbox._regions[region].turn()

    def throttle_with(self, listener: SleepsUntilNotified) -> None:
        throttle = Throttle(listener, self.outbox.full, batch=128)
        self._components = replace(self._started, throttle=throttle)


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
        # Before `start`, which Airflow calls without arguments.
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
