"""Exceptions of AirBridge; those of a single package derive from `AirBridgeError`.

AirBridgeError
├── ConfigurationError      a setting, file or catalogue entry is wrong
├── PlacementError          a task cannot be placed: unknown region, malformed hint, a queue without region
├── InvalidEnvelope         a message from a queue is not a work item of ours
├── QueueError              the regional queue could not be reached or refused the call
├── ScalingError            the scaling signal could not be published
├── StoreError              the object store could not be reached or refused the call
│   ├── ObjectNotFound      the object does not exist
│   └── PreconditionFailed  a conditional write lost to another writer
├── SandboxError            a process that must be sandboxed cannot be on this host
└── BundleError             DAG code could not be published, fetched or verified
    ├── BundleRefused       a snapshot's files do not parse; the message names file, line and error
    └── EnvironmentRefused  a bundle's packages cannot be installed; the message names file, line and error
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airbridge.core.protocol import RefusalReason


class AirBridgeError(Exception):
    """Base class of every error that AirBridge raises on purpose."""


class ConfigurationError(AirBridgeError):
    """A setting, file or catalogue entry is wrong; the message names it, its value and what would be right."""


class PlacementError(AirBridgeError):
    """A task cannot be placed; the message names its queue or hint and what would be right."""


class SandboxError(AirBridgeError):
    """A process that must be sandboxed cannot be: the kernel or the container denies it."""


class InvalidEnvelope(AirBridgeError):  # noqa: N818 - the noun is the envelope
    """A message from a queue is not a work item of ours."""

    def __init__(self, reason: RefusalReason, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class QueueError(AirBridgeError):
    """The regional queue could not be reached, or refused the call."""


class ScalingError(AirBridgeError):
    """The scaling signal could not be published."""


class StoreError(AirBridgeError):
    """The object store could not be reached, or refused the call. `transient`: trying again may help."""

    def __init__(self, detail: str, *, transient: bool = False) -> None:
        super().__init__(detail)
        self.transient = transient


class ObjectNotFound(StoreError):  # noqa: N818 - the store's word for it
    """The object does not exist."""


class PreconditionFailed(StoreError):  # noqa: N818 - the store's word for it
    """A conditional write lost to another writer."""


class BundleError(AirBridgeError):
    """DAG code could not be published, fetched or verified. `transient`: trying again may help."""

    def __init__(self, detail: str, *, transient: bool = False) -> None:
        super().__init__(detail)
        self.transient = transient


class UnknownKey(BundleError):  # noqa: N818 - names the condition
    """A snapshot's signature is of a key that is not known, or not yet: a new one comes with the trust bundle."""


@dataclass(frozen=True)
class ParseFailure:
    """Parse error of one file of a snapshot. `line` is None where the error has no place (a timeout)."""

    file: str
    line: int | None
    error: str

    def __str__(self) -> str:
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {self.error}"


class BundleRefused(BundleError):  # noqa: N818 - what happened to the bundle
    """Files of a snapshot do not parse: it was not published, and the one before it stays current."""

    def __init__(self, bundle: str, failures: Sequence[ParseFailure]) -> None:
        self.bundle = bundle
        self.failures = tuple(failures)
        listed = "\n".join(f"  {failure}" for failure in self.failures)
        super().__init__(f"the DAG files of bundle {bundle!r} do not parse:\n{listed}")


class EnvironmentRefused(BundleError):  # noqa: N818 - what happened to the environment
    """The packages that a bundle names cannot be installed: it was not published, and the version before stays current."""

    def __init__(self, failures: Sequence[ParseFailure], *, transient: bool = False) -> None:
        self.failures = tuple(failures)
        super().__init__("; ".join(map(str, self.failures)), transient=transient)
