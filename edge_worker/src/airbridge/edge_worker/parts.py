"""What an agent is made of that differs between a real one and one under test."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from airbridge.edge_worker.clock import Clock, SystemClock
from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.join import Join, join_method
from airbridge.edge_worker.queue import AsyncQueue, regional_queue
from airbridge.edge_worker.region import StoreMaker
from airbridge.edge_worker.runner.settings import RunnerSettings
from airbridge.edge_worker.runner.user import TaskUser
from airbridge.edge_worker.runner.warm import WarmRunner
from airbridge.edge_worker.settings import MIB, TaskWalls, WorkerSettings, environment
from airbridge.edge_worker.task import Runner
from airbridge.edge_worker.versions import installed
from airbridge.executor import landlock
from airbridge.executor.protocol import RegionSettings, Versions
from airbridge.executor.store import ObjectStore, connect


def regional_store(region: RegionSettings, bucket: str) -> ObjectStore:
    """Return a bucket of the worker's region."""
    return connect(region.region, bucket, endpoint_url=region.endpoint_url)


@dataclass(frozen=True)
class Parts:
    """Clock, randomness, transport and the runner, handed in."""

    runner: Runner
    join: Join
    versions: Versions
    queue: Callable[[RegionSettings], AsyncQueue] = regional_queue
    store: StoreMaker = regional_store
    clock: Clock = field(default_factory=SystemClock)
    rng: random.Random = field(default_factory=random.SystemRandom)


def real_parts(settings: WorkerSettings) -> Parts:
    """Return the parts of a worker that does real work."""
    return Parts(
        runner=WarmRunner(runner_settings(settings)),
        join=join_method(settings),
        versions=installed(settings.image_digest),
    )


def runner_settings(settings: WorkerSettings) -> RunnerSettings:
    """Return what the runner needs of the worker's settings. Raises `SettingsError`."""
    return RunnerSettings(
        airflow_home=settings.airflow_home,
        worker_name=settings.name,
        task_env=settings.task_env,
        agent_env=environment(),
        max_templates=settings.max_templates,
        template_memory_bytes=settings.template_memory_mib * MIB,
        parse_ttl_seconds=settings.parse_ttl_seconds,
        kill_grace_seconds=settings.task_kill_grace_seconds,
        hidden=settings.hidden_from_tasks,
        landlock=_walls_wanted(settings),
        task_user=TaskUser.named(settings.task_user) if settings.task_user else None,
    )


def _walls_wanted(settings: WorkerSettings) -> bool:
    if settings.task_walls is TaskWalls.REQUIRE and not landlock.abi():
        raise SettingsError(
            "task_walls is 'require', but this kernel offers no Landlock (Linux 5.13 with landlock in CONFIG_LSM or "
            "lsm=, and a seccomp profile that lets its system calls through); 'auto' runs tasks without it"
        )
    return settings.task_walls is not TaskWalls.OFF
