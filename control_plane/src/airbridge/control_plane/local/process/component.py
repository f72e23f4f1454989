"""Component: one process of the platform, with its dependencies and readiness probe."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from airbridge.control_plane.local.process.privileges import User

# Takes the start time of the process; returns whether it is ready. Must be quick, and return False on any error.
Probe = Callable[[datetime], bool]


@dataclass(frozen=True)
class Component:
    """Definition of one process. `once` components are ready when they exit with 0, and are not restarted."""

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
    #: Sent by the kernel when the supervisor dies, so that no process is orphaned.
    death_signal: signal.Signals = signal.SIGKILL
    #: Stages stop one after the other, lowest first; components of one stage stop together.
    stop_stage: int = 0
    grace_seconds: float = 10.0
    ready_seconds: float = 120.0
    #: True if it is ``python -m module`` and may be forked from a process that has imported third-party packages.
    preloaded: bool = False
