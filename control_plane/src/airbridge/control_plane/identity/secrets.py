"""The files of `secrets_dir`: made once by `airbridge init`, readable by their owner alone.

==================  =====================================================  ====================
file                what it is                                             who needs it
==================  =====================================================  ====================
``ca.crt``          the issuing CA's certificate (PEM)                     gateway, workers
``ca.key``          the issuing CA's EC P-256 key (PEM)                    gateway
``signing.key``     the Ed25519 key that signs work items (PEM)            scheduler
``signing.pub.json``  the keys that verify work items                      gateway
``token.key``       the Ed25519 key that signs access tokens (PEM)         gateway
==================  =====================================================  ====================
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import TypeAdapter, ValidationError

from airbridge.control_plane.exceptions import SecretsError
from airbridge.control_plane.identity.ca import CertificateAuthority
from airbridge.executor.protocol import VerifyKey
from airbridge.executor.signing import Signer

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
SIGNING_KEY = "signing.key"
VERIFY_KEYS = "signing.pub.json"
TOKEN_KEY = "token.key"  # noqa: S105 - a file name
ALL_FILES = (CA_CERTIFICATE, CA_KEY, SIGNING_KEY, VERIFY_KEYS, TOKEN_KEY)
FILE_MODE = 0o600

_VERIFY_KEYS = TypeAdapter(tuple[VerifyKey, ...])


@dataclass(frozen=True, slots=True)
class GatewaySecrets:
    """What the gateway loads: everything but the key that signs work items."""

    ca: CertificateAuthority
    verify_keys: tuple[VerifyKey, ...]
    token_key: Ed25519PrivateKey

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the files. Raises `SecretsError` naming the file that is missing or wrong."""
        return cls(
            ca=load_ca(directory),
            verify_keys=load_verify_keys(directory),
            token_key=_ed25519(directory / TOKEN_KEY),
        )


def create_all(directory: Path, trust_domain: str, now: datetime) -> None:
    """Make every file. Raises `SecretsError` if one is there already: keys are never overwritten."""
    present = [name for name in ALL_FILES if (directory / name).exists()]
    if present:
        raise SecretsError(
            f"{directory} already holds {', '.join(present)}; keys are never overwritten: "
            "give an empty directory, or delete these files to start anew"
        )
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    ca = CertificateAuthority.generate(trust_domain, now)
    signer = Signer.generate()
    write(directory / CA_KEY, ca.key_pem())
    write(directory / CA_CERTIFICATE, ca.certificate_pem.encode())
    write(directory / SIGNING_KEY, signer.to_pem())
    write(directory / VERIFY_KEYS, _VERIFY_KEYS.dump_json((signer.verify_key,), indent=2))
    # A Signer is an Ed25519 key in a PEM; the token key is one of its own.
    write(directory / TOKEN_KEY, Signer.generate().to_pem())


def load_ca(directory: Path) -> CertificateAuthority:
    """Read the issuing CA. Raises `SecretsError`."""
    return CertificateAuthority.from_pem(read(directory / CA_CERTIFICATE), read(directory / CA_KEY))


def load_verify_keys(directory: Path) -> tuple[VerifyKey, ...]:
    """Read the keys that verify work items. Raises `SecretsError`."""
    path = directory / VERIFY_KEYS
    try:
        return _VERIFY_KEYS.validate_json(read(path))
    except ValidationError as error:
        raise SecretsError(f"{path} is no list of verification keys: {error}") from error


def read(path: Path) -> bytes:
    """Return the file's content. Raises `SecretsError` naming it."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecretsError(
            f"cannot read {path}: {error.strerror}; `airbridge init` makes the files of the secrets directory"
        ) from error


def write(path: Path, content: bytes) -> None:
    """Write the file whole or not at all, readable by its owner alone."""
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), FILE_MODE)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def _ed25519(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(read(path), password=None)
    except (ValueError, TypeError) as error:
        raise SecretsError(f"{path} is no unencrypted PEM private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SecretsError(f"{path} holds {type(key).__name__}; it must hold an Ed25519 key")
    return key
