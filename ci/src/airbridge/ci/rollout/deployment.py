"""Deployment: region by region, canary first; a wave that spends its error budget is rolled back, and the rest is not begun.

For each wave: apply its regions' stacks, wait until every pool is ready, drain old workers as new ones take their place, watch. The
clock, the sleep and what deploys are handed in.

A pool is ready with a healthy worker on the new digest. A pool that wants no instance gets one for its wave, and gives it back; without
canary capacity it is ready without one if its launch template names the new digest and no worker on another takes work: its next
instance runs the new release, and nothing runs the old one.

A pool keeps as many workers that take work as it wants instances (as it had before, where that cannot be read): an old worker is told
to drain when there is one more than that. It stays in its group, idle, until the group replaces it, so that orders ahead of the
replacements would leave the pool without capacity.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from typing import Protocol

from airbridge.ci.exceptions import CiError, RolloutFailed
from airbridge.ci.release.pins import WorkerImages
from airbridge.ci.rollout.control_plane import ControlPlane, Worker
from airbridge.ci.rollout.plan import Step
from airbridge.ci.rollout.pools import Pool, Pools, Want

CONTROL_PLANE_STACK = "control-plane"
#: In order: the control plane reads the foundation's outputs.
HOME_STACKS = ("foundation", CONTROL_PLANE_STACK)
SILENCE_SECONDS = 60.0
#: Runs from which on their median duration is judged.
LEAST_RUNS = 20


class ControlPlaneTurn(Enum):
    """Moment at which a rollout applies the control plane's stack, and the foundation's before it."""

    FIRST = "first"
    LAST = "last"
    NEVER = "never"


class Deploy(Protocol):
    """Applies one stack so that it runs those worker images."""

    def __call__(self, stack: str, images: WorkerImages) -> None:
        """Return when the stack is applied; CiError if it could not be."""


@dataclass(frozen=True)
class WaveResult:
    """Result of one wave."""

    regions: tuple[str, ...]
    outcome: str
    detail: str
    seconds: float


@dataclass
class Rollout:
    """One environment's move from the worker images `old` to `new`."""

    control_plane: ControlPlane
    deploy: Deploy
    step: Step
    old: WorkerImages
    new: WorkerImages
    now: Callable[[], datetime]
    sleep: Callable[[float], None]
    report: Callable[[str], None]
    #: Reader of the pools; without one, a region is ready with one healthy worker.
    pools: Pools | None = None
    #: What sets a pool's capacity; without it, no pool gets any.
    want: Want | None = None
    poll_seconds: float = 5.0
    results: list[WaveResult] = field(default_factory=list)
    #: Pools that have an instance for their wave alone.
    _lent: list[Pool] = field(default_factory=list)
    #: Workers that took work when the wave began, by region and pool.
    _before: Counter[tuple[str, str]] = field(default_factory=Counter)
    #: Old workers that still take work.
    _remaining: int = 0

    def run(
        self, regions: Sequence[str], control_plane: ControlPlaneTurn = ControlPlaneTurn.FIRST
    ) -> list[WaveResult]:
        """All waves in order; RolloutFailed after the first that was rolled back."""
        if control_plane is ControlPlaneTurn.FIRST:
            self._control_plane()
        waves = self.step.waves_of(regions)
        for number, wave in enumerate(waves, start=1):
            self.report(f"wave {number} of {len(waves)}: {', '.join(wave)}")
            self._wave(wave)
        if control_plane is ControlPlaneTurn.LAST:
            self._control_plane()
        return self.results

    def _control_plane(self) -> None:
        for stack in HOME_STACKS:
            self.report(f"{stack}: deploying")
            self.deploy(stack, self.new)

    def _wave(self, wave: tuple[str, ...]) -> None:
        began = self.now()
        self._before = Counter((worker.region, worker.pool) for worker in self._at_work(wave))
        problem = self._attempt(wave, began)
        self._give_back()
        seconds = (self.now() - began).total_seconds()
        if problem is None:
            self.results.append(WaveResult(wave, "done", self._detail(), seconds))
            return
        self.report(f"rolling back {', '.join(wave)}: {problem}")
        try:
            self._roll_back(wave)
        except CiError as error:
            problem = f"{problem}; and the way back failed too: {error}"
            self.results.append(WaveResult(wave, "stuck", problem, seconds))
            raise RolloutFailed(f"{', '.join(wave)}: {problem}") from error
        self.results.append(WaveResult(wave, "rolled back", problem, seconds))
        raise RolloutFailed(
            f"{', '.join(wave)}: {problem}; rolled back to {self.old.worker}, later waves were not begun"
        )

    def _detail(self) -> str:
        if not self._remaining:
            return "all workers healthy on the new digest"
        return f"{self._remaining} workers on the old digest take work until their groups have replaced them"

    def _attempt(self, wave: tuple[str, ...], began: datetime) -> str | None:
        """Return the reason to roll the wave back; None if there is none."""
        try:
            for region in wave:
                self.deploy(f"edge-{region}", self.new)
        except CiError as error:
            return f"a stack could not be applied: {error}"
        try:
            self._lend(wave)
            return self._follow(wave, began)
        except CiError as error:
            return f"the wave could not be followed: {error}"

    def _lend(self, wave: Collection[str]) -> None:
        """Give every pool of the wave that wants no instance one: its release is tried before there is work."""
        if self.pools is None or self.want is None or not self.step.canary_capacity:
            return
        for pool in (pool for region in wave for pool in self.pools(region) if pool.wanted == 0):
            self.report(f"{pool.label}: idle; one instance for this wave")
            self.want(pool, 1)
            self._lent.append(pool)

    def _give_back(self) -> None:
        """Take the instances back, but of a pool that has grown meanwhile: its work needs them."""
        lent, self._lent = self._lent, []
        for pool in lent:
            try:
                self._take_back(pool)
            except CiError as error:
                # The pool's own scaling takes an idle instance away as well.
                self.report(f"{pool.label}: {error}")

    def _take_back(self, pool: Pool) -> None:
        now = {each.name: each.wanted for each in self.pools(pool.region)} if self.pools else {}
        if self.want is not None and now.get(pool.name) == 1:
            self.want(pool, 0)
            self.report(f"{pool.label}: its instance is given back")

    def _follow(self, wave: tuple[str, ...], began: datetime) -> str | None:
        """Wait for the wave, replace the old workers and watch; return the reason to roll back."""
        if (problem := self._ready(wave, began)) is not None:
            return problem
        return self._watch(wave, began)

    def _ready(self, wave: Collection[str], began: datetime) -> str | None:
        # From here on, not from the wave's beginning: its stacks are applied one after the other.
        deadline = self.now() + self._patience
        while True:
            missing = self._missing(wave)
            if not missing:
                self._report_idle(wave)
                return None
            if (problem := self._spent(wave, began)) is not None:
                return problem
            if self.now() >= deadline:
                names = ", ".join(missing)
                return (
                    f"no healthy worker on {self.new.worker} in {names} after {self.step.ready_minutes:g} min"
                )
            self.sleep(self.poll_seconds)

    def _missing(self, wave: Collection[str]) -> list[str]:
        """Return the pools that are not ready; regions, where the pools cannot be read."""
        workers = self._in(wave)
        ready = {
            (worker.region, worker.pool, worker.versions.image)
            for worker in self._on(workers, self.new.digests)
            if worker.healthy(self.now(), SILENCE_SECONDS)
        }
        if self.pools is None:
            return sorted(set(wave) - {region for region, _, _ in ready})
        return [
            f"{pool.label} ({pool.image})" if pool.image else pool.label
            for region in wave
            for pool in self.pools(region)
            if (region, pool.name, self.new.of_pool(pool.image)) not in ready
            and not self._idle(pool, workers)
        ]

    def _idle(self, pool: Pool, workers: Sequence[Worker]) -> bool:
        """Return whether a pool wants no instance, would start the new digest, and has no other at work."""
        at_work = any(
            worker.healthy(self.now(), SILENCE_SECONDS)
            for worker in workers
            if (worker.region, worker.pool) == (pool.region, pool.name)
        )
        return pool.wanted == 0 and pool.digest == self.new.of_pool(pool.image) and not at_work

    def _report_idle(self, wave: Collection[str]) -> None:
        for pool in (pool for region in wave for pool in (self.pools(region) if self.pools else ())):
            if pool.wanted == 0:
                self.report(
                    f"{pool.label}: idle; its next instance runs {self.new.of_pool(pool.image)[:19]}…"
                )

    @property
    def _patience(self) -> timedelta:
        return timedelta(minutes=self.step.ready_minutes)

    def _watch(self, wave: Collection[str], began: datetime) -> str | None:
        """Watch until the time is over and the old workers are replaced; return the reason to roll back.

        Groups that replace no more for `ready_minutes` (a long drain, a checkpoint) are left to it: that is no fault of the release.
        """
        until = self.now() + timedelta(minutes=self.step.watch_minutes)
        remaining, changed = -1, self.now()
        while True:
            if (problem := self._spent(wave, began)) is not None:
                return problem
            self._remaining = self._replace(wave)
            if self._remaining != remaining:
                remaining, changed = self._remaining, self.now()
            settled = remaining == 0 or self.now() - changed >= self._patience
            if self.now() >= until and settled:
                return None
            self.sleep(self.poll_seconds)

    def _replace(self, wave: Collection[str]) -> int:
        """Tell old workers to drain whose places are taken; return how many go on taking work."""
        at_work = self._at_work(wave)
        leaving = self._on(at_work, self.old.digests - self.new.digests)
        if not leaving:
            return 0
        kept = self._kept(wave)
        spare = Counter((worker.region, worker.pool) for worker in at_work) - kept
        remaining = 0
        # Idle workers first: their places are free at once.
        for worker in sorted(leaving, key=lambda each: (each.slots_used, each.id)):
            place = (worker.region, worker.pool)
            if spare[place] > 0:
                spare[place] -= 1
                self._order(worker, "replaced by a new release")
            else:
                remaining += 1
        return remaining

    def _kept(self, wave: Collection[str]) -> Counter[tuple[str, str]]:
        """Return how many workers that take work each pool needs."""
        if self.pools is None:
            return self._before
        return Counter({(region, pool.name): pool.wanted for region in wave for pool in self.pools(region)})

    def _spent(self, wave: Collection[str], began: datetime) -> str | None:
        """Return the exceeded part of the error budget, if any."""
        budget = self.step.error_budget
        mine = [
            worker
            for worker in self._on(self._in(wave), self.new.digests)
            if worker.state not in ("draining", "stopping")
        ]
        sick = [worker.id for worker in mine if not worker.healthy(self.now(), SILENCE_SECONDS)]
        if mine and len(sick) / len(mine) > budget:
            return f"{len(sick)} of {len(mine)} new workers are unhealthy ({', '.join(sorted(sick)[:5])})"
        outcomes = self.control_plane.outcomes(wave, began)
        if outcomes.share_failed > budget:
            return f"{outcomes.failed} of {outcomes.finished} tasks failed since the wave began, the budget is {budget:.0%}"
        return self._slow(wave, began)

    def _slow(self, wave: Collection[str], began: datetime) -> str | None:
        """Return how much longer tasks take than before, if that is too much."""
        found = self.control_plane.slowdown(wave, began)
        if found.runs < LEAST_RUNS or found.ratio <= self.step.slowdown:
            return None
        return (
            f"tasks take {found.ratio:.1f} times as long as before the wave (median of {found.runs} runs), "
            f"{self.step.slowdown:g} times is allowed"
        )

    def _roll_back(self, wave: Sequence[str]) -> None:
        for region in wave:
            self.deploy(f"edge-{region}", self.old)
        self._drain(wave, self.new.digests - self.old.digests, "rolled back")

    def _drain(self, wave: Collection[str], digests: Collection[str], comment: str) -> None:
        for worker in self._on(self._in(wave), digests):
            if worker.alive(self.now(), SILENCE_SECONDS):
                self._order(worker, comment)

    def _order(self, worker: Worker, comment: str) -> None:
        self.report(f"draining {worker.id}")
        self.control_plane.drain(worker.id, comment)

    def _at_work(self, wave: Collection[str]) -> list[Worker]:
        return [worker for worker in self._in(wave) if worker.healthy(self.now(), SILENCE_SECONDS)]

    def _in(self, wave: Collection[str]) -> list[Worker]:
        return [worker for worker in self.control_plane.workers() if worker.region in wave]

    @staticmethod
    def _on(workers: Sequence[Worker], digests: Collection[str]) -> list[Worker]:
        return [worker for worker in workers if worker.versions.image in digests]
