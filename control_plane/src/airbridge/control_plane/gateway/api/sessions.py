"""Sign-in API: an ID token of the configured issuer in exchange for an access token. Its callers are anonymous until then."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

from pydantic import Field
from sqlalchemy import exc as sql
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.api import operator_endpoint
from airbridge.control_plane.gateway.api.body_reader import BodyLimit, BodyReader
from airbridge.control_plane.gateway.auth.authentication import PEER
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.net.body_reads import MIB, BodyReadLimits
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.control_plane.identity import tokens as issuing
from airbridge.control_plane.sign_in import id_token
from airbridge.control_plane.sign_in.id_token import Header, Identity
from airbridge.control_plane.sign_in.key_set import KeySet
from airbridge.control_plane.sign_in.rules import SignInRules
from airbridge.control_plane.sign_in.verification_keys import VerificationKey
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger import audit
from airbridge.executor.ledger.identity import tokens

SIGN_IN_BODY: Final = BodyLimit(24 * 1024, values=16, seconds=10.0)
# Of anonymous callers, so apart from the operators' own bodies.
SIGN_IN_BODIES: Final = BodyReadLimits(
    anonymous=128, per_address=32, bytes_total=8 * MIB, bytes_per_caller=MIB
)
SIGN_IN_SECONDS: Final = 20.0
# Hexadecimal digits of the digest that is the session's id.
_ID_DIGITS: Final = 32


class SignIn(operator_endpoint.Body):
    """Request for a session."""

    id_token: str = Field(min_length=1, max_length=id_token.LARGEST)
    #: Of the request to the issuer, if that had one.
    nonce: str | None = Field(default=None, max_length=250)


@dataclass(frozen=True, slots=True)
class SessionsApi:
    """Endpoint ``sessions``. Without rules there is no sign-in."""

    rules: SignInRules | None
    keys: KeySet | None
    bodies: BodyReader
    threads: ThreadPool
    clock: Callable[[], datetime]

    async def describe(self, _request: Request) -> Response:
        """Return the issuer and client id that `airbridge login` signs in with. Neither is a secret."""
        rules = self._rules()
        return JSONResponse({"issuer": rules.issuer, "client_id": rules.audience, "scope": rules.scope})

    async def create(self, request: Request) -> Response:
        """Verify an ID token and return a new session's access token."""
        rules = self._rules()
        body = await self.bodies.parse(request, SignIn, SIGN_IN_BODY)
        header = id_token.read_header(body.id_token)
        assert self.keys is not None  # noqa: S101 - with rules there are keys
        key = await self.keys.find(header.kid)
        return JSONResponse(
            await self.threads.run(self._open, rules, body, header, key, request.scope[PEER].address)
        )

    def _rules(self) -> SignInRules:
        if self.rules is None:
            raise operator_endpoint.missing(
                "operators do not sign in here: [airbridge] oidc_file is not set; use an access token"
            )
        return self.rules

    def _open(
        self, rules: SignInRules, body: SignIn, header: Header, key: VerificationKey, address: str
    ) -> dict[str, Any]:
        # Before a database connection: a forged token costs a signature's check.
        user = id_token.verify(body.id_token, header, key, rules, nonce=body.nonce, now=self.clock())
        try:
            with unit() as work:
                issued = _issue(work.session, rules, user, address)
                return {
                    "token": issued.text,
                    "id": issued.row.id,
                    "owner": issued.row.owner,
                    "scopes": issued.row.scopes,
                    "expires_at": issued.row.expires_at.isoformat(),
                }
        except sql.IntegrityError as error:
            # Another request, of another gateway perhaps, has used it meanwhile.
            raise _used() from error


def _issue(session: Any, rules: SignInRules, user: Identity, address: str) -> issuing.Issued:
    # The session's id is the ID token's digest, so that the table of tokens itself admits no second use.
    session_id = user.digest[:_ID_DIGITS]
    if tokens.get(session, session_id) is not None:
        raise _used()
    issued = issuing.create_access(
        session,
        scopes=user.scopes,
        owner=user.owner,
        actor=f"operator:{user.owner}",
        ttl=timedelta(minutes=rules.session_minutes),
        address=address,
        token_id=session_id,
        rule="sign-in",
    )
    audit.record(
        session,
        "operator.signed_in",
        "granted",
        f"operator:{user.owner}",
        address=address,
        rule="sign-in",
        token=session_id,
        issuer=rules.issuer,
        subject=user.subject,
        email=user.email,
        expires_at=issued.row.expires_at.isoformat(),
    )
    return issued


def _used() -> Refused:
    return Refused(
        401, RefusalReason.FORBIDDEN, "the ID token was used before; sign in again", rule="sign-in"
    )
