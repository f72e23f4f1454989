"""The worker's mode, from active to stopped, and the exit code that it ends with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import IntEnum, StrEnum
from typing import Final

import structlog

from airbridge.core.protocol import WorkerState

log = structlog.get_logger(__name__)


class ExitCode(IntEnum):
    """Exit code of the worker's process."""

    OK = 0
    #: Stopped hard, or by a fault of its own, and running tasks were failed; or the host did not let it start.
    HARD_STOP = 1
    BAD_SETTINGS = 2
    #: Enrolment was refused, or this worker was revoked.
    NO_IDENTITY = 3
    #: Drained, but results or logs are left in the state directory for the next start.
    NOT_FLUSHED = 75


class Mode(StrEnum):
    """Mode of the worker."""

    ACTIVE = "active"
    #: Nothing is claimed or started, by command of the control plane; it may resume.
    DRAINING = "draining"
    #: The process ends once the running tasks have ended.
    STOPPING = "stopping"
    #: The process ends now; running tasks are failed.
    HARD_STOP = "hard_stop"

    @property
    def reported(self) -> WorkerState:
        """Mode as a `WorkerState` of the protocol."""
        return _REPORTED[self]


_REPORTED: Final = {
    Mode.ACTIVE: WorkerState.ACTIVE,
    Mode.DRAINING: WorkerState.DRAINING,
    Mode.STOPPING: WorkerState.STOPPING,
    Mode.HARD_STOP: WorkerState.STOPPING,
}

_LOG_EVENTS: Final = {
    Mode.ACTIVE: "agent.resumed",
    Mode.DRAINING: "agent.draining",
    Mode.STOPPING: "agent.stopping",
    Mode.HARD_STOP: "agent.hard_stop",
}

_NEXT: Final = {
    Mode.ACTIVE: {Mode.DRAINING, Mode.STOPPING, Mode.HARD_STOP},
    Mode.DRAINING: {Mode.ACTIVE, Mode.STOPPING, Mode.HARD_STOP},
    # No way back: once the process is to end, the control plane cannot resume it.
    Mode.STOPPING: {Mode.HARD_STOP},
    Mode.HARD_STOP: set(),
}


class Lifecycle:
    """Mode and exit code of one worker. A request that does not fit the mode changes nothing."""

    def __init__(self) -> None:
        self.mode = Mode.ACTIVE
        self.exit_code = ExitCode.OK
        self.stop_requested = asyncio.Event()
        self.hard_stop_requested = asyncio.Event()
        self.hard_stop_reason = ""
        self.on_change: Callable[[Mode], None] = lambda _mode: None

    def drain(self, detail: str) -> None:
        """Claim nothing more until `resume`."""
        self._enter(Mode.DRAINING, detail)

    def resume(self) -> None:
        """Claim again after `drain`."""
        self._enter(Mode.ACTIVE, "the control plane ended the drain")

    def stop(self) -> None:
        """Let the running tasks finish, then end."""
        if self._enter(Mode.STOPPING, "running tasks will finish"):
            self.stop_requested.set()

    def hard_stop(self, code: ExitCode, reason: str) -> None:
        """Fail the running tasks, and end with `code`."""
        if Mode.HARD_STOP not in _NEXT[self.mode]:
            return
        self.exit_code = code
        self.hard_stop_reason = reason
        self.stop_requested.set()
        self.hard_stop_requested.set()
        self._enter(Mode.HARD_STOP, reason)

    def exit_with(self, code: ExitCode) -> None:
        """Set the exit code, unless another than OK is set already."""
        if self.exit_code is ExitCode.OK:
            self.exit_code = code

    @property
    def active(self) -> bool:
        """Return whether new work is claimed, and what was claimed is started."""
        return self.mode is Mode.ACTIVE

    def _enter(self, mode: Mode, detail: str) -> bool:
        if mode not in _NEXT[self.mode]:
            return False
        level = log.error if mode is Mode.HARD_STOP else log.warning
        level(_LOG_EVENTS[mode], detail=detail)
        self.mode = mode
        self.on_change(mode)
        return True
