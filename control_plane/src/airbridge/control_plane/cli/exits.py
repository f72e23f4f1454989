"""Exit codes, and which error gets which: the one place that decides."""

from __future__ import annotations

from enum import IntEnum

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.local.exceptions import AlreadyRunning, NotRunning, PlatformUnreachable
from airbridge.executor.exceptions import AirBridgeError, ConfigurationError


class Exit(IntEnum):
    """What an exit status of `airbridge` means."""

    OK = 0
    FAILED = 1
    """What was asked for was tried and did not work."""
    USAGE = 2
    """The command line or a setting is wrong."""
    WRONG_STATE = 3
    """The platform is running and must not be, or is not and must be."""
    UNREACHABLE = 4
    """The control plane does not answer."""
    REFUSED = 5
    """The control plane said no."""


_BY_ERROR: tuple[tuple[type[AirBridgeError], Exit], ...] = (
    (ConfigurationError, Exit.USAGE),
    (AlreadyRunning, Exit.WRONG_STATE),
    (NotRunning, Exit.WRONG_STATE),
    (PlatformUnreachable, Exit.UNREACHABLE),
    (Refused, Exit.REFUSED),
)


def exit_for(error: AirBridgeError) -> Exit:
    """Return the exit status of a command that ended with this error."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.FAILED)
