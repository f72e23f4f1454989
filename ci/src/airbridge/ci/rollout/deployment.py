"""Deployment: region by region, canary first; a wave that spends its error budget is rolled back, and the rest is not begun.

For each wave: apply its regions' stacks, wait until workers on the new digest are enrolled, healthy and have work or room for
it, drain the old ones, watch. The clock, the sleep and what deploys are handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from airbridge.ci.exceptions import CiError, RolloutFailed
from airbridge.ci.rollout.control_plane import ControlPlane, Worker
from airbridge.ci.rollout.plan import Step

CONTROL_PLANE_STACK = "control-plane"
SILENCE_SECONDS = 60.0


class Deploy(Protocol):
    """Applies one stack so that it runs the worker image of that digest."""

    def __call__(self, stack: str, worker_digest: str) -> None:
        """Return when the stack is applied; CiError if it could not be."""


@dataclass(frozen=True)
class WaveResult:
    """How one wave went."""

    regions: tuple[str, ...]
    outcome: str
    detail: str
    seconds: float


@dataclass
class Rollout:
    """One environment's move from `old` to `new`, both digests of the worker image."""

    control_plane: ControlPlane
    deploy: Deploy
    step: Step
    old: str
    new: str
    now: Callable[[], datetime]
    sleep: Callable[[float], None]
    say: Callable[[str], None]
    poll_seconds: float = 5.0
    results: list[WaveResult] = field(default_factory=list)

    def run(self, regions: Sequence[str], *, control_plane_first: bool = True) -> list[WaveResult]:
        """All waves in order; RolloutFailed after the first that was rolled back."""
        if control_plane_first:
            self.say(f"{CONTROL_PLANE_STACK}: deploying")
            self.deploy(CONTROL_PLANE_STACK, self.new)
        waves = self.step.waves_of(regions)
        for number, wave in enumerate(waves, start=1):
            self.say(f"wave {number} of {len(waves)}: {', '.join(wave)}")
            self._wave(wave)
        return self.results

    def _wave(self, wave: tuple[str, ...]) -> None:
        began = self.now()
        problem = self._attempt(wave, began)
        seconds = (self.now() - began).total_seconds()
        if problem is None:
            self.results.append(WaveResult(wave, "done", "all workers healthy on the new digest", seconds))
            return
        self.say(f"rolling back {', '.join(wave)}: {problem}")
        try:
            self._roll_back(wave)
        except CiError as error:
            problem = f"{problem}; and the way back failed too: {error}"
            self.results.append(WaveResult(wave, "stuck", problem, seconds))
            raise RolloutFailed(f"{', '.join(wave)}: {problem}") from error
        self.results.append(WaveResult(wave, "rolled back", problem, seconds))
        raise RolloutFailed(
            f"{', '.join(wave)}: {problem}; rolled back to {self.old}, later waves were not begun"
        )

    def _attempt(self, wave: tuple[str, ...], began: datetime) -> str | None:
        """Why the wave must be rolled back; None if it may stay."""
        try:
            for region in wave:
                self.deploy(f"edge-{region}", self.new)
        except CiError as error:
            return f"a stack could not be applied: {error}"
        if (problem := self._ready(wave, began)) is not None:
            return problem
        if self.old != self.new:
            self._drain(wave, self.old, "replaced by a new release")
        return self._watch(wave, began)

    def _ready(self, wave: Collection[str], began: datetime) -> str | None:
        deadline = began + timedelta(minutes=self.step.ready_minutes)
        while True:
            workers = self._in(wave)
            ready = {
                worker.region
                for worker in self._on(workers, self.new)
                if worker.healthy(self.now(), SILENCE_SECONDS)
            }
            if ready >= set(wave):
                return None
            if (problem := self._spent(wave, began)) is not None:
                return problem
            if self.now() >= deadline:
                missing = ", ".join(sorted(set(wave) - ready))
                return f"no healthy worker on {self.new} in {missing} after {self.step.ready_minutes:g} min"
            self.sleep(self.poll_seconds)

    def _watch(self, wave: Collection[str], began: datetime) -> str | None:
        until = self.now() + timedelta(minutes=self.step.watch_minutes)
        while True:
            if (problem := self._spent(wave, began)) is not None:
                return problem
            if self.now() >= until:
                return None
            self.sleep(self.poll_seconds)

    def _spent(self, wave: Collection[str], began: datetime) -> str | None:
        """Which part of the error budget is spent, if one is."""
        budget = self.step.error_budget
        mine = [
            worker
            for worker in self._on(self._in(wave), self.new)
            if worker.state not in ("draining", "stopping")
        ]
        sick = [worker.id for worker in mine if not worker.healthy(self.now(), SILENCE_SECONDS)]
        if mine and len(sick) / len(mine) > budget:
            return f"{len(sick)} of {len(mine)} new workers are unhealthy ({', '.join(sorted(sick)[:5])})"
        outcomes = self.control_plane.outcomes(wave, began)
        if outcomes.share_failed > budget:
            return f"{outcomes.failed} of {outcomes.finished} tasks failed since the wave began, the budget is {budget:.0%}"
        return None

    def _roll_back(self, wave: Sequence[str]) -> None:
        for region in wave:
            self.deploy(f"edge-{region}", self.old)
        self._drain(wave, self.new, "rolled back")

    def _drain(self, wave: Collection[str], digest: str, comment: str) -> None:
        for worker in self._on(self._in(wave), digest):
            if worker.alive(self.now(), SILENCE_SECONDS):
                self.say(f"draining {worker.id}")
                self.control_plane.drain(worker.id, comment)

    def _in(self, wave: Collection[str]) -> list[Worker]:
        return [worker for worker in self.control_plane.workers() if worker.region in wave]

    @staticmethod
    def _on(workers: Sequence[Worker], digest: str) -> list[Worker]:
        return [worker for worker in workers if worker.versions.image == digest]
