"""State of a running platform (platform.json), and the lock of its state directory."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import IO

from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from airbridge.control_plane.local.exceptions import AlreadyRunning, NotRunning
from airbridge.control_plane.local.layout import StateDir, replace_text

_LOCK_TRIES = 5
_LOCK_PAUSE_SECONDS = 0.05


class Phase(StrEnum):
    """Lifecycle phase of a component."""

    WAITING = "waiting"
    STARTING = "starting"
    READY = "ready"
    BACKOFF = "backoff"
    DONE = "done"
    STOPPED = "stopped"


class PlatformPhase(StrEnum):
    """Lifecycle phase of the platform."""

    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    STOPPED = "stopped"


class ComponentState(BaseModel):
    """Current state of one component."""

    model_config = ConfigDict(frozen=True)

    name: str
    phase: Phase
    pid: int | None
    url: str | None
    log: str
    restarts: int
    seconds_to_ready: float | None


class PlatformState(BaseModel):
    """Current state of the platform."""

    model_config = ConfigDict(frozen=True)

    phase: PlatformPhase
    pid: int
    root: str
    started_at: AwareDatetime
    seconds_to_ready: float | None
    ui_url: str
    gateway_url: str
    operator_url: str
    aws_url: str
    dags: str
    components: tuple[ComponentState, ...]

    def component(self, name: str) -> ComponentState:
        """Return the component of that name. Raises `KeyError` with the known names."""
        for component in self.components:
            if component.name == name:
                return component
        raise KeyError(f"no component {name!r}; there are {[c.name for c in self.components]}")


def write(path: Path, state: PlatformState) -> None:
    """Replace the file atomically."""
    replace_text(path, state.model_dump_json(indent=2) + "\n", sync=False)


def read(directory: StateDir) -> PlatformState:
    """Return the running platform's state. Raises `NotRunning` if there is none."""
    if lock_holder(directory) is None:
        raise NotRunning(directory.root)
    try:
        return PlatformState.model_validate_json(directory.platform_file.read_bytes())
    except (OSError, ValidationError) as error:
        raise NotRunning(directory.root) from error


@contextmanager
def locked(directory: StateDir) -> Iterator[None]:
    """Hold the lock of the state directory. Raises `AlreadyRunning` with the holder's pid. The kernel frees a dead holder's lock."""
    with directory.lock_file.open("a+") as file:
        _take(file, directory)
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def _take(file: IO[str], directory: StateDir) -> None:
    for _ in range(_LOCK_TRIES):  # `lock_holder` takes the lock for an instant to test it
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            time.sleep(_LOCK_PAUSE_SECONDS)
    raise AlreadyRunning(directory.root, lock_holder(directory))


def lock_holder(directory: StateDir) -> int | None:
    """Return the pid of the supervisor that holds the lock, or None."""
    try:
        with directory.lock_file.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return int(file.read() or 0) or None
            return None
    except FileNotFoundError:
        return None


def own_pid() -> int:
    """Return this process' id."""
    return os.getpid()
