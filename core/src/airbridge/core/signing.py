"""Signed work items: an Ed25519 signature over the exact bytes that were sent.

An envelope is ``{"v": 1, "kid": ..., "payload": base64url, "sig": base64url}`` as JSON text. The
signature covers a domain separator, the key id and the payload bytes, so neither may be changed.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Protocol, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from pydantic import ValidationError

from airbridge.core.exceptions import InvalidEnvelope
from airbridge.core.protocol import RefusalReason, VerifyKey, WorkItem

ENVELOPE_VERSION = 1
MAX_ENVELOPE_BYTES = 16_384
_DOMAIN = b"airbridge-work-item-v1\x00"


class Signer:
    """Signs work items. Lives in the control plane only."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.verify_key = public_verify_key(key.public_key())

    @classmethod
    def generate(cls) -> Self:
        """Return a signer with a new key."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Load a PKCS#8 PEM. Raises `ValueError` if it is not an unencrypted Ed25519 private key."""
        return cls(read_private_key(pem, "work-item signing key"))

    def to_pem(self) -> bytes:
        """Return the private key as unencrypted PKCS#8 PEM."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def sign(self, item: WorkItem) -> str:
        """Return the envelope (JSON text) to put on the queue."""
        payload = item.model_dump_json().encode()
        kid = self.verify_key.kid
        envelope = {
            "v": ENVELOPE_VERSION,
            "kid": kid,
            "payload": encode(payload),
            "sig": encode(self._key.sign(_signed_bytes(kid, payload))),
        }
        return json.dumps(envelope, separators=(",", ":"))


class Verifier:
    """Verifies work items against a set of keys; several are valid at once while a key is rotated."""

    def __init__(self, keys: Iterable[VerifyKey]) -> None:
        self._keys: Mapping[str, Ed25519PublicKey] = {key.kid: public_key(key) for key in keys}

    def open(self, envelope: str) -> WorkItem:
        """Return the work item inside, or raise `InvalidEnvelope` with the reason."""
        if len(envelope) > MAX_ENVELOPE_BYTES:
            raise InvalidEnvelope(
                RefusalReason.MALFORMED, f"{len(envelope)} bytes, more than {MAX_ENVELOPE_BYTES}"
            )
        kid, payload, signature = _parse(envelope)
        key = self._keys.get(kid)
        if key is None:
            raise InvalidEnvelope(RefusalReason.BAD_SIGNATURE, f"signed by unknown key {kid[:64]!r}")
        try:
            key.verify(signature, _signed_bytes(kid, payload))
        except InvalidSignature as error:
            raise InvalidEnvelope(
                RefusalReason.BAD_SIGNATURE, f"signature does not match key {kid!r}"
            ) from error
        try:
            return WorkItem.model_validate_json(payload)
        except ValidationError as error:
            raise InvalidEnvelope(
                RefusalReason.MALFORMED, f"signed payload is no work item: {error}"
            ) from error


def claimed_item(envelope: str) -> tuple[str, int] | None:
    """Return the item id and epoch that an envelope claims to be of, unverified: for messages to operators only."""
    try:
        _, payload, _ = _parse(envelope)
        item = WorkItem.model_validate_json(payload)
    except (InvalidEnvelope, ValidationError):
        return None
    return str(item.item_id), item.epoch


class WirePublicKey(Protocol):
    """Public key in wire form."""

    @property
    def public_key(self) -> str:
        """Ed25519, raw, base64url."""


def read_private_key(pem: bytes, what: str) -> Ed25519PrivateKey:
    """Load a PKCS#8 PEM. Raises `ValueError` if it is not an unencrypted Ed25519 private key."""
    key = load_pem_private_key(pem, password=None)
    if not isinstance(key, Ed25519PrivateKey):
        raise ValueError(f"the {what} is {type(key).__name__}; it must be Ed25519")
    return key


def public_key(key: WirePublicKey) -> Ed25519PublicKey:
    """Return the key that a wire form stands for. Raises `ValueError` if it is none."""
    return Ed25519PublicKey.from_public_bytes(decode(key.public_key))


def public_verify_key(key: Ed25519PublicKey) -> VerifyKey:
    """Return the wire form of a public key; its id is the first 16 hex digits of its SHA-256."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return VerifyKey(kid=hashlib.sha256(raw).hexdigest()[:16], public_key=encode(raw))


def _parse(envelope: str) -> tuple[str, bytes, bytes]:
    try:
        data = json.loads(envelope)
        if data["v"] != ENVELOPE_VERSION or set(data) != {"v", "kid", "payload", "sig"}:
            raise InvalidEnvelope(RefusalReason.MALFORMED, "not a version 1 envelope")
        return str(data["kid"]), decode(data["payload"]), decode(data["sig"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InvalidEnvelope(
            RefusalReason.MALFORMED, "not a JSON envelope with v, kid, payload, sig"
        ) from error


def _signed_bytes(kid: str, payload: bytes) -> bytes:
    return _DOMAIN + kid.encode() + b"\x00" + payload


def encode(data: bytes) -> str:
    """Return base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """Strict base64url without padding: one text for one byte string, so that no flipped bit goes unseen."""
    if not isinstance(text, str):
        raise TypeError("base64url text expected")
    data = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    if encode(data) != text:
        raise binascii.Error("not canonical base64url")
    return data
