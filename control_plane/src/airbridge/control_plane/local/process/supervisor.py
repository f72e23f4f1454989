"""Supervisor of the platform's processes: start in dependency order, restart with backoff, ordered stop.

It has no thread and no clock: `tick` advances every component once and returns those that changed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

import structlog

from airbridge.control_plane.local.exceptions import StartFailed
from airbridge.control_plane.local.process.child import Child, Spawn
from airbridge.control_plane.local.process.component import Component
from airbridge.control_plane.local.state import ComponentState, Phase

FIRST_BACKOFF_SECONDS = 0.5
LONGEST_BACKOFF_SECONDS = 15.0
# A component that ran this long before it died restarts without a growing backoff.
STEADY_SECONDS = 30.0
TRIES_BEFORE_FIRST_READY = 3
_TAIL_BYTES = 16 * 1024
# Seconds until a killed process must be gone.
KILL_SECONDS = 5.0

log = structlog.get_logger(__name__)


class Clock(Protocol):
    """Monotonic clock with a sleep."""

    def monotonic(self) -> float:
        """Return seconds since some fixed point."""

    def sleep(self, seconds: float) -> None:
        """Sleep."""


@dataclass
class _Slot:
    """State of one component."""

    component: Component
    phase: Phase = Phase.WAITING
    child: Child | None = None
    started: float = 0.0
    started_at: datetime | None = None
    retry: float = 0.0
    failures: int = 0
    restarts: int = 0
    was_ready: bool = False
    seconds_to_ready: float | None = None

    @property
    def satisfied(self) -> bool:
        """True if components that wait for this one may start."""
        return self.phase in (Phase.READY, Phase.DONE)

    def state(self) -> ComponentState:
        return ComponentState(
            name=self.component.name,
            phase=self.phase,
            pid=self.child.pid if self.child and self.phase in (Phase.STARTING, Phase.READY) else None,
            url=self.component.url,
            log=str(self.component.log),
            restarts=self.restarts,
            seconds_to_ready=self.seconds_to_ready,
        )


class Supervisor:
    """Supervisor of the components of one platform."""

    def __init__(self, components: Sequence[Component], spawn: Spawn, clock: Clock) -> None:
        self._slots = {component.name: _Slot(component) for component in components}
        self._spawn = spawn
        self._clock = clock

    @property
    def ready(self) -> bool:
        """True if every component is ready now."""
        return all(slot.satisfied for slot in self._slots.values())

    def states(self) -> tuple[ComponentState, ...]:
        """Return the current state of every component."""
        return tuple(slot.state() for slot in self._slots.values())

    def tick(self) -> list[ComponentState]:
        """Advance every component by one step; return those that changed.

        Raises `StartFailed` if one keeps dying, or takes too long, before it is ready for the first time.
        """
        changed = []
        for slot in self._slots.values():
            before = (slot.phase, slot.child)
            self._advance(slot)
            if (slot.phase, slot.child) != before:
                changed.append(slot.state())
        return changed

    def stop(self, on_stopped: Callable[[ComponentState], None] = lambda _state: None) -> None:
        """Stop every process, stage by stage; kill the group of one that exceeds its grace period."""
        stages = sorted({slot.component.stop_stage for slot in self._slots.values()})
        for stage in stages:
            slots = [slot for slot in self._slots.values() if slot.component.stop_stage == stage]
            self._stop_together(slots, on_stopped)

    def _advance(self, slot: _Slot) -> None:
        if slot.phase is Phase.WAITING:
            if all(self._slots[name].satisfied for name in slot.component.after):
                self._start(slot)
        elif slot.phase is Phase.BACKOFF:
            if self._clock.monotonic() >= slot.retry:
                slot.restarts += 1
                self._start(slot)
        elif slot.phase in (Phase.STARTING, Phase.READY):
            self._watch(slot)

    def _start(self, slot: _Slot) -> None:
        slot.started, slot.started_at = self._clock.monotonic(), datetime.now(UTC)
        slot.child = self._spawn(slot.component)
        slot.phase = Phase.STARTING
        log.info(
            "component.started", component=slot.component.name, pid=slot.child.pid, restarts=slot.restarts
        )

    def _watch(self, slot: _Slot) -> None:
        assert slot.child is not None  # noqa: S101 - for the type checker: these phases have a child
        assert slot.started_at is not None  # noqa: S101 - as above
        status = slot.child.poll()
        if status is not None:
            self._ended(slot, slot.child, status)
        elif slot.phase is Phase.STARTING and not slot.component.once:
            if slot.component.ready(slot.started_at):
                self._became_ready(slot, Phase.READY)
            elif not slot.was_ready and self._age(slot) > slot.component.ready_seconds:
                raise StartFailed(
                    slot.component.name, f"is not ready after {self._age(slot):.0f} s", slot.component.log
                )

    def _ended(self, slot: _Slot, child: Child, status: int) -> None:
        child.kill_group()
        if slot.component.once and status == 0:
            self._became_ready(slot, Phase.DONE)
            return
        log.warning("component.died", component=slot.component.name, pid=child.pid, status=status)
        slot.failures = 1 if self._age(slot) > STEADY_SECONDS else slot.failures + 1
        if not slot.was_ready and slot.failures >= TRIES_BEFORE_FIRST_READY:
            raise StartFailed(
                slot.component.name,
                f"ended {slot.failures} times before it was ready, the last time {_exit_text(status)}"
                f"{_said(slot.component.log)}",
                slot.component.log,
            )
        pause = min(FIRST_BACKOFF_SECONDS * 2 ** (slot.failures - 1), LONGEST_BACKOFF_SECONDS)
        slot.phase, slot.child, slot.retry = Phase.BACKOFF, None, self._clock.monotonic() + pause

    def _became_ready(self, slot: _Slot, phase: Phase) -> None:
        slot.phase, slot.was_ready = phase, True
        slot.seconds_to_ready = round(self._age(slot), 2)
        log.info("component.ready", component=slot.component.name, seconds=slot.seconds_to_ready)

    def _age(self, slot: _Slot) -> float:
        return self._clock.monotonic() - slot.started

    def _stop_together(self, slots: Sequence[_Slot], on_stopped: Callable[[ComponentState], None]) -> None:
        for slot in slots:
            if slot.child is not None and slot.child.poll() is None:
                slot.child.send(slot.component.stop_signal)
        begun = self._clock.monotonic()
        for slot in slots:
            if slot.child is not None:
                self._await_end(slot.component, slot.child, begun + slot.component.grace_seconds)
            slot.phase, slot.child = Phase.STOPPED, None
            on_stopped(slot.state())

    def _await_end(self, component: Component, child: Child, deadline: float) -> None:
        while child.poll() is None and self._clock.monotonic() < deadline:
            self._clock.sleep(0.02)
        if child.poll() is None:
            log.warning("component.killed", component=component.name, pid=child.pid)
        child.kill_group()
        gone = self._clock.monotonic() + KILL_SECONDS
        while child.poll() is None and self._clock.monotonic() < gone:
            self._clock.sleep(0.02)


def _said(path: Path) -> str:
    """Return the last line of a log that says something, for an error; nothing if there is none."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            line = last_line(log.read().decode(errors="replace"))
    except OSError:
        return ""
    return f": {line}" if line else ""


def last_line(text: str) -> str:
    """Return the last line that is neither empty nor a page's mark-up, of 300 characters at most."""
    lines = [line.strip() for line in text.splitlines()]
    return next((line[:300] for line in reversed(lines) if line and not line.startswith("<")), "")


def _exit_text(status: int) -> str:
    """Return a description of an exit status: a signal's name, or the number."""
    return f"by {signal.Signals(-status).name}" if status < 0 else f"with status {status}"
