"""Public keys of the issuer (JWKS): parsed with bounds, each usable with its own algorithms alone."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.exceptions import InvalidKeyError

from airbridge.core import json_bounds

log = structlog.get_logger()

LARGEST: Final = 256 * 1024
MOST_KEYS: Final = 64
MOST_VALUES: Final = 5_000
DEEPEST: Final = 8
RSA_BITS: Final = range(2_048, 8_193)
# Algorithms by type and curve of key. None of them is symmetric: a public key never verifies an HMAC.
ALGORITHMS: Final[Mapping[tuple[str, str | None], tuple[str, ...]]] = {
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
ACCEPTED: Final = frozenset(name for names in ALGORITHMS.values() for name in names)
_READERS: Final[Mapping[str, Callable[[dict[str, Any]], Any]]] = {
    "RSA": RSAAlgorithm.from_jwk,
    "EC": ECAlgorithm.from_jwk,
    "OKP": OKPAlgorithm.from_jwk,
}


class BadKeys(ValueError):  # noqa: N818 - names the document
    """The document is no JWKS, or larger than one may be."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """Public key of the issuer, and the algorithms that it may verify."""

    public: Any
    algorithms: tuple[str, ...]


def document(content: bytes) -> dict[str, Any]:
    """Return a JSON object of the issuer. Raises `BadKeys` for anything else."""
    try:
        json_bounds.check(content, MOST_VALUES, DEEPEST)
        found = json.loads(content)
    except ValueError as error:
        raise BadKeys(f"not JSON within bounds: {error}") from error
    if not isinstance(found, dict):
        raise BadKeys("not a JSON object")
    return found


def parse(content: bytes) -> dict[str, VerificationKey]:
    """Return the usable keys of a JWKS by their ids. Raises `BadKeys` if there are none.

    Keys for encryption, of other types or sizes, and ids that are given twice are left out.
    """
    listed = document(content).get("keys")
    if not isinstance(listed, list) or len(listed) > MOST_KEYS:
        raise BadKeys(f"no list 'keys' of at most {MOST_KEYS} keys")
    named = [each for each in listed if isinstance(each, dict) and isinstance(each.get("kid"), str)]
    times = Counter(each["kid"] for each in named)
    found = {each["kid"]: key for each in named if times[each["kid"]] == 1 and (key := _key(each))}
    if not found:
        raise BadKeys("no key that verifies signatures")
    return found


def _key(jwk: Mapping[str, Any]) -> VerificationKey | None:
    kind, curve = jwk.get("kty"), jwk.get("crv")
    if not isinstance(kind, str) or not isinstance(curve, str | None):
        return None
    algorithms = ALGORITHMS.get((kind, curve), ())
    if "alg" in jwk:
        algorithms = tuple(name for name in algorithms if name == jwk["alg"])
    if not algorithms or jwk.get("use", "sig") != "sig" or "d" in jwk:
        return None
    try:
        public: Any = _READERS[kind](dict(jwk))
    except (InvalidKeyError, ValueError, TypeError, KeyError) as error:
        log.warning("sign_in.key_unreadable", kid=str(jwk.get("kid"))[:64], why=str(error)[:200])
        return None
    if isinstance(public, RSAPublicKey) and public.key_size not in RSA_BITS:
        return None
    return VerificationKey(public, algorithms)
