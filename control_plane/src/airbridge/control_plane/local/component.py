"""A component: one process of the platform, what it waits for and how to tell that it is ready."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from airbridge.control_plane.local.privileges import User

Probe = Callable[[datetime], bool]
"""Given when the process was started: is it ready? Quick, and False on any trouble."""


@dataclass(frozen=True)
class Component:
    """How to run one process. `once` components are ready when they end with 0 and are not started again."""

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    log: Path
    ready: Probe = field(default=lambda _started_at: False)
    after: tuple[str, ...] = ()
    url: str | None = None
    once: bool = False
    user: User | None = None
    cwd: Path | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    death_signal: signal.Signals = signal.SIGKILL
    """Sent by the kernel when the supervisor dies, so that nothing is left behind."""
    stop_stage: int = 0
    """Stages are stopped one after the other, the lowest first; those of one stage together."""
    grace_seconds: float = 10.0
    ready_seconds: float = 120.0
