"""Files of `secrets_dir`: created by `airbridge init`, readable only by their owner.

==================  =====================================================  ====================
file                content                                                used by
==================  =====================================================  ====================
``ca.crt``          the issuing CA's certificate and the roots (PEM)       gateway, workers
``ca.key``          the issuing CA's EC P-256 key (PEM)                    gateway
``signing.key``     the Ed25519 key that signs work items (PEM)            scheduler
``signing.pub.json``  the keys that verify work items                      gateway
``token.key``       the Ed25519 key that signs access tokens (PEM)         gateway
``token.pub.json``  keys of tokens that are still accepted, if any         gateway
``publish.key``     the Ed25519 key that signs snapshots (PEM)             dag-processor, gateway
``publish.pub.json``  the keys that verify snapshots                       gateway
``signing.next.key``  the next key for work items, while it is staged      none yet
==================  =====================================================  ====================
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from pydantic import TypeAdapter, ValidationError

from airbridge.control_plane.exceptions import SecretsError
from airbridge.control_plane.identity.ca import CertificateAuthority, RootAuthority
from airbridge.core.code.signature import PUBLISH_KEY
from airbridge.core.protocol import VerifyKey
from airbridge.core.signing import Signer

CA_CERTIFICATE = "ca.crt"
CA_KEY = "ca.key"
SIGNING_KEY = "signing.key"
VERIFY_KEYS = "signing.pub.json"
TOKEN_KEY = "token.key"  # noqa: S105 - a file name
OLD_TOKEN_KEYS = "token.pub.json"  # noqa: S105 - a file name
PUBLISH_KEYS = "publish.pub.json"
NEXT_SIGNING_KEY = "signing.next.key"
ROOT_CERTIFICATE = "root.crt"
ROOT_KEY = "root.key"
# `create_all` puts the root here, to be moved offline.
# Where `create_all` puts the root, to be moved away from there.
ROOT_DIRECTORY = "offline-root"
# Missing in directories that were made before snapshots were signed.
PUBLISHING = (PUBLISH_KEY, PUBLISH_KEYS)
ALL_FILES = (CA_CERTIFICATE, CA_KEY, SIGNING_KEY, VERIFY_KEYS, TOKEN_KEY, *PUBLISHING)
FILE_MODE = 0o600

_VERIFY_KEYS = TypeAdapter(tuple[VerifyKey, ...])


@dataclass(frozen=True, slots=True)
class GatewaySecrets:
    """Secrets of the gateway: all but the key that signs work items."""

    ca: CertificateAuthority
    verify_keys: tuple[VerifyKey, ...]
    token_key: Ed25519PrivateKey
    old_token_keys: tuple[VerifyKey, ...] = ()
    publish_keys: tuple[VerifyKey, ...] = ()

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read the files. Raises `SecretsError` naming the missing or malformed file."""
        return cls(
            ca=load_ca(directory),
            verify_keys=load_verify_keys(directory),
            token_key=load_ed25519(directory / TOKEN_KEY),
            old_token_keys=load_old_token_keys(directory),
            publish_keys=load_publish_keys(directory),
        )


def create_all(directory: Path, trust_domain: str, now: datetime, root_directory: Path | None = None) -> None:
    """Create every file, and the root's in `root_directory` (default: ``offline-root`` in `directory`).

    Raises `SecretsError` if a file exists already: keys are never overwritten.
    """
    present = [name for name in ALL_FILES if (directory / name).exists()]
    if present:
        raise SecretsError(
            f"{directory} already holds {', '.join(present)}; keys are never overwritten: "
            "use an empty directory, or delete these files to start again"
        )
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    root = create_root(root_directory or directory / ROOT_DIRECTORY, trust_domain, now)
    ca = root.issue_authority(trust_domain, now)
    signer = Signer.generate()
    write(directory / CA_KEY, ca.key_pem())
    write(directory / CA_CERTIFICATE, (ca.chain_pem + ca.certificate_pem).encode())
    write(directory / SIGNING_KEY, signer.to_pem())
    write_verify_keys(directory / VERIFY_KEYS, (signer.verify_key,))
    # A Signer is an Ed25519 key in a PEM; token key and publishing key are ones of their own.
    write(directory / TOKEN_KEY, Signer.generate().to_pem())
    publishing = Signer.generate()
    write(directory / PUBLISH_KEY, publishing.to_pem())
    write_verify_keys(directory / PUBLISH_KEYS, (publishing.verify_key,))


def create_root(directory: Path, trust_domain: str, now: datetime) -> RootAuthority:
    """Create a root. Raises `SecretsError` if there is one already."""
    if (directory / ROOT_KEY).exists():
        raise SecretsError(f"{directory} already holds {ROOT_KEY}; keys are never overwritten")
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    root = RootAuthority.generate(trust_domain, now)
    write(directory / ROOT_KEY, root.key_pem())
    write(directory / ROOT_CERTIFICATE, root.certificate_pem.encode())
    return root


def load_root(directory: Path) -> RootAuthority:
    """Read a root. Raises `SecretsError`."""
    return RootAuthority.from_pem(read(directory / ROOT_CERTIFICATE), read(directory / ROOT_KEY))


def load_ca(directory: Path) -> CertificateAuthority:
    """Read the issuing CA. Raises `SecretsError`."""
    return CertificateAuthority.from_pem(read(directory / CA_CERTIFICATE), read(directory / CA_KEY))


def load_verify_keys(directory: Path) -> tuple[VerifyKey, ...]:
    """Read the keys that verify work items. Raises `SecretsError`."""
    return _verify_keys(directory / VERIFY_KEYS)


def load_old_token_keys(directory: Path) -> tuple[VerifyKey, ...]:
    """Read the previous keys of access tokens that are still accepted; empty without a file. Raises `SecretsError`."""
    path = directory / OLD_TOKEN_KEYS
    return _verify_keys(path) if path.exists() else ()


def load_publish_keys(directory: Path) -> tuple[VerifyKey, ...]:
    """Read the keys that verify snapshots. Raises `SecretsError`; there are none before snapshots are signed."""
    path = directory / PUBLISH_KEYS
    return _verify_keys(path) if path.exists() else ()


def write_verify_keys(path: Path, keys: Sequence[VerifyKey]) -> None:
    """Write a list of public keys."""
    write(path, _VERIFY_KEYS.dump_json(tuple(keys), indent=2))


def _verify_keys(path: Path) -> tuple[VerifyKey, ...]:
    try:
        return _VERIFY_KEYS.validate_json(read(path))
    except ValidationError as error:
        raise SecretsError(f"{path} is not a list of verification keys: {error}") from error


def read(path: Path) -> bytes:
    """Return the file's content. Raises `SecretsError` naming the file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise SecretsError(
            f"cannot read {path}: {error.strerror}; `airbridge init` creates the files of the secrets directory"
        ) from error


def write(path: Path, content: bytes) -> None:
    """Write the file atomically, readable only by its owner."""
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


def load_ed25519(path: Path) -> Ed25519PrivateKey:
    """Read an Ed25519 private key. Raises `SecretsError`."""
    try:
        key = load_pem_private_key(read(path), password=None)
    except (ValueError, TypeError) as error:
        raise SecretsError(f"{path} is not an unencrypted PEM private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SecretsError(f"{path} holds {type(key).__name__}; it must hold an Ed25519 key")
    return key
