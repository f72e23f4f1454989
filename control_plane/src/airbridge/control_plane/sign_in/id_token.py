"""Verification of an ID token (OpenID Connect Core, 3.1.3.7), stricter than a library's defaults.

The header is read before anything is verified: it names the key, and nothing else in it is used. Keys and URLs in it are
ignored, extensions (``crit``, ``b64``) refused.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import jwt

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.sign_in.rules import IssuerRules
from airbridge.control_plane.sign_in.verification_keys import ACCEPTED, VerificationKey
from airbridge.core import json_bounds
from airbridge.core.protocol import RefusalReason

LARGEST: Final = 16 * 1024
MOST_VALUES: Final = 1_000
DEEPEST: Final = 8
# Of the clocks of issuer and gateway.
LEEWAY: Final = timedelta(seconds=60)
# Seconds since 1970.
LATEST: Final = 1e11
# Limits what a leaked token is good for.
OLDEST: Final = timedelta(minutes=10)
OWNER_PREFIX: Final = "oidc:"
# No slash: `ann/ci` is a child's owner. No wildcard of scopes either.
_OWNER: Final = re.compile(r"[A-Za-z0-9._@+|:=~-]{1,200}")
_TOKEN: Final = re.compile(r"[A-Za-z0-9_-]{1,12000}\.[A-Za-z0-9_-]{1,12000}\.[A-Za-z0-9_-]{1,2000}", re.ASCII)
_KID: Final = re.compile(r"[\x21-\x7e]{1,200}")


@dataclass(frozen=True, slots=True)
class Header:
    """Key and algorithm that a token names."""

    kid: str
    algorithm: str


@dataclass(frozen=True, slots=True)
class Identity:
    """Verified user of the issuer."""

    owner: str
    scopes: list[str]
    subject: str
    email: str | None
    #: Of the signed part of the token, by which a second use is noticed.
    digest: str


def read_header(token: str) -> Header:
    """Return a token's header, unverified. Raises `Refused` (401) for one that no key of the issuer could verify."""
    if len(token) > LARGEST or not _TOKEN.fullmatch(token):
        raise _refuse("is not a signed JWT of at most 16 KiB")
    head, payload, _ = token.split(".")
    header = _object(head)
    # Decoded again by the library, and bounded for it here.
    _object(payload)
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or algorithm not in ACCEPTED:
        raise _refuse(
            f"has algorithm {str(algorithm)[:32]!r}; it must be one of {', '.join(sorted(ACCEPTED))}"
        )
    if not isinstance(kid, str) or not _KID.fullmatch(kid):
        raise _refuse("names no key (kid)")
    if "crit" in header or "b64" in header:
        raise _refuse("has extensions in its header (crit, b64)")
    kind = header.get("typ", "JWT")
    if not isinstance(kind, str) or kind.upper() not in {"JWT", "ID+JWT"}:
        raise _refuse(f"is a {str(kind)[:32]!r}, not an ID token")
    return Header(kid, algorithm)


def verify(
    token: str, header: Header, key: VerificationKey, rules: IssuerRules, *, nonce: str | None, now: datetime
) -> Identity:
    """Return the user of an ID token. Raises `Refused`: 401 if it is not valid, 403 if none of its groups may sign in."""
    if header.algorithm not in key.algorithms:
        raise _refuse(f"has algorithm {header.algorithm}, which is not that of key {header.kid[:64]!r}")
    claims = _claims(token, header, key, rules)
    _check_times(claims, now)
    _check_party(claims, rules)
    _check_nonce(claims, rules, nonce)
    owner = _owner(claims, rules)
    scopes = rules.scopes_of(claims)
    if not scopes:
        raise Refused(
            403,
            RefusalReason.FORBIDDEN,
            f"{owner} is in none of the groups that may sign in",
            rule="sign-in groups",
        )
    email = claims.get("email")
    signed = token.rpartition(".")[0]
    return Identity(
        owner=owner,
        scopes=scopes,
        subject=str(claims["sub"]),
        email=email[:250] if isinstance(email, str) else None,
        digest=hashlib.sha256(signed.encode()).hexdigest(),
    )


def _claims(token: str, header: Header, key: VerificationKey, rules: IssuerRules) -> dict[str, Any]:
    try:
        return decode(token, header, key, audience=rules.audience, issuer=rules.issuer)
    except jwt.InvalidSignatureError as error:
        raise _refuse(f"has a signature that is not of key {header.kid[:64]!r}") from error
    except jwt.InvalidIssuerError as error:
        raise _refuse(f"is not of issuer {rules.issuer}") from error
    except jwt.InvalidAudienceError as error:
        raise _refuse(f"is not for audience {rules.audience!r}") from error
    except jwt.PyJWTError as error:
        raise _refuse(f"is malformed: {error}"[:200]) from error


def decode(token: str, header: Header, key: VerificationKey, *, audience: str, issuer: str) -> dict[str, Any]:
    """Return the claims of a token whose signature, audience and issuer are right. Raises `jwt.PyJWTError`.

    Times are not checked: the caller does, by the gateway's clock.
    """
    claims: dict[str, Any] = jwt.decode(
        token,
        key.public,
        algorithms=[header.algorithm],
        audience=audience,
        issuer=issuer,
        options={
            "require": ["exp", "iat", "iss", "aud", "sub"],
            "verify_exp": False,
            "verify_iat": False,
            "verify_nbf": False,
        },
    )
    return claims


def _check_times(claims: Mapping[str, Any], now: datetime) -> None:
    expires, issued = _time(claims, "exp"), _time(claims, "iat")
    at, leeway = now.timestamp(), LEEWAY.total_seconds()
    if expires <= at - leeway:
        raise _refuse(f"expired {at - expires:.0f} s ago by the gateway's clock; sign in again")
    if issued > at + leeway or ("nbf" in claims and _time(claims, "nbf") > at + leeway):
        raise _refuse("is not valid yet by the gateway's clock")
    if issued < at - OLDEST.total_seconds() - leeway:
        raise _refuse(
            f"was issued {at - issued:.0f} s ago; it must be at most {OLDEST.total_seconds():g} s old"
        )


def _check_party(claims: Mapping[str, Any], rules: IssuerRules) -> None:
    """Refuse a token that was issued to another client, or to several."""
    several = isinstance(claims["aud"], list) and len(claims["aud"]) > 1
    if claims.get("azp", None if several else rules.audience) != rules.audience:
        raise _refuse(f"was issued to another client (azp) than {rules.audience!r}")


def _check_nonce(claims: Mapping[str, Any], rules: IssuerRules, nonce: str | None) -> None:
    given = claims.get("nonce")
    if given is None and not rules.require_nonce:
        return
    if not isinstance(given, str) or not nonce or not hmac.compare_digest(given.encode(), nonce.encode()):
        raise _refuse("was issued for another sign-in (nonce)")


def _owner(claims: Mapping[str, Any], rules: IssuerRules) -> str:
    name = claims.get(rules.owner_claim)
    if rules.owner_claim == "email":
        if claims.get("email_verified") is not True:
            raise _refuse("has an email address that the issuer has not verified")
        # Issuers write the same address in different ways, and one person must not be two owners.
        name = name.lower() if isinstance(name, str) else name
    if not isinstance(name, str) or not _OWNER.fullmatch(name):
        raise _refuse(f"has no {rules.owner_claim} that can be an owner; expected {_OWNER.pattern}")
    return OWNER_PREFIX + name


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = time_of(claims, name)
    if value is None:
        raise _refuse(f"has no time in {name}")
    return value


def time_of(claims: Mapping[str, Any], name: str) -> float | None:
    """Return a claim as seconds since 1970; None if it is no time."""
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) and abs(value) <= LATEST else None


def _object(segment: str) -> dict[str, Any]:
    try:
        content = base64.urlsafe_b64decode(segment + "=" * (-len(segment) % 4))
        json_bounds.check(content, MOST_VALUES, DEEPEST)
        found = json.loads(content)
    except (ValueError, binascii.Error) as error:
        raise _refuse("is malformed: its parts must be JSON objects within bounds") from error
    if not isinstance(found, dict):
        raise _refuse("is malformed: its parts must be JSON objects within bounds")
    return found


def _refuse(detail: str) -> Refused:
    return Refused(401, RefusalReason.FORBIDDEN, f"the ID token {detail}", rule="sign-in")
