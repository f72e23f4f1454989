"""Authentication of callers by a verified certificate and an access token bound to it. Default deny."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

from airbridge.control_plane.exceptions import InvalidIdentity, InvalidScope, Refused
from airbridge.control_plane.identity import generations
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.generations import IdentityRules, Use
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger.identity import callers, revocations, tokens
from airbridge.executor.ledger.identity.callers import CallerRecord
from airbridge.executor.ledger.identity.revocations import Revocation

# Key of the connection's `Peer` in the ASGI scope, set by the HTTP protocol.
PEER: Final = "airbridge.peer"


# Key of a request's authenticated operator in the ASGI scope, for the audit of later denials.
ACTOR: Final = "airbridge.actor"


# ID of that operator's access token.
TOKEN_ID: Final = "airbridge.operator_token_id"  # noqa: S105 - a key of the scope


@dataclass(frozen=True, slots=True)
class Peer:
    """Remote end of a TLS connection, read once when it is established."""

    address: str
    certificate: PeerCertificate | None = None
    #: Reason why the presented certificate is not a worker's.
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Caller:
    """Authenticated worker."""

    name: WorkerName
    certificate: PeerCertificate
    scopes: Scopes
    address: str
    #: True if a replaced key signed its access token: it should renew.
    stale: bool = False
    rules: IdentityRules = field(default_factory=IdentityRules)

    @property
    def use(self) -> Use:
        """Use that it makes of its certificate."""
        return Use(self.name, self.certificate, self.address)

    def require(self, action: str, **attributes: str) -> None:
        """Raise `Refused` (403) unless a scope of the token allows `action`."""
        if not self.scopes.allow(action, **attributes):
            requested = " ".join([action, *(f"{key}={value}" for key, value in attributes.items())])
            raise Refused(
                403,
                RefusalReason.FORBIDDEN,
                f"no scope of the access token allows {requested}",
                rule=f"scope {requested}",
            )


@dataclass(frozen=True, slots=True)
class Operator:
    """Authenticated holder of an operator's access token."""

    owner: str
    token_id: str
    scopes: Scopes
    address: str
    expires_at: datetime

    @property
    def actor(self) -> str:
        """Name of this operator in events and the audit trail."""
        return f"operator:{self.owner}"

    def require(self, action: str, name: str | None = None, **attributes: str) -> None:
        """Raise `Refused` (403) unless a scope of the token allows `action`."""
        if not self.scopes.allow(action, name, **attributes):
            requested = " ".join(
                [action, *([name] if name else []), *(f"{k}={v}" for k, v in attributes.items())]
            )
            raise Refused(
                403,
                RefusalReason.FORBIDDEN,
                f"no scope of this token allows {requested}",
                rule=f"scope {requested}",
            )


class WorkerAuthenticator:
    """Authenticates a worker's request by certificate and access token, without the database."""

    def __init__(
        self,
        keyring: Keyring,
        trust_domain: str,
        clock: Callable[[], datetime],
        rules: IdentityRules = IdentityRules(),  # noqa: B008 - frozen
    ) -> None:
        self._rules = rules
        self._keyring = keyring
        self._trust_domain = trust_domain
        self._clock = clock

    def authenticate(self, scope: Mapping[str, Any]) -> Caller:
        """Return the caller. Raises `Refused` (401) naming the missing or invalid credential."""
        peer: Peer = scope[PEER]
        certificate = peer.certificate
        if certificate is None:
            raise _unauthorised(peer.problem or "a client certificate is required")
        now = self._clock()
        if not certificate.valid_at(now):
            raise _unauthorised("the client certificate has expired")
        try:
            name = WorkerName.parse(certificate.uri, self._trust_domain)
        except InvalidIdentity as error:
            raise _unauthorised(str(error)) from error
        tokens, token = self._keyring.keys.tokens, bearer(scope)
        scopes = tokens.verify(token, name, certificate, now)
        stale = not tokens.is_current(token)
        return Caller(name, certificate, scopes, peer.address, stale, self._rules)


def check_revocation(session: Any, caller: Caller) -> CallerRecord | None:
    """Raise `Refused` (403) if the worker, its certificate, its pool or its issuer is revoked, or its certificate ended.

    Return what the ledger has of the caller; None if its worker is not enrolled.
    """
    thumbprint, named = caller.certificate.thumbprint, [_named(caller)]
    records = callers.find(session, named)
    if records.may_be_revoked:
        for refused in _refusals(session, {0: caller}).values():
            raise refused
    record = records.by_thumbprint.get(thumbprint)
    if record is not None and generations.is_unchanged(record.known, caller.use):
        return record
    generations.admit(session, caller.use, caller.rules)
    return callers.find(session, named).by_thumbprint.get(thumbprint)


def judge_all(session: Any, numbered: Mapping[int, Caller]) -> tuple[dict[int, Refused], set[int]]:
    """Judge callers by their keys, in one statement: the denials of those that are revoked, and the keys of those that pass.

    The others are to be checked by `check_revocation`, which writes down what is new about them.
    """
    if not numbered:
        return {}, set()
    records = callers.find(session, [_named(caller) for caller in numbered.values()])
    refused = _refusals(session, numbered) if records.may_be_revoked else {}
    passed = {
        key
        for key, caller in numbered.items()
        if key not in refused
        and (record := records.by_thumbprint.get(caller.certificate.thumbprint)) is not None
        and generations.is_unchanged(record.known, caller.use)
    }
    return refused, passed


def _refusals(session: Any, numbered: Mapping[int, Caller]) -> dict[int, Refused]:
    found = revocations.revoked(session, [_named(caller) for caller in numbered.values()])
    return {number: _revoked(row) for number, row in zip(numbered, found, strict=True) if row is not None}


def _named(caller: Caller) -> revocations.Named:
    return revocations.Named(
        worker=caller.name.worker,
        region=caller.name.region,
        pool=caller.name.pool,
        thumbprint=caller.certificate.thumbprint,
        issuer=caller.certificate.issuer,
    )


def _revoked(row: Revocation) -> Refused:
    if row.kind == "issuer":
        # 401, not 403: the worker itself may be sound, and may enrol again under another CA.
        return Refused(
            401,
            RefusalReason.FORBIDDEN,
            f"the CA that issued this certificate is revoked ({row.reason}); enrol again",
            rule=f"revocation of issuer {row.value}",
        )
    return Refused(
        403,
        RefusalReason.REVOKED,
        f"this {row.kind} is revoked: {row.reason}",
        rule=f"revocation of {row.kind} {row.value}",
    )


def check_operator_token(session: Any, scope: MutableMapping[str, Any], secret: str) -> None:
    """Raise `Refused` (401) unless an operator's token is good now. Writes nothing and locks nothing.

    The id of one that has ended is stored in `scope`: its use after a revocation is in the audit trail under its id.
    """
    if not tokens.is_access(session, secret):
        ended = tokens.ended_access(session, secret)
        if ended is not None:
            scope[TOKEN_ID] = ended
        raise _unknown_token()


def authenticate_operator(session: Any, scope: MutableMapping[str, Any]) -> Operator:
    """Return the operator of the request's token, and store its actor in `scope`. Raises `Refused` (401)."""
    row = tokens.find_access(session, bearer(scope))
    if row is None:
        raise _unknown_token()
    try:
        scopes = Scopes.parse(row.scopes)
    except InvalidScope as error:
        raise _unauthorised(f"the token's scopes are malformed: {error}") from error
    operator = Operator(row.owner, row.id, scopes, scope[PEER].address, row.expires_at)
    scope[ACTOR], scope[TOKEN_ID] = operator.actor, operator.token_id
    return operator


def bearer(scope: Mapping[str, Any]) -> str:
    """Return the bearer token of a request. Raises `Refused` (401) if there is none, or two."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(found) != 1:
        raise _unauthorised("one Authorization header is required")
    scheme, _, token = found[0].partition(b" ")
    if scheme.lower() != b"bearer" or not token.isascii():
        raise _unauthorised("the Authorization header must be: Bearer <access token>")
    text: str = token.strip().decode("ascii")
    return text


def _unknown_token() -> Refused:
    return _unauthorised("the access token is unknown, expired or revoked")


def _unauthorised(detail: str) -> Refused:
    return Refused(401, RefusalReason.FORBIDDEN, detail, rule="authentication")
