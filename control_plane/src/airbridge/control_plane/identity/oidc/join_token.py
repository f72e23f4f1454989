"""Verification of an issuer's token as a proof to join: whose it is, for how long, and the rule that it meets."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import jwt

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.identity.oidc.issuers import JoinIssuer, Rule
from airbridge.control_plane.sign_in import id_token
from airbridge.control_plane.sign_in.id_token import Header
from airbridge.control_plane.sign_in.verification_keys import VerificationKey
from airbridge.core.protocol import EnrolRequest, RefusalReason

LEEWAY: Final = id_token.LEEWAY


@dataclass(frozen=True, slots=True)
class Claimed:
    """Contents of a token that nothing has verified yet."""

    header: Header
    issuer: str


@dataclass(frozen=True, slots=True)
class ProvenToken:
    """A verified token that meets a rule for the request's pool."""

    issuer: str
    method: str
    subject: str
    #: Name that the worker must have, or end with; None: any.
    worker: str | None
    #: SHA-256 of its signed part: one name may use it.
    digest: str
    #: How long it is accepted still.
    lasts: timedelta


def read(token: str, method: str) -> Claimed:
    """Return the issuer and key that a token names. Raises `Refused` for one that no issuer could have signed."""
    try:
        header = id_token.read_header(token)
    except Refused as error:
        raise refuse(method, error.detail) from error
    # `read_header` has checked that it is a JSON object within bounds.
    segment = token.split(".")[1]
    issuer = json.loads(base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))).get("iss")
    if not isinstance(issuer, str):
        raise refuse(method, "the token names no issuer (iss)")
    return Claimed(header, issuer)


def verify(
    token: str,
    header: Header,
    key: VerificationKey,
    issuer: JoinIssuer,
    request: EnrolRequest,
    *,
    now: datetime,
) -> ProvenToken:
    """Return the holder of a token. Raises `Refused` unless it is valid now and meets a rule of the requested pool."""
    if header.algorithm not in key.algorithms:
        raise refuse(
            issuer.method,
            f"the token has algorithm {header.algorithm}, which is not that of key {header.kid[:64]!r}",
        )
    claims = _claims(token, header, key, issuer)
    expires = _check_times(claims, issuer, now)
    rule = _rule(claims, issuer, request)
    try:
        worker = rule.name_of(claims)
    except ValueError as error:
        raise refuse(issuer.method, f"the token admits no worker: {error}") from error
    return ProvenToken(
        issuer=issuer.name,
        method=issuer.method,
        subject=str(claims["sub"])[:250],
        worker=worker,
        digest=hashlib.sha256(token.rpartition(".")[0].encode()).hexdigest(),
        lasts=expires + LEEWAY - now,
    )


def _claims(token: str, header: Header, key: VerificationKey, issuer: JoinIssuer) -> dict[str, Any]:
    try:
        claims = id_token.decode(token, header, key, audience=issuer.audience, issuer=issuer.issuer)
    except jwt.InvalidSignatureError as error:
        raise refuse(
            issuer.method,
            f"the token's signature is not of key {header.kid[:64]!r} of issuer {issuer.name!r}",
        ) from error
    except jwt.InvalidAudienceError as error:
        raise refuse(issuer.method, f"the token is not for audience {issuer.audience!r}") from error
    except jwt.PyJWTError as error:
        raise refuse(issuer.method, f"the token is malformed: {error}"[:300]) from error
    if isinstance(claims["aud"], list) and len(claims["aud"]) > 1:
        # Each of the others could use it here.
        raise refuse(
            issuer.method, f"the token is for other audiences too; it must be for {issuer.audience!r} alone"
        )
    return claims


def _check_times(claims: Mapping[str, Any], issuer: JoinIssuer, now: datetime) -> datetime:
    """Return when the token expires."""
    expires, issued = _time(claims, "exp", issuer), _time(claims, "iat", issuer)
    at, leeway = now.timestamp(), LEEWAY.total_seconds()
    if expires <= at - leeway:
        raise refuse(issuer.method, f"the token expired {at - expires:.0f} s ago by the gateway's clock")
    if issued > at + leeway or ("nbf" in claims and _time(claims, "nbf", issuer) > at + leeway):
        raise refuse(issuer.method, "the token is not valid yet by the gateway's clock")
    if expires - issued > issuer.max_token_minutes * 60:
        raise refuse(
            issuer.method,
            f"the token is valid for {(expires - issued) / 60:.0f} minutes; issuer {issuer.name!r} allows "
            f"{issuer.max_token_minutes:g} (max_token_minutes)",
        )
    return now + timedelta(seconds=expires - at)


def _time(claims: Mapping[str, Any], name: str, issuer: JoinIssuer) -> float:
    value = id_token.time_of(claims, name)
    if value is None:
        raise refuse(issuer.method, f"the token has no time in {name}")
    return value


def _rule(claims: Mapping[str, Any], issuer: JoinIssuer, request: EnrolRequest) -> Rule:
    place = (request.region, request.pool)
    rules: tuple[Rule, ...] = issuer.rules
    for rule in rules:
        if (rule.region, rule.pool) == place and rule.admits(claims):
            return rule
    raise refuse(
        issuer.method,
        f"no rule of issuer {issuer.name!r} admits {str(claims['sub'])[:250]!r} to pool {request.pool}@{request.region}",
    )


def refuse(method: str, detail: str) -> Refused:
    """Return the denial of a join by token of an issuer."""
    return Refused(403, RefusalReason.FORBIDDEN, detail, rule=f"join method {method}")
