"""Exceptions of airbridge.control_plane.

AirBridgeError                  (airbridge.core.exceptions)
├── Refused                     the control plane denied a request: becomes a `Problem` with an HTTP status
│   ├── VersionsRefused         a worker may join, but not with its versions
│   └── IdentityForked          a copy of a worker's identity is in use
├── InvalidIdentity             a certificate or SPIFFE URI does not name a worker of ours
├── InvalidScope                a scope string cannot be read
├── SecretsError                a file of the secrets directory is missing, unreadable or not a key
│   └── AuthorityEnded          the issuing CA's certificate has ended: it can issue none
├── Proposed                    an action waits for a second operator
└── Unavailable                 the database is down or a limit is reached: retry later
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from airbridge.core.exceptions import AirBridgeError
from airbridge.core.protocol import Problem, RefusalReason


class Refused(AirBridgeError):  # noqa: N818 - says what happened
    """The control plane denied a request. Carries the status, reason and detail that the caller may see."""

    def __init__(self, status: int, reason: RefusalReason, detail: str, *, rule: str | None = None) -> None:
        super().__init__(f"{status} {reason}: {detail}")
        self.rule = rule
        """The scope, revocation or policy rule that decided, for the audit trail."""
        self.status = status
        self.reason = reason
        self.detail = detail

    def problem(self) -> Problem:
        """Return the body of the answer."""
        return Problem(status=self.status, reason=self.reason, detail=self.detail)


class VersionsRefused(Refused):
    """A worker may join, but not with the versions it runs."""


class IdentityForked(Refused):
    """A copy of a worker's identity is in use. The refused request's transaction is undone; `stop` needs one of its own."""

    def __init__(self, uri: str, detail: str, stop: Callable[[Any], None], *, rule: str) -> None:
        super().__init__(403, RefusalReason.REVOKED, detail, rule=rule)
        self.uri = uri
        self.stop = stop
        """Stops the name, in the session that it is given."""


class Proposed(AirBridgeError):  # noqa: N818 - says what became of the request
    """An action has become a proposal, which a second operator must approve."""


class InvalidIdentity(AirBridgeError):  # noqa: N818 - the noun is the identity
    """A certificate or SPIFFE URI does not name a worker of this trust domain."""


class InvalidScope(AirBridgeError):  # noqa: N818 - the noun is the scope
    """A scope string is malformed; the message gives the expected form."""


class SecretsError(AirBridgeError):
    """A file of the secrets directory is missing, unreadable, or not the expected key."""


class AuthorityEnded(SecretsError):  # noqa: N818 - says what happened
    """The issuing CA's certificate has ended: it can issue none."""


class Unavailable(AirBridgeError):  # noqa: N818 - says what the caller finds
    """The database is down or a limit is reached; the same request may be retried after `retry_after` seconds."""

    def __init__(self, detail: str, retry_after: float = 1.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after
