"""Proof that a host enrolled a worker's name before: a signature by a key that it keeps in its state directory.

The worker's identity itself is held in memory only, so a process that was killed has none left. The rejoin key lets its
successor on the same host enrol the name while the control plane still counts it as alive. It is no credential by itself: an
enrolment needs a join credential as well.

Where a host has no other identity the same key is its join credential, once it is bound to the worker's name (join method
``bound_key``). The host then counts its joins, and signs the count: a copy of its disk repeats a count that is taken.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from airbridge.core.protocol import JoinByBoundKey, RejoinProof
from airbridge.core.signing import decode, encode, public_key, public_verify_key

_DOMAIN: Final = b"airbridge-rejoin-v1\x00"
_JOIN_DOMAIN: Final = b"airbridge-bound-key-v1\x00"


@dataclass(frozen=True, slots=True)
class Subject:
    """Subject of a proof: one certificate request under one name."""

    region: str
    pool: str
    worker: str
    csr_pem: str


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


def prove_join(
    key: Ed25519PrivateKey, subject: Subject, counter: int, attempt: str, token: str | None
) -> JoinByBoundKey:
    """Return the proof that joins under a bound key, as the host's join number `counter`."""
    return JoinByBoundKey(
        public_key=public_verify_key(key.public_key()).public_key,
        counter=counter,
        attempt=attempt,
        signature=encode(key.sign(_signed_join(subject, counter, attempt))),
        token=token,
    )


def is_valid_join(join: JoinByBoundKey, subject: Subject) -> bool:
    """Return whether the proof was signed for this request and count with the key that it carries."""
    try:
        public_key(join).verify(decode(join.signature), _signed_join(subject, join.counter, join.attempt))
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _signed_join(subject: Subject, counter: int, attempt: str) -> bytes:
    request = _signed_bytes(subject.region, subject.pool, subject.worker, subject.csr_pem)
    return _JOIN_DOMAIN + json.dumps([counter, attempt]).encode() + request
