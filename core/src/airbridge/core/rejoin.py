"""Proof that a host enrolled a worker's name before: a signature by a key that it keeps in its state directory.

The worker's identity itself is held in memory only, so a process that was killed has none left. The rejoin key lets its
successor on the same host enrol the name while the control plane still counts it as alive. It is no credential by itself: an
enrolment needs a join credential as well.
"""

from __future__ import annotations

import hashlib
import json
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from airbridge.core.protocol import RejoinProof
from airbridge.core.signing import decode, encode, public_key, public_verify_key

_DOMAIN: Final = b"airbridge-rejoin-v1\x00"


def prove(key: Ed25519PrivateKey, region: str, pool: str, worker: str, csr_pem: str) -> RejoinProof:
    """Return the proof for one certificate request under one name."""
    verify_key = public_verify_key(key.public_key())
    signature = key.sign(_signed_bytes(region, pool, worker, csr_pem))
    return RejoinProof(public_key=verify_key.public_key, signature=encode(signature))


def is_valid(proof: RejoinProof, region: str, pool: str, worker: str, csr_pem: str) -> bool:
    """Return whether the proof was signed for this request with the key that it carries."""
    try:
        key = public_key(proof)
        key.verify(decode(proof.signature), _signed_bytes(region, pool, worker, csr_pem))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _signed_bytes(region: str, pool: str, worker: str, csr_pem: str) -> bytes:
    content = [region, pool, worker, hashlib.sha256(csr_pem.encode()).hexdigest()]
    return _DOMAIN + json.dumps(content, separators=(",", ":"), ensure_ascii=True).encode()
