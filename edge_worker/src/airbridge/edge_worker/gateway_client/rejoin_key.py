"""The host's rejoin key: made at the first enrolment, kept in the state directory, readable by the worker's user alone.

A worker's identity is in memory only. After a kill the next process on the same host enrols anew, and proves by this key that
the name was this host's: the control plane then need not wait until it has given the old process up.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Final

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from airbridge.core.protocol import RejoinProof
from airbridge.core.signing import read_private_key
from airbridge.core.wire import rejoin

log = structlog.get_logger(__name__)

FILE_MODE: Final = 0o600


class RejoinKey:
    """Key in a file. Made when it is needed first."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._key: Ed25519PrivateKey | None = None

    def prove(self, region: str, pool: str, worker: str, csr_pem: str) -> RejoinProof | None:
        """Return the proof for one certificate request; None if the disk has no room for the key, or cannot be read."""
        try:
            key = self.open()
        except OSError as error:
            log.warning("identity.rejoin_key_unkept", path=str(self._path), detail=str(error))
            return None
        return rejoin.prove(key, region, pool, worker, csr_pem)

    def open(self) -> Ed25519PrivateKey:
        """Return the key. Raises `OSError`."""
        if self._key is None:
            self._key = self._read() if self._path.exists() else self._make()
        return self._key

    def _read(self) -> Ed25519PrivateKey:
        try:
            return read_private_key(self._path.read_bytes(), "rejoin key")
        except (ValueError, TypeError) as error:
            # Half a file cannot come from `_make`. Without the old key the name is given up in time.
            log.warning("identity.rejoin_key_unusable", path=str(self._path), detail=str(error))
            return self._make()

    def _make(self) -> Ed25519PrivateKey:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, temporary = tempfile.mkstemp(dir=self._path.parent, prefix=f".{self._path.name}.")
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(pem)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(self._path)
        sync(self._path.parent)
        return key


def sync(directory: Path) -> None:
    """Make a new name last through a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
