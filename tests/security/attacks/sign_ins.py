"""Attacks on the sign-in of operators, by a caller who has the issuer's public keys, old tokens and tokens for others."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm
from tests.integration.gateway.world import World
from tests.support.oidc_issuer import AUDIENCE, Issuer, segment

SESSIONS = "/operator/v1/sessions"


@dataclass
class SignIns:
    """A gateway and the issuer that it trusts."""

    world: World
    issuer: Issuer

    def post(self, token: Any, **more: Any) -> httpx.Response:
        with self.world.operator(None) as stranger:
            return stranger.post(SESSIONS, json={"id_token": token, **more})

    def sessions(self) -> int:
        """Sessions so far."""
        return len(self.world.audited("operator.signed_in"))


Forge = Callable[[Issuer], str]


def _hmac_with_public_key(issuer: Issuer) -> Iterator[str]:
    """HS256 with the public key's bytes as secret: the classic confusion."""
    public = issuer.key.public_key()
    pem = public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for secret in (pem, pem.strip(), json.dumps(json.loads(RSAAlgorithm.to_jwk(public))).encode()):
        for algorithm, digest in (("HS256", hashlib.sha256), ("HS512", hashlib.sha512)):
            signed = f"{segment({'alg': algorithm, 'kid': 'rsa-1'})}.{segment(issuer.claims())}"
            yield f"{signed}.{segment(hmac.digest(secret, signed.encode(), digest().name))}"


def _unsigned(issuer: Issuer) -> Iterator[str]:
    for name in ("none", "None", "NONE", "nOnE", "", None, 1, ["RS256"]):
        signed = f"{segment({'alg': name, 'kid': 'rsa-1'})}.{segment(issuer.claims())}"
        yield f"{signed}."
        yield f"{signed}.{segment(b'x')}"


def _other_key(issuer: Issuer) -> Iterator[str]:
    own = rsa.generate_private_key(65_537, 2_048)
    jwk = json.loads(RSAAlgorithm.to_jwk(own.public_key())) | {"kid": "rsa-1"}
    yield issuer.token(key=own)
    # The header brings its own key, or says where to get it.
    yield issuer.token(key=own, header={"jwk": jwk})
    yield issuer.token(key=own, header={"jku": f"{issuer.url}/stranger"})
    yield issuer.token(key=own, header={"x5u": f"{issuer.url}/stranger"})
    yield issuer.token(key=own, header={"kid": "../../etc/passwd"})
    yield issuer.token(key=own, header={"kid": "rsa-2"})
    yield issuer.token(key=ec.generate_private_key(ec.SECP256R1()), algorithm="ES256", header={"kid": "ec-1"})
    # A key of the issuer, and the algorithm of another.
    yield issuer.token(key=issuer.key, algorithm="RS256", header={"kid": "ec-1"})
    yield issuer.token(key=issuer.curve_key, algorithm="ES256", header={"kid": "rsa-1"})


def _altered(issuer: Issuer) -> Iterator[str]:
    head, _, signature = issuer.token().split(".")
    yield f"{head}.{segment(issuer.claims(sub='root'))}.{signature}"
    yield f"{head}.{segment(issuer.claims())}.{segment(b'')}"


def _header(issuer: Issuer) -> Iterator[str]:
    for kid in (None, "", 5, ["rsa-1"], "x" * 201, "rsa\n1"):
        signed = f"{segment({'alg': 'RS256', 'kid': kid})}.{segment(issuer.claims())}"
        yield f"{signed}.{segment(issuer.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"
    yield issuer.token(header={"crit": ["exp"], "exp": 1})
    yield issuer.token(header={"typ": "at+jwt"})
    yield issuer.token(header={"typ": "logout+jwt"})
    for extension in ({"b64": False}, {"b64": True}, {"typ": 5}, {"typ": ["JWT"]}):
        signed = f"{segment({'alg': 'RS256', 'kid': 'rsa-1', **extension})}.{segment(issuer.claims())}"
        yield f"{signed}.{segment(issuer.key.sign(signed.encode(), padding.PKCS1v15(), hashes.SHA256()))}"


def _party(issuer: Issuer) -> Iterator[str]:
    for name in ("https://evil.example", issuer.url + "/", issuer.url.upper(), "", None):
        yield issuer.token(iss=name)
    for audience in ("other", AUDIENCE + "x", AUDIENCE.upper(), [], ["other"], ["other", AUDIENCE], None):
        yield issuer.token(aud=audience)
    yield issuer.token(aud=[AUDIENCE, "other"], azp="other")
    yield issuer.token(azp="other")


def _times(issuer: Issuer) -> Iterator[str]:
    now = int(time.time())
    yield issuer.token(exp=now - 61)
    yield issuer.token(exp=None)
    yield issuer.token(iat=None)
    yield issuer.token(iat=now - 700, exp=now + 10_000)
    yield issuer.token(iat=now + 100)
    yield issuer.token(nbf=now + 100)
    for wrong in ("9999999999", True, 1e300, [now + 300], {"a": 1}):
        yield issuer.token(exp=wrong)


def _owner(issuer: Issuer) -> Iterator[str]:
    for subject in (None, "", "ann/ci", "a b", "*", "x" * 201, "ann\n", "änn", 7, ["ann"]):
        yield issuer.token(sub=subject)


def _nonce(issuer: Issuer) -> Iterator[str]:
    yield issuer.token(nonce="of-another-sign-in")
    yield issuer.token(nonce="")
    yield issuer.token(nonce=["x"])


def _garbage(_issuer: Issuer) -> Iterator[str]:
    yield from ("x", "a.b", "a.b.c", "a.b.c.d", "....", "é.é.é", "abo_token", " ")
    yield f"{segment([])}.{segment([])}.{segment(b'x')}"
    deep = b'{"alg":' + b"[" * 3_000
    yield f"{segment(deep)}.{segment({})}.{segment(b'x')}"
    honest = segment({"alg": "RS256", "kid": "rsa-1"})
    yield f"{honest}.{segment(deep)}.{segment(b'x')}"
    yield f"{honest}.{segment(b'{' + b'1,' * 4_000)}.{segment(b'x')}"
    yield f"{honest}.{'A' * 12_001}.{segment(b'x')}"
    yield f"{honest}.{segment(bytes(range(128, 256)))}.{segment(b'x')}"


# Each yields ID tokens that must give no session.
FORGERIES: tuple[Callable[[Issuer], Iterator[str]], ...] = (
    _hmac_with_public_key,
    _unsigned,
    _other_key,
    _altered,
    _header,
    _party,
    _times,
    _owner,
    _nonce,
    _garbage,
)
