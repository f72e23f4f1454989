"""Everything airbridge.control_plane raises on purpose.

AirBridgeError                  (airbridge.executor.exceptions)
├── Refused                     the control plane said no: becomes a `Problem` with an HTTP status
│   └── VersionsRefused         whoever asks may join, but not with the versions it runs
├── InvalidIdentity             a certificate or SPIFFE URI does not name a worker of ours
├── InvalidScope                a scope string cannot be read
├── SecretsError                a file of the secrets directory is missing, unreadable or no key
└── Unavailable                 the database or a limit stands in the way: worth a retry
"""

from __future__ import annotations

from airbridge.executor.exceptions import AirBridgeError
from airbridge.executor.protocol import Problem, RefusalReason


class Refused(AirBridgeError):  # noqa: N818 - says what happened
    """The control plane said no. Carries what the caller may know."""

    def __init__(self, status: int, reason: RefusalReason, detail: str, *, rule: str | None = None) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.rule = rule
        """What decided: a scope, a revocation, a policy's rule. For the audit trail."""
        self.status = status
        self.reason = reason
        self.detail = detail

    def problem(self) -> Problem:
        """Return the body of the answer."""
        return Problem(status=self.status, reason=self.reason, detail=self.detail)


class VersionsRefused(Refused):
    """Whoever asks may join, but not with the versions it runs."""


class InvalidIdentity(AirBridgeError):  # noqa: N818 - the noun is the identity
    """A certificate or SPIFFE URI does not name a worker of this trust domain."""


class InvalidScope(AirBridgeError):  # noqa: N818 - the noun is the scope
    """A scope string cannot be read; the message says what would be right."""


class SecretsError(AirBridgeError):
    """A file of the secrets directory is missing, unreadable, or not the key it should be."""


class Unavailable(AirBridgeError):  # noqa: N818 - says what the caller finds
    """The database, or a limit, stands in the way for now; the same request may be sent again."""

    def __init__(self, detail: str, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
