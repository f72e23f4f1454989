"""Keys that sign releases: the trusted public keys in images/release-keys.toml, and private keys in files of mode 0600."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path
from typing import Annotated

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airbridge.ci.exceptions import ManifestError
from airbridge.ci.release.manifest import decode, encode, key_id

FILE = "images/release-keys.toml"


class _Key(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    kid: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")]
    public_key: str
    owner: str


class Keyless(BaseModel):
    """Identity that cosign's certificates must have, and who vouches for it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    identity: Annotated[str, Field(pattern=r"^https://[^\s@]+@refs/(heads|tags)/\S+$")]
    issuer: Annotated[str, Field(pattern=r"^https://\S+$")]


class Keys(BaseModel):
    """images/release-keys.toml: keys that sign manifests, and the pipeline that signs images without a key."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: tuple[_Key, ...] = ()
    keyless: Keyless | None = None


def parse(text: str, source: str = FILE) -> dict[str, Ed25519PublicKey]:
    """The trusted keys by their ids; ManifestError names what is wrong."""
    return {entry.kid: _public(entry, source) for entry in _listed(text, source)}


def owners(text: str, source: str = FILE) -> dict[str, str]:
    """Return the owners of the trusted keys by the keys' ids."""
    return {entry.kid: entry.owner for entry in _listed(text, source)}


def _listed(text: str, source: str) -> tuple[_Key, ...]:
    try:
        return Keys.model_validate(tomllib.loads(text)).key
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ManifestError(f"{source}: {error}") from error


def load(path: Path) -> dict[str, Ed25519PublicKey]:
    """The trusted keys in a file."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except OSError as error:
        raise ManifestError(f"{path}: the trusted keys cannot be read: {error.strerror}") from error


def _public(entry: _Key, source: str) -> Ed25519PublicKey:
    try:
        key = Ed25519PublicKey.from_public_bytes(decode(entry.public_key))
    except ValueError as error:
        raise ManifestError(
            f"{source}: {entry.kid}: public_key is not 32 bytes of base64url: {error}"
        ) from error
    if key_id(key) != entry.kid:
        raise ManifestError(f"{source}: {entry.kid}: the public key's id is {key_id(key)}")
    return key


def create(path: Path, owner: str) -> str:
    """Write a new private key to `path`; returns its entry for the file of trusted keys."""
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError as error:
        raise ManifestError(f"{path} exists; a signing key is never overwritten") from error
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    public = key.public_key()
    return f'[[key]]\nkid = "{key_id(public)}"\npublic_key = "{encode(public.public_bytes_raw())}"\nowner = "{owner}"\n'


def private(path: Path) -> Ed25519PrivateKey:
    """The private key in a file; ManifestError if it is not Ed25519, or if others may read the file."""
    try:
        if path.stat().st_mode & 0o077:
            raise ManifestError(f"{path}: others may read this key; its mode must be 0600")
        key = load_pem_private_key(path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise ManifestError(f"{path}: the signing key cannot be read: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ManifestError(f"{path}: the signing key must be Ed25519; `airbridge-ci keygen` makes one")
    return key
