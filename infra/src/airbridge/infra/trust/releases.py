"""Signed releases of an environment: nothing is synthesised with an image that none of them names.

`airbridge-ci promote` writes them beside the environment's file: `<name>.release.json`, and `<name>.previous.json` with those of
previous images. They are verified here because here task definitions and boot scripts are made, whoever started it.
Signed are the bytes of a context line and of the `release` object as canonical JSON (keys sorted, no white space, UTF-8), with Ed25519.
"""

from __future__ import annotations

import base64
import hashlib
import json
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import BaseModel, ConfigDict, ValidationError

from airbridge.infra.environment import Environment
from airbridge.infra.exceptions import ReleaseError

CONTEXT = "airbridge-release-v1\n"
LOCAL = "local"


class _Signature(BaseModel):
    kid: str
    ed25519: str


class _Image(BaseModel):
    digest: str


class _Content(BaseModel):
    model_config = ConfigDict(extra="allow")

    images: dict[str, _Image]
    derived: dict[str, _Image] = {}


class _Manifest(BaseModel):
    release: dict[str, object]
    signatures: tuple[_Signature, ...] = ()


@dataclass(frozen=True)
class SignedRelease:
    """Verified release: the bytes that are signed, the signature, and the public key (PEM) with its id and owner."""

    content: str
    signature: bytes
    public_key: str
    kid: str
    owner: str
    images: Mapping[str, str]


@dataclass(frozen=True)
class Releases:
    """Verified releases in force; none in the emulator's environment and before the first promotion."""

    signed: tuple[SignedRelease, ...] = ()

    def of(self, reference: str) -> SignedRelease | None:
        """Return the release that names an image (`name@sha256:…`); None if there is none."""
        name, _, digest = reference.rpartition("/")[2].partition("@")
        return next((each for each in self.signed if each.images.get(name) == digest), None)


def load(environment: Environment, folder: Path, keys_file: Path) -> Releases:
    """Return the releases of an environment. Raises ReleaseError if one is not signed, or if an image is in none of them."""
    if environment.tier == LOCAL:
        return Releases()
    files = [folder / f"{environment.name}.release.json", folder / f"{environment.name}.previous.json"]
    written = [(file, each) for file in files if file.exists() for each in _read(file)]
    trusted = _trusted(keys_file) if written else {}
    found = Releases(tuple(_verified(file, each, trusted) for file, each in written))
    for key, reference in _named(environment):
        if found.of(reference) is None and not (_is_placeholder(reference) and _may_wait(key, written)):
            raise ReleaseError(
                f"{folder / environment.name}.toml: images.{key}: {reference} is in no signed release: "
                f"`airbridge-ci promote` writes {files[0].name}"
            )
    return found


def _named(environment: Environment) -> Iterator[tuple[str, str]]:
    images = environment.images
    yield "control_plane", images.control_plane
    yield "worker", images.worker
    if images.previous_worker:
        yield "previous_worker", images.previous_worker
    yield from ((f"derived.{name}", each) for name, each in images.derived.items())
    yield from ((f"previous_derived.{name}", each) for name, each in images.previous_derived.items())


def _is_placeholder(reference: str) -> bool:
    return len(set(reference.rpartition("sha256:")[2])) == 1


def _may_wait(key: str, written: list[tuple[Path, _Manifest]]) -> bool:
    """Return whether an image may have a placeholder: before the first release, and a derived one that has none yet."""
    return not written or key.startswith("derived.")


def _read(file: Path) -> list[_Manifest]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=_unique)
        listed = content["releases"] if file.name.endswith(".previous.json") else [content]
        return [_Manifest.model_validate(each) for each in listed]
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        raise ReleaseError(f"{file}: is not a release manifest: {error}") from error


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("a key stands there more than once")
    return dict(pairs)


def _trusted(file: Path) -> dict[str, tuple[Ed25519PublicKey, str]]:
    """Return the trusted keys and their owners by id."""
    found: dict[str, tuple[Ed25519PublicKey, str]] = {}
    try:
        for entry in tomllib.loads(file.read_text(encoding="utf-8")).get("key", ()):
            raw = _decode(str(entry["public_key"]))
            if hashlib.sha256(raw).hexdigest()[:16] != entry["kid"]:
                raise ReleaseError(f"{file}: {entry['kid']}: is not the id of its public key")
            found[str(entry["kid"])] = (Ed25519PublicKey.from_public_bytes(raw), str(entry["owner"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ReleaseError(f"{file}: the trusted keys cannot be read: {error}") from error
    return found


def _verified(
    file: Path, manifest: _Manifest, trusted: Mapping[str, tuple[Ed25519PublicKey, str]]
) -> SignedRelease:
    made = next((each for each in manifest.signatures if each.kid in trusted), None)
    if made is None:
        signers = ", ".join(each.kid for each in manifest.signatures) or "nobody"
        raise ReleaseError(f"{file}: is signed by {signers}, by no key of images/release-keys.toml")
    key, owner = trusted[made.kid]
    content = CONTEXT + json.dumps(
        manifest.release, sort_keys=True, separators=(",", ":"), ensure_ascii=False
    )
    try:
        signature = _decode(made.ed25519)
        key.verify(signature, content.encode())
        names = _Content.model_validate(manifest.release)
    except (InvalidSignature, ValueError) as error:
        raise ReleaseError(
            f"{file}: the signature of {made.kid} does not match: the release was altered"
        ) from error
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    images = {name: image.digest for name, image in (names.images | names.derived).items()}
    return SignedRelease(content, signature, pem, made.kid, owner, images)


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
