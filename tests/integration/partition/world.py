"""Everything but the task itself, for real: Airflow's scheduler, the executor, the ledger, the gateway and workers.

Between each worker and the gateway is a link that can be cut. Tasks are Python functions. Time is compressed: the
defaults of `lost_after`, heartbeat and lease, and the scheduler's own heartbeat timeout (300 s), pass 300 times as fast.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sqlalchemy import select
from tests.integration.edge_worker.conftest import FAST, until
from tests.integration.edge_worker.cut import Cut
from tests.integration.executor.conftest import StillExecutor, silent_listener
from tests.integration.gateway import world as gateway_world
from tests.integration.gateway.world import CATALOGUE, VERSIONS
from tests.support.airflow_home import Metadata
from tests.support.scheduler import BUNDLE, Hand, Scheduler, start_run, store_dag

from airbridge.core.aws.object_store import MemoryStore
from airbridge.core.aws.queue import WorkQueue
from airbridge.core.code import snapshot
from airbridge.core.code.signature import PUBLISH_KEY
from airbridge.edge_worker.agent import Agent
from airbridge.edge_worker.gateway_client.join import join_method
from airbridge.edge_worker.settings import WorkerSettings, load
from airbridge.edge_worker.testing import FakeRunner, FakeSupervisor, Script
from airbridge.edge_worker.wiring import WorkerComponents
from airbridge.edge_worker.work.queue import AsyncQueue
from airbridge.executor import _airflow
from airbridge.executor.bundles import versions
from airbridge.executor.bundles.registry import read_signer
from airbridge.executor.dispatch.outbox import Outbox
from airbridge.executor.dispatch.scaling import Scaling
from airbridge.executor.executor import Components
from airbridge.executor.ledger.models import EventRow, WorkItemRow
from airbridge.executor.placement.placement import Placement
from airbridge.executor.placement.workloads import Workloads
from airbridge.executor.scheduling.reconciler import Reconciler
from airbridge.executor.scheduling.throttle import Throttle
from airbridge.executor.settings import Settings

REGION = "us-east-1"
SCALE = 300
AS_SHIPPED = Settings(regions_file=Path("unread.toml"), secrets_dir=Path("unread"))
LOST_AFTER = AS_SHIPPED.lost_after / SCALE
HEARTBEAT = AS_SHIPPED.heartbeat_interval / SCALE
SCHEDULERS_PATIENCE = 300.0 / SCALE
DEFAULTS = replace(
    AS_SHIPPED,
    lost_after=LOST_AFTER,
    heartbeat_interval=HEARTBEAT,
    lease_seconds=AS_SHIPPED.lease_seconds / SCALE,
    outbox_interval=0.05,
    outbox_backoff_base=0.01,
    outbox_backoff_limit=0.1,
    reconcile_interval=0.05,
)


class HomeExecutor(StillExecutor):
    """An executor whose outbox sends by itself, over the gateway's catalogue, signing with the gateway's key."""

    world: World

    def start(self) -> None:
        world = self.world
        outbox = Outbox(
            CATALOGUE.regions,
            settings=world.settings,
            signer=world.gateway.signer,
            new_session=_airflow.new_session,
            queue_of=lambda region, pool: world.queue,
            random=random.random,
        )
        reconciler = Reconciler(
            settings=world.settings,
            owner_job_id=int(self.job_id or 0),
            new_session=_airflow.new_session,
            heartbeat_timeout=SCHEDULERS_PATIENCE,
        )
        workloads = Workloads(Placement(CATALOGUE, world.settings))
        listener = silent_listener(int(self.job_id or 0))
        self._components = Components(
            workloads=workloads,
            outbox=outbox,
            reconciler=reconciler,
            scaling=Scaling({}),
            listener=listener,
            throttle=Throttle(listener, outbox.full, batch=128),
            worker_alive_seconds=world.settings.worker_alive_seconds,
        )
        outbox.start()


@dataclass
class World:
    """The control plane, and what is needed to start workers."""

    metadata: Metadata
    directory: Path
    settings: Settings
    gateway: gateway_world.World
    queue: WorkQueue
    buckets: dict[str, MemoryStore] = field(default_factory=dict)
    cuts: dict[str, Cut] = field(default_factory=dict)
    runs: list[tuple[str, str, int]] = field(default_factory=list)
    """(worker, task id, epoch) of every start of user code."""

    def __post_init__(self) -> None:
        self.hand = Hand(self.metadata)
        self._token = self.directory / "join.token"
        # Without a limit: workers of one test join repeatedly.
        self._token.write_text(self.gateway.join_token(REGION, uses=None))
        executor = HomeExecutor(parallelism=100)
        executor.world = self
        self.scheduler = Scheduler(self.metadata, executor)
        self.scheduler.runner._task_instance_heartbeat_timeout_secs = SCHEDULERS_PATIENCE
        executor.start()

    def bucket(self, name: str) -> MemoryStore:
        return self.buckets.setdefault(name, MemoryStore(name))

    # --- work ------------------------------------------------------------------------------------

    def submit(self, **configs: Mapping[str, Any]) -> None:
        """Run a DAG of one task for each keyword: its id, and its arguments."""
        from airflow.providers.standard.operators.empty import EmptyOperator
        from airflow.sdk import DAG
        from airflow.utils import timezone

        packed = snapshot.pack(self._dags())
        key = f"bundles/{BUNDLE}/{snapshot.hex_of(packed.version)}.tar.gz"
        self.bucket("us-dags").put(key, packed.compressed())
        self.sign(packed.version)
        with DAG(
            "cut", schedule=None, start_date=timezone.datetime(2026, 1, 1), max_active_tasks=1000
        ) as dag:
            for task_id, arguments in configs.items():
                # Airflow skips empty operators that have no callback.
                EmptyOperator(task_id=task_id, on_success_callback=lambda context: None, **arguments)
        dag.relative_fileloc = "dag.py"
        store_dag(self.metadata, dag, version=packed.version)
        start_run(self.metadata, dag)

    def sign(self, version: str) -> None:
        """Sign a version as the publisher of this gateway's deployment does: workers run nothing else."""
        signer = read_signer(self.gateway.directory / "secrets" / PUBLISH_KEY)
        with self.metadata.session() as session:
            versions.sign(session, BUNDLE, version, "tests", signer.sign(BUNDLE, version, "tests"))
            session.commit()

    def _dags(self) -> Path:
        source = self.directory / "dags"
        source.mkdir(exist_ok=True)
        (source / "dag.py").write_text("print('hello')\n")
        return source

    async def turn(self) -> None:
        """Run one round of the control plane: schedule, reconcile, purge tasks without a heartbeat."""

        def work() -> None:
            self.scheduler.loop()
            self.scheduler.executor.reconciler.turn()
            self.scheduler.runner._find_and_purge_task_instances_without_heartbeats()

        await asyncio.to_thread(work)

    async def turn_until(self, condition: Callable[[], Any], seconds: float = 60.0) -> None:
        """Run rounds of the control plane until the condition holds. Raises `TimeoutError` with the state of work and tasks."""
        try:
            async with asyncio.timeout(seconds):
                while not condition():
                    await self.turn()
                    await asyncio.sleep(0.02)
        except TimeoutError as error:
            raise TimeoutError(f"after {seconds:g} s: {self._how_things_stand()}") from error

    def _how_things_stand(self) -> str:
        rows = [f"{row.task_id} is {row.state}, epoch {row.epoch}, {row.detail!r}" for row in self.rows()]
        return f"work items {rows}, task instances {self.hand.task_states()}, runs {self.runs}"

    # --- workers ---------------------------------------------------------------------------------

    def worker_settings(self, name: str, **overrides: Any) -> WorkerSettings:
        cut = self.cuts.setdefault(name, Cut(self.gateway.gateway.edge_port))
        ca_file = self.directory / "ca.crt"
        ca_file.write_text(self.gateway.ca.certificate_pem)
        values = {
            **FAST,
            "gateway_url": cut.url,
            "ca_file": ca_file,
            "region": REGION,
            "name": name,
            "state_dir": self.directory / name,
            "join_token_file": self._token,
            "poll_seconds": 1,
            **overrides,
        }
        return load(None, **values)

    def agent(
        self,
        name: str,
        script: Script,
        *,
        kind: type[Agent] = Agent,
        queue: WorkQueue | None = None,
        **overrides: Any,
    ) -> Agent:
        settings = self.worker_settings(name, **overrides)

        def noted(task: FakeSupervisor) -> None:
            grant = task.spec.grant
            self.runs.append((name, str(grant.ti["task_id"]), grant.epoch))
            script(task)

        parts = WorkerComponents(
            runner=FakeRunner(noted),
            join=join_method(settings),
            versions=VERSIONS,
            queue=lambda _: AsyncQueue(lambda: queue or self.queue),
            store=lambda _, bucket: self.bucket(bucket),
            rng=random.Random(name),
        )
        return kind(settings, parts)

    @asynccontextmanager
    async def workers(self, *names: str, script: Script, **overrides: Any) -> AsyncIterator[list[Agent]]:
        """Running workers, drained at the end of the block, with the links restored."""
        async with AsyncExitStack() as stack:
            yield [
                await stack.enter_async_context(self._worker(self.agent(name, script, **overrides)))
                for name in names
            ]

    @asynccontextmanager
    async def _worker(self, agent: Agent) -> AsyncIterator[Agent]:
        running = asyncio.create_task(agent.run())
        try:
            await until(lambda: (agent.ready and agent.status()["enrolled"]) or running.done(), 30)
            yield agent
        finally:
            agent.drain()
            await asyncio.wait_for(running, 60)

    # --- what became of it -----------------------------------------------------------------------

    def rows(self, task_id: str | None = None) -> list[WorkItemRow]:
        return [row for row in self.hand.rows() if task_id in {None, row.task_id}]

    def state(self, task_id: str) -> str | None:
        return self.hand.task_states().get(task_id)

    def events(self, event: str) -> list[dict[str, Any]]:
        with self.metadata.session() as session:
            query = select(EventRow).where(EventRow.event == event).order_by(EventRow.id)
            return [{"worker": row.worker_id, **row.detail} for row in session.scalars(query)]

    def xcoms(self, task_id: str, key: str = "return_value") -> list[Any]:
        from airflow.models.xcom import XComModel

        with self.metadata.session() as session:
            query = select(XComModel.value).where(XComModel.task_id == task_id, XComModel.key == key)
            return list(session.scalars(query))

    def log_of(self, task_id: str) -> str:
        """All that was shipped of a task's logs."""
        store = self.bucket("us-logs")
        keys = [info.key for info in store.list("logs/") if f"task_id={task_id}/" in info.key]
        return "".join(store.get(key).data.decode() for key in keys)


@contextmanager
def running(metadata: Metadata, directory: Path, queue: WorkQueue, **changes: Any) -> Iterator[World]:
    """The control plane, with these settings changed."""
    settings = replace(DEFAULTS, **changes)
    with gateway_world.running(
        metadata,
        directory,
        heartbeat_interval=settings.heartbeat_interval,
        lease_seconds=settings.lease_seconds,
    ) as gateway:
        world = World(metadata, directory, settings, gateway, queue)
        try:
            yield world
        finally:
            world.scheduler.executor.end()
            for cut in world.cuts.values():
                cut.stop()
            gateway.close_workers()
