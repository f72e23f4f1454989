"""Exit codes, and the mapping from errors to them."""

from __future__ import annotations

from enum import IntEnum

from airbridge.control_plane.exceptions import Proposed, Refused
from airbridge.control_plane.local.exceptions import AlreadyRunning, NotRunning, PlatformUnreachable
from airbridge.core.exceptions import AirBridgeError, ConfigurationError


class Exit(IntEnum):
    """Exit status of `airbridge`."""

    OK = 0
    #: The command failed.
    FAILED = 1
    #: The command line or a setting is wrong.
    USAGE = 2
    #: The platform is running and must not be, or the reverse.
    WRONG_STATE = 3
    #: The control plane does not answer.
    UNREACHABLE = 4
    #: The control plane refused the request.
    REFUSED = 5
    #: The action waits for a second operator.
    PROPOSED = 6


_BY_ERROR: tuple[tuple[type[AirBridgeError], Exit], ...] = (
    (ConfigurationError, Exit.USAGE),
    (AlreadyRunning, Exit.WRONG_STATE),
    (NotRunning, Exit.WRONG_STATE),
    (PlatformUnreachable, Exit.UNREACHABLE),
    (Refused, Exit.REFUSED),
    (Proposed, Exit.PROPOSED),
)


def exit_for(error: AirBridgeError) -> Exit:
    """Return the exit status of a command that ended with this error."""
    return next((code for kind, code in _BY_ERROR if isinstance(error, kind)), Exit.FAILED)
