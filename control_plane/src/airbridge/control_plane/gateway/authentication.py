"""Who calls: a verified certificate, and an access token bound to it. Default deny."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from airbridge.control_plane.exceptions import InvalidIdentity, InvalidScope, Refused
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.executor.ledger import revocations, tokens
from airbridge.executor.ledger.models import RevocationRow
from airbridge.executor.protocol import RefusalReason

PEER: Final = "airbridge.peer"
"""Where the HTTP protocol puts the connection's `Peer` in the ASGI scope."""


ACTOR: Final = "airbridge.actor"
"""Where a request's authenticated operator stands in the ASGI scope, for the audit of what is refused later."""


@dataclass(frozen=True, slots=True)
class Peer:
    """The other end of a TLS connection, read once when it was made."""

    address: str
    certificate: PeerCertificate | None = None
    problem: str | None = None
    """Why the certificate that was presented names no worker."""


@dataclass(frozen=True, slots=True)
class Caller:
    """An authenticated worker."""

    name: WorkerName
    certificate: PeerCertificate
    scopes: Scopes
    address: str
    stale: bool = False
    """Whether its access token is by a key that has been replaced: it should renew."""

    def require(self, action: str, **attributes: str) -> None:
        """Raise `Refused` (403) unless a scope of the token allows `action`."""
        if not self.scopes.allow(action, **attributes):
            asked = " ".join([action, *(f"{key}={value}" for key, value in attributes.items())])
            raise Refused(
                403,
                RefusalReason.FORBIDDEN,
                f"no scope of the access token allows {asked}",
                rule=f"scope {asked}",
            )


@dataclass(frozen=True, slots=True)
class Operator:
    """An authenticated holder of an operators' access token."""

    owner: str
    token_id: str
    scopes: Scopes
    address: str

    @property
    def actor(self) -> str:
        """How events name this operator."""
        return f"operator:{self.owner}"

    def require(self, action: str, name: str | None = None, **attributes: str) -> None:
        """Raise `Refused` (403) unless a scope of the token allows `action`."""
        if not self.scopes.allow(action, name, **attributes):
            asked = " ".join(
                [action, *([name] if name else []), *(f"{k}={v}" for k, v in attributes.items())]
            )
            raise Refused(
                403, RefusalReason.FORBIDDEN, f"no scope of this token allows {asked}", rule=f"scope {asked}"
            )


class WorkerAuthenticator:
    """Judges a request by its connection's certificate and its access token, without the database."""

    def __init__(self, keyring: Keyring, trust_domain: str, clock: Callable[[], datetime]) -> None:
        self._keyring = keyring
        self._trust_domain = trust_domain
        self._clock = clock

    def authenticate(self, scope: Mapping[str, Any]) -> Caller:
        """Return the caller. Raises `Refused` (401) with what is missing."""
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
        return Caller(name, certificate, scopes, peer.address, stale=not tokens.is_current(token))


def check_revocation(session: Any, caller: Caller) -> None:
    """Raise `Refused` (403) if the worker, its certificate, its pool or its issuer is revoked."""
    for refused in refusals(session, {0: caller}).values():
        raise refused


def refusals(session: Any, callers: Mapping[int, Caller]) -> dict[int, Refused]:
    """Return what those of the callers are told, by their numbers, who are revoked; in one statement for all."""
    found = revocations.revoked(session, [_named(caller) for caller in callers.values()])
    return {number: _revoked(row) for number, row in zip(callers, found, strict=True) if row is not None}


def _named(caller: Caller) -> revocations.Named:
    return revocations.Named(
        worker=caller.name.worker,
        region=caller.name.region,
        pool=caller.name.pool,
        thumbprint=caller.certificate.thumbprint,
        issuer=caller.certificate.issuer,
    )


def _revoked(row: RevocationRow) -> Refused:
    if row.kind == "issuer":
        # The worker may be honest and its CA not: it may come back by its join method, under another one.
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


def authenticate_operator(session: Any, scope: MutableMapping[str, Any]) -> Operator:
    """Return the operator whose token the request carries, and note it in `scope`. Raises `Refused` (401)."""
    secret = bearer(scope)
    row = tokens.find_access(session, secret)
    if row is None:
        raise _unauthorised("no such access token, or it has expired or was revoked")
    try:
        scopes = Scopes.parse(row.scopes)
    except InvalidScope as error:
        raise _unauthorised(f"the token's scopes cannot be read: {error}") from error
    operator = Operator(row.owner, row.id, scopes, scope[PEER].address)
    scope[ACTOR] = operator.actor
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


def _unauthorised(detail: str) -> Refused:
    return Refused(401, RefusalReason.FORBIDDEN, detail, rule="authentication")
