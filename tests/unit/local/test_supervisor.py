"""The supervisor: order, restarts, giving up, stopping. With a clock and children that are not real."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from airbridge.control_plane.local.exceptions import StartFailed
from airbridge.control_plane.local.process.component import Component
from airbridge.control_plane.local.process.supervisor import (
    FIRST_BACKOFF_SECONDS,
    LONGEST_BACKOFF_SECONDS,
    STEADY_SECONDS,
    TRIES_BEFORE_FIRST_READY,
    Supervisor,
)
from airbridge.control_plane.local.state import Phase


@dataclass
class FakeClock:
    now: float = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@dataclass
class FakeChild:
    pid: int
    status: int | None = None
    ends_on: int | None = signal.SIGTERM
    signals: list[int] = field(default_factory=list)
    group_killed: bool = False

    def poll(self) -> int | None:
        return self.status

    def send(self, number: int) -> None:
        self.signals.append(number)
        if number == self.ends_on:
            self.status = -number

    def kill_group(self) -> None:
        self.group_killed = True
        if self.status is None:
            self.status = -signal.SIGKILL


class World:
    """A supervisor over fake processes; a component is ready when its name is in `ready`."""

    def __init__(self, *components: Component) -> None:
        self.clock = FakeClock()
        self.children: dict[str, list[FakeChild]] = {}
        self.supervisor = Supervisor(components, self.spawn, self.clock)

    def spawn(self, component: Component) -> FakeChild:
        child = FakeChild(pid=100 + sum(map(len, self.children.values())))
        self.children.setdefault(component.name, []).append(child)
        return child

    def last(self, name: str) -> FakeChild:
        return self.children[name][-1]

    def phases(self) -> dict[str, Phase]:
        return {state.name: state.phase for state in self.supervisor.states()}


def component(name: str, ready: set[str] | None = None, **more: Any) -> Component:
    probe: Callable[[object], bool] = (lambda _at: name in ready) if ready is not None else (lambda _at: True)
    return Component(name=name, argv=("true",), env={}, log=Path(f"/nowhere/{name}.log"), ready=probe, **more)


def test_component_waits_for_dependencies() -> None:
    """A component is started in the tick after the one it comes after is ready, and not before."""
    ready: set[str] = set()
    world = World(component("first", ready), component("second", ready, after=("first",)))
    world.supervisor.tick()
    assert world.phases() == {"first": Phase.STARTING, "second": Phase.WAITING}
    ready.add("first")
    world.supervisor.tick()
    assert world.phases() == {"first": Phase.READY, "second": Phase.STARTING}
    assert not world.supervisor.ready


def test_once_component_ends_with_zero() -> None:
    """A one-off step satisfies those that wait for it by ending with 0, and is not started again."""
    world = World(component("step", once=True), component("next", after=("step",)))
    world.supervisor.tick()
    world.last("step").status = 0
    world.supervisor.tick()
    world.supervisor.tick()
    assert world.phases() == {"step": Phase.DONE, "next": Phase.READY}
    assert len(world.children["step"]) == 1
    assert world.supervisor.ready


def test_dead_component_restarts_after_backoff() -> None:
    """One that dies after it was ready comes back, counted, and what it left in its group is killed."""
    world = World(component("gateway"))
    world.supervisor.tick()
    world.supervisor.tick()
    died = world.last("gateway")
    died.status = -signal.SIGKILL
    world.supervisor.tick()
    assert world.phases() == {"gateway": Phase.BACKOFF}
    assert died.group_killed
    world.clock.now += FIRST_BACKOFF_SECONDS
    world.supervisor.tick()
    world.supervisor.tick()
    state = world.supervisor.states()[0]
    assert (state.phase, state.restarts, state.pid) == (Phase.READY, 1, world.last("gateway").pid)


def test_backoff_doubles_and_resets() -> None:
    """Deaths in a row are answered with longer pauses, never longer than the limit."""
    world = World(component("gateway"))
    world.supervisor.tick()
    world.supervisor.tick()
    pauses = []
    for _ in range(8):
        world.last("gateway").status = 1
        world.supervisor.tick()
        died_at = world.clock.now
        while world.phases()["gateway"] is Phase.BACKOFF:
            world.clock.now += 0.25
            world.supervisor.tick()
        pauses.append(world.clock.now - died_at)
        world.supervisor.tick()
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0, 15.0]
    assert max(pauses) == LONGEST_BACKOFF_SECONDS
    world.clock.now += STEADY_SECONDS + 1
    world.last("gateway").status = 1
    world.supervisor.tick()
    world.clock.now += FIRST_BACKOFF_SECONDS
    world.supervisor.tick()
    assert world.phases() == {"gateway": Phase.STARTING}


def test_repeated_early_deaths_fail_start() -> None:
    """A component that dies again and again before its first readiness fails the start, with its log named."""
    world = World(component("gateway", set()))
    world.supervisor.tick()
    for _ in range(TRIES_BEFORE_FIRST_READY - 1):
        world.last("gateway").status = -signal.SIGSEGV
        world.supervisor.tick()
        world.clock.now += LONGEST_BACKOFF_SECONDS
        world.supervisor.tick()
    world.last("gateway").status = -signal.SIGSEGV
    with pytest.raises(
        StartFailed, match=r"gateway ended 3 times .* by SIGSEGV; its log is /nowhere/gateway.log"
    ):
        world.supervisor.tick()


def test_slow_start_fails() -> None:
    """A component that runs but never becomes ready fails the start after its time."""
    world = World(component("gateway", set(), ready_seconds=20.0))
    world.supervisor.tick()
    world.clock.now = 19.0
    world.supervisor.tick()
    world.clock.now = 21.0
    with pytest.raises(StartFailed, match="gateway is not ready after 21 s"):
        world.supervisor.tick()


def test_tick_reports_changes_only() -> None:
    """The second tick over a ready component reports nothing."""
    world = World(component("aws"))
    assert [state.phase for state in world.supervisor.tick()] == [Phase.STARTING]
    assert [state.phase for state in world.supervisor.tick()] == [Phase.READY]
    assert world.supervisor.tick() == []


def test_stages_are_stopped_in_order() -> None:
    """Every process of a stage has ended before the next stage is stopped."""
    world = World(component("postgres", stop_stage=2), component("worker", stop_stage=0))
    world.supervisor.tick()
    stopped: list[str] = []
    world.supervisor.stop(lambda state: stopped.append(state.name))
    assert stopped == ["worker", "postgres"]
    assert world.phases() == {"postgres": Phase.STOPPED, "worker": Phase.STOPPED}


def test_unresponsive_process_is_killed() -> None:
    """A process that ignores its signal is killed with its group when its grace is over."""
    world = World(component("worker", grace_seconds=5.0))
    world.supervisor.tick()
    child = world.last("worker")
    child.ends_on = None
    world.supervisor.stop()
    assert child.signals == [signal.SIGTERM]
    assert child.group_killed
    assert 5.0 <= world.clock.now < 6.0
