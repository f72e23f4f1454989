"""A fleet that exists only in memory, with a clock of its own: a control plane and stacks, for tests."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from airbridge.ci.exceptions import ToolError
from airbridge.ci.release.pins import WorkerImages
from airbridge.ci.rollout.control_plane import Outcomes, RunningVersions, Slowdown, Worker
from airbridge.ci.rollout.pools import Pool


@dataclass(frozen=True)
class Behaviour:
    """Behaviour of workers of one image: boot time, whether they start, share of failing tasks, how long tasks take beside before."""

    boot_seconds: float = 20.0
    comes_up: bool = True
    beats_for_seconds: float | None = None
    tasks_per_minute: float = 6.0
    share_failed: float = 0.0
    slowdown: float = 1.0


@dataclass
class _Simulated:
    id: str
    region: str
    pool: str
    digest: str
    born: datetime
    draining: bool = False


@dataclass
class Fleet:
    """Workers by region. `behaviours` maps an image and region to a behaviour; `refusing` names stacks that cannot be applied."""

    regions: Mapping[str, str]
    behaviours: Mapping[tuple[str, str], Behaviour] = field(default_factory=dict)
    refusing: Collection[tuple[str, str]] = ()
    workers_per_region: int = 2
    #: Seconds between the starts of a pool's new workers: a group replaces its instances in turn.
    start_interval: float = 0.0
    #: Pools of every region, of which `idle` ones (pool, region) want no instance and have no worker.
    pool_names: tuple[str, ...] = ("default",)
    #: Derived images: the one that a pool names, and the digests in the regions' images at the beginning.
    pool_images: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, str] = field(default_factory=dict)
    idle: Collection[tuple[str, str]] = ()
    clock: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    deployed: list[tuple[str, str]] = field(default_factory=list)
    drained: list[str] = field(default_factory=list)
    #: Instances that idle pools were told to want, by name and region.
    wanted: dict[tuple[str, str], int] = field(default_factory=dict)
    _workers: list[_Simulated] = field(default_factory=list)
    _templates: dict[str, WorkerImages] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """The fleet as it was: every region on its image, for a day."""
        for region, digest in self.regions.items():
            self._templates[region] = WorkerImages(digest, self.derived)
            self._start(region, self.clock - timedelta(days=1))

    def now(self) -> datetime:
        """The fleet's own time."""
        return self.clock

    def sleep(self, seconds: float) -> None:
        """Let time pass."""
        self.clock += timedelta(seconds=seconds)

    def __call__(self, stack: str, images: WorkerImages) -> None:
        """Apply a stack: a region gets workers of those images beside those it has."""
        self.deployed.append((stack, images.worker))
        self.sleep(60)
        if (stack, images.worker) in self.refusing:
            raise ToolError(f"`cdktf deploy {stack}` ended with 1")
        region = stack.removeprefix("edge-")
        self._templates[region] = images
        if region in self.regions:
            self._start(region, self.clock)

    def pools(self, region: str) -> list[Pool]:
        """The pools of a region."""
        return [
            Pool(
                region,
                name,
                self.wanted.get((name, region), 0)
                if (name, region) in self.idle
                else self.workers_per_region,
                self._digest(region, name),
                self.pool_images.get(name),
            )
            for name in self.pool_names
        ]

    def want(self, pool: Pool, instances: int) -> None:
        """A pool without instances gets some; those that are not wanted any more go away."""
        self.wanted[pool.name, pool.region] = instances
        mine = [each for each in self._workers if (each.pool, each.region) == (pool.name, pool.region)]
        for each in mine[instances:]:
            self._workers.remove(each)
        for _ in range(instances - len(mine)):
            digest = self._digest(pool.region, pool.name)
            name = f"{pool.region}-{pool.name}-lent"
            self._workers.append(_Simulated(name, pool.region, pool.name, digest, self.clock))

    def workers(self) -> list[Worker]:
        """All that have enrolled."""
        return [
            self._row(worker)
            for worker in self._workers
            if self._enrolled(worker) <= self.clock and self._comes_up(worker)
        ]

    def drain(self, worker: str, comment: str) -> None:  # noqa: ARG002 - the real one's signature
        """The worker takes nothing more."""
        self.drained.append(worker)
        for simulated in self._workers:
            simulated.draining = simulated.draining or simulated.id == worker

    def outcomes(self, regions: Collection[str], since: datetime) -> Outcomes:
        """Return the tasks that the workers of these regions finished since then."""
        finished = failed = 0.0
        for worker in (
            worker for worker in self._workers if worker.region in regions and self._comes_up(worker)
        ):
            minutes = max(0.0, (self.clock - max(since, self._enrolled(worker))).total_seconds() / 60)
            behaviour = self._behaviour(worker)
            finished += minutes * behaviour.tasks_per_minute
            failed += minutes * behaviour.tasks_per_minute * behaviour.share_failed
        return Outcomes(finished=int(finished), failed=int(failed))

    def slowdown(self, regions: Collection[str], since: datetime) -> Slowdown:
        """Return how long tasks take on the workers of these regions that came since then."""
        came = [each for each in self._workers if each.region in regions and self._enrolled(each) >= since]
        runs = sum(
            max(0.0, (self.clock - self._enrolled(each)).total_seconds() / 60)
            * self._behaviour(each).tasks_per_minute
            for each in came
        )
        ratios = [self._behaviour(each).slowdown for each in came]
        return Slowdown(int(runs), max(ratios, default=1.0))

    def running(self, region: str) -> set[str]:
        """The images that take work in a region."""
        now = self.clock
        return {w.versions.image or "" for w in self.workers() if w.region == region and w.healthy(now, 60)}

    def _digest(self, region: str, pool: str) -> str:
        return self._templates[region].of_pool(self.pool_images.get(pool))

    def _start(self, region: str, at: datetime) -> None:
        """Start the workers of each pool that has none on the image of its template."""
        for pool in self.pool_names:
            wanted = (region, pool, self._digest(region, pool), False)
            works = any((w.region, w.pool, w.digest, w.draining) == wanted for w in self._workers)
            if (pool, region) in self.idle or works:
                continue
            for number in range(self.workers_per_region):
                name = f"{region}-{len(self._workers) + 1}"
                born = at + timedelta(seconds=number * self.start_interval)
                self._workers.append(_Simulated(name, region, pool, wanted[2], born))

    def _behaviour(self, worker: _Simulated) -> Behaviour:
        """An image's behaviour in a pool (`pool@region`), or else in the region."""
        in_region = self.behaviours.get((worker.region, worker.digest), Behaviour())
        return self.behaviours.get((f"{worker.pool}@{worker.region}", worker.digest), in_region)

    def _comes_up(self, worker: _Simulated) -> bool:
        return self._behaviour(worker).comes_up

    def _enrolled(self, worker: _Simulated) -> datetime:
        return worker.born + timedelta(seconds=self._behaviour(worker).boot_seconds)

    def _row(self, worker: _Simulated) -> Worker:
        enrolled, beats = self._enrolled(worker), self._behaviour(worker).beats_for_seconds
        last = self.clock if beats is None else min(self.clock, enrolled + timedelta(seconds=beats))
        return Worker(
            id=worker.id,
            region=worker.region,
            pool=worker.pool,
            state="draining" if worker.draining else "active",
            wanted="draining" if worker.draining else "active",
            versions=RunningVersions(image=worker.digest),
            enrolled_at=enrolled,
            last_heartbeat_at=last,
        )
