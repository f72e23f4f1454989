"""Signed snapshots: an Ed25519 signature over bundle name, version and publisher.

A signature is ``{"v": 1, "kid": ..., "publisher": ..., "sig": base64url}`` as JSON text. The version is the digest of the
content, so the signature covers the content too, and an archive of one bundle is not good for another.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Final, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from airbridge.core.exceptions import BundleError, UnknownKey
from airbridge.core.protocol import VerifyKey
from airbridge.core.signing import decode, encode, public_key, public_verify_key, read_private_key

# File of the key in the secrets directory.
PUBLISH_KEY: Final = "publish.key"

SIGNATURE_VERSION: Final = 1
MAX_SIGNATURE_BYTES: Final = 2_048
_DOMAIN: Final = b"airbridge-snapshot-v1\x00"


class SnapshotSigner:
    """Signs snapshots. Lives where they are published: the dag-processor and the gateway."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.verify_key = public_verify_key(key.public_key())

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Load a PKCS#8 PEM. Raises `ValueError` if it is not an unencrypted Ed25519 private key."""
        return cls(read_private_key(pem, "publishing key"))

    def sign(self, bundle: str, version: str, publisher: str) -> str:
        """Return the signature (JSON text)."""
        kid = self.verify_key.kid
        signature = self._key.sign(_signed_bytes(kid, bundle, version, publisher))
        return json.dumps(
            {"v": SIGNATURE_VERSION, "kid": kid, "publisher": publisher, "sig": encode(signature)},
            separators=(",", ":"),
        )


class SnapshotVerifier:
    """Verifies snapshots against a set of keys; several are valid at once while a key is rotated."""

    def __init__(self, keys: Iterable[VerifyKey]) -> None:
        self._keys: Mapping[str, Ed25519PublicKey] = {key.kid: public_key(key) for key in keys}

    @property
    def required(self) -> bool:
        """Return whether snapshots must be signed. A control plane older than signatures publishes no keys, so nothing is required of it."""
        return bool(self._keys)

    def check(self, bundle: str, version: str, signature: str | None) -> str:
        """Return the publisher. Raises `BundleError` with the reason if the snapshot must not be used; `UnknownKey` is one."""
        if signature is None:
            raise BundleError(f"{bundle} {version} has no signature: the control plane did not publish it")
        kid, publisher, signed = _parse(signature)
        key = self._keys.get(kid)
        if key is None:
            raise UnknownKey(f"{bundle} {version} is signed by unknown key {kid[:64]!r}")
        try:
            key.verify(signed, _signed_bytes(kid, bundle, version, publisher))
        except InvalidSignature as error:
            raise BundleError(f"the signature of {bundle} {version} does not match key {kid!r}") from error
        return publisher


def key_of(signature: str) -> str:
    """Return the id of the key that a signature names; empty if it is none."""
    try:
        return _parse(signature)[0]
    except BundleError:
        return ""


def _parse(text: str) -> tuple[str, str, bytes]:
    try:
        data = json.loads(text[:MAX_SIGNATURE_BYTES])
        known = data["v"] == SIGNATURE_VERSION and set(data) == {"v", "kid", "publisher", "sig"}
        parsed = str(data["kid"]), str(data["publisher"]), decode(data["sig"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BundleError(f"not a snapshot's signature: {error}") from error
    if not known:
        raise BundleError("not a snapshot's signature of version 1")
    return parsed


def _signed_bytes(kid: str, bundle: str, version: str, publisher: str) -> bytes:
    content = {"bundle": bundle, "kid": kid, "publisher": publisher, "version": version}
    return _DOMAIN + json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()
