"""Exceptions of local mode.

LocalModeError
├── AlreadyRunning        another platform holds the state directory
├── NotRunning            no platform runs in the state directory
├── StartFailed           a component did not become ready
├── PlatformUnreachable   the platform runs but does not answer
└── RunFailed             a DAG run did not end as it should
"""

from __future__ import annotations

from pathlib import Path

from airbridge.core.exceptions import AirBridgeError


class LocalModeError(AirBridgeError):
    """Base class of local mode's errors."""


class AlreadyRunning(LocalModeError):  # noqa: N818 - states a fact, like FileExistsError's siblings
    """Another platform holds the state directory."""

    def __init__(self, root: Path, pid: int | None) -> None:
        holder = f"process {pid}" if pid else "another process"
        super().__init__(
            f"{root} is in use by {holder}; stop it with 'airbridge down --dir {root}' or choose another --dir"
        )
        self.pid = pid


class NotRunning(LocalModeError):  # noqa: N818 - see AlreadyRunning
    """No platform runs in the state directory."""

    def __init__(self, root: Path) -> None:
        super().__init__(f"no platform runs in {root}; start one with 'airbridge up --dir {root}'")


class StartFailed(LocalModeError):  # noqa: N818 - see AlreadyRunning
    """A component did not become ready."""

    def __init__(self, component: str, what: str, log: Path | None = None) -> None:
        super().__init__(f"{component} {what}" + (f"; its log is {log}" if log else ""))
        self.component = component
        self.log = log


class PlatformUnreachable(LocalModeError):  # noqa: N818 - see AlreadyRunning
    """The platform runs but does not answer."""


class RunFailed(LocalModeError):  # noqa: N818 - see AlreadyRunning
    """A DAG run did not end as it should."""
