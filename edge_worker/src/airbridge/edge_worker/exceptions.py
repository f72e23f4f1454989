"""Exceptions of airbridge.edge_worker.

AirBridgeError (airbridge.core.exceptions)
├── SettingsError            a worker setting is wrong; the message names it, its value and what would be right
├── StartError               the host does not let the worker start now; a later start may succeed
├── FrameError               bytes on a proxy socket are not a frame
├── GatewayError             a request to the gateway had no usable answer
│   ├── GatewayUnreachable   no connection, or it broke: the request may or may not have been applied
│   ├── GatewayBusy          the gateway sheds load (429, 503) possibly with a Retry-After
│   ├── GatewayRefused       the gateway refused the request, with a reason; a retry will not help
│   └── MalformedResponse    the response does not follow the protocol
├── IdentityError            the worker could not enrol, or what it was given does not fit
├── JournalError             the journal cannot be used
│   ├── JournalFull          the disk is full; nothing was written
│   │   └── JournalBoundReached  the journal's own bound is reached, whatever the disk has; nothing was written
│   ├── RecordTooLarge       a record is larger than all that the journal may hold
│   └── JournalCorrupt       the journal's file fails its checks; it is set aside, never followed
├── SnapshotError            DAG code could not be fetched, verified or unpacked
└── RunnerError              a task process could not be started
"""

from __future__ import annotations

from typing import Final

import msgspec

from airbridge.core.exceptions import AirBridgeError
from airbridge.core.protocol import RefusalReason

#: Raised by msgspec for bytes that are no message: text that is not UTF-8 and deep nesting raise errors that are not its own.
UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class SettingsError(AirBridgeError):
    """A worker setting is wrong; the message names it, its value and what would be right."""


class StartError(AirBridgeError):
    """The host does not let the worker start now: its disk, or a lock. A later start may succeed."""


class FrameError(AirBridgeError):
    """Bytes on a proxy socket are not a frame."""


class GatewayError(AirBridgeError):
    """A request to the gateway had no usable answer."""


class GatewayUnreachable(GatewayError):  # noqa: N818 - the condition is the name
    """No connection to the gateway, or it broke: the request may or may not have been applied."""


class GatewayBusy(GatewayError):  # noqa: N818 - the condition is the name
    """The gateway sheds load. `retry_after` is its Retry-After in seconds, if it gave one."""

    def __init__(self, detail: str, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class GatewayRefused(GatewayError):  # noqa: N818 - the condition is the name
    """The gateway refused the request, with a reason; a retry will not help."""

    def __init__(self, status: int, reason: RefusalReason, detail: str) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.status = status
        self.reason = reason
        self.detail = detail


class MalformedResponse(GatewayError):  # noqa: N818 - the condition is the name
    """The gateway's response does not follow the protocol."""


class IdentityError(AirBridgeError):
    """The worker could not enrol, or what it was given does not fit."""


class JournalError(AirBridgeError):
    """The journal cannot be used."""


class JournalFull(JournalError):  # noqa: N818 - the condition is the name
    """The disk is full; nothing was written."""


class JournalBoundReached(JournalFull):
    """The journal's own bound is reached, whatever the disk has; nothing was written."""


class RecordTooLarge(JournalError):  # noqa: N818 - the condition is the name
    """A record is larger than all that the journal may hold; it can be written at no time."""


class JournalCorrupt(JournalError):  # noqa: N818 - the condition is the name
    """The journal's file fails its checks; it is set aside, never followed."""


class SnapshotError(AirBridgeError):
    """DAG code could not be fetched, verified or unpacked."""


class RunnerError(AirBridgeError):
    """A task process could not be started."""
