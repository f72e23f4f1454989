"""Everything airbridge.executor raises on purpose.

AirBridgeError
├── ConfigurationError      a setting, file or catalogue entry is wrong
├── PlacementError          a task cannot be placed: unknown region, malformed hint, queue nobody serves
├── InvalidEnvelope         a message from a queue is not a work item of ours
├── QueueError              the regional queue could not be reached or refused the call
├── StoreError              the object store could not be reached or refused the call
└── BundleError             DAG code could not be published, fetched or verified
"""

from __future__ import annotations

from airbridge.executor.protocol import RefusalReason


class AirBridgeError(Exception):
    """Base class of every error that AirBridge raises on purpose."""


class ConfigurationError(AirBridgeError):
    """A setting, file or catalogue entry is wrong; the message names it, its value and what would be right."""


class PlacementError(AirBridgeError):
    """A task cannot be placed; the message says what is wrong with its queue or hint and what would be right."""


class InvalidEnvelope(AirBridgeError):  # noqa: N818 - the noun is the envelope
    """A message from a queue is not a work item of ours."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class QueueError(AirBridgeError):
    """The regional queue could not be reached, or refused the call."""


class StoreError(AirBridgeError):
    """The object store could not be reached, or refused the call."""


class BundleError(AirBridgeError):
    """DAG code could not be published, fetched or verified."""
