"""Worker access tokens: short-lived JWTs, signed with Ed25519 and bound to the worker's certificate (RFC 8705)."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from airbridge.control_plane.exceptions import InvalidScope, Refused
from airbridge.control_plane.identity.certificates import PeerCertificate
from airbridge.control_plane.identity.scopes import Scopes
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.core.protocol import RefusalReason, VerifyKey
from airbridge.core.signing import public_key, public_verify_key

ALGORITHM = "EdDSA"
ISSUER = "airbridge"
AUDIENCE = "airbridge-gateway"
MAX_TOKEN_BYTES = 8_192
# Cache of verified tokens: larger than a gateway's connection limit, with room for each token's replacement.
MAX_CACHED = 20_000


@dataclass(frozen=True, slots=True)
class _VerifiedToken:
    scopes: Scopes
    subject: str
    binding: str
    expires_at: float
    #: True if the newest key signed it.
    current: bool


def worker_scopes(name: WorkerName) -> list[str]:
    """Return the scopes of an enrolled worker: its own queue's work, and the Airflow calls of its tasks.

    `policy` narrows the connections, variables and XComs of each call further.
    """
    return [
        f"work:claim queue={name.queue}",
        f"work:report worker={name.worker}",
        f"worker:heartbeat worker={name.worker}",
        f"code:read region={name.region}",
        f"logs:write worker={name.worker}",
        "task_instances:*",
        "connections:read",
        "variables:*",
        "xcoms:*",
        "assets:read",
        "dag_runs:*",
    ]


class AccessTokens:
    """Mints and verifies worker access tokens."""

    def __init__(
        self,
        key: Ed25519PrivateKey,
        old_keys: Iterable[VerifyKey] = (),
        remembered: int = MAX_CACHED,
    ) -> None:
        """Sign with `key`; accept tokens signed by it or by one of `old_keys`."""
        self._key = key
        newest = public_verify_key(key.public_key())
        self._kid = newest.kid
        self._keys = {each.kid: public_key(each) for each in (newest, *old_keys)}
        self._remembered = remembered
        self._seen: OrderedDict[str, _VerifiedToken] = OrderedDict()
        self._derived: dict[bytes, bytes] = {}

    @property
    def key_ids(self) -> list[str]:
        """Ids of the keys whose tokens are accepted, newest first."""
        return list(self._keys)

    def mint(self, name: WorkerName, certificate: PeerCertificate, now: datetime, lifetime: timedelta) -> str:
        """Return a token for `name` that only the holder of `certificate` can use."""
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": name.uri,
            "iat": int(now.timestamp()),
            "exp": int((now + lifetime).timestamp()),
            "cnf": {"x5t#S256": certificate.x5t_s256},
            "scopes": worker_scopes(name),
        }
        return jwt.encode(claims, self._key, algorithm=ALGORITHM, headers={"kid": self._kid})

    def derived_key(self, purpose: bytes) -> bytes:
        """Return a secret for another purpose, the same in every gateway that has this signing key."""
        if purpose not in self._derived:
            seed = self._key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
            self._derived[purpose] = HKDF(SHA256(), length=32, salt=None, info=purpose).derive(seed)
        return self._derived[purpose]

    def verify(self, token: str, name: WorkerName, certificate: PeerCertificate, now: datetime) -> Scopes:
        """Return the token's scopes. Raises `Refused` (401) if it is not a live token of this certificate."""
        seen = self._seen.get(token)
        if seen is None:
            seen = self._open(token)
            self._cache(token, seen)
        if now.timestamp() >= seen.expires_at:
            raise _refused("the access token has expired")
        if not hmac.compare_digest(seen.binding, certificate.x5t_s256):
            raise _refused("the access token is bound to another certificate")
        if not hmac.compare_digest(seen.subject, name.uri):
            raise _refused("the access token names another worker")
        return seen.scopes

    def is_current(self, token: str) -> bool:
        """Return whether the newest key signed a token that `verify` has just accepted; if not, its holder should renew."""
        seen = self._seen.get(token)
        return seen is None or seen.current

    def _open(self, token: str) -> _VerifiedToken:
        if len(token) > MAX_TOKEN_BYTES:
            raise _refused("the access token is too long")
        try:
            kid = _text(jwt.get_unverified_header(token).get("kid"))
            claims = jwt.decode(
                token,
                self._keys[kid],
                algorithms=[ALGORITHM],
                audience=AUDIENCE,
                issuer=ISSUER,
                # verify() checks expiry, against the clock that it is given.
                options={"require": ["exp", "iat", "sub", "cnf"], "verify_exp": False, "verify_iat": False},
            )
            return _VerifiedToken(
                scopes=Scopes.parse(claims["scopes"]),
                subject=_text(claims["sub"]),
                binding=_text(claims["cnf"]["x5t#S256"]),
                expires_at=float(claims["exp"]),
                current=kid == self._kid,
            )
        except (jwt.InvalidTokenError, InvalidScope, KeyError, TypeError, ValueError) as error:
            raise _refused("the access token is not valid here") from error

    def _cache(self, token: str, seen: _VerifiedToken) -> None:
        """Cache a verified token: checking its signature costs more than the rest of a heartbeat."""
        self._seen[token] = seen
        if len(self._seen) > self._remembered:
            self._seen.popitem(last=False)


def _refused(detail: str) -> Refused:
    return Refused(401, RefusalReason.FORBIDDEN, detail, rule="access token")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("text expected")
    return value
