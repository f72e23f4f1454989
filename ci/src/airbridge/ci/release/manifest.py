"""The release manifest: one small, typed, signed file that environments pin.

Signed are the bytes of `CONTEXT` and of the `release` object as canonical JSON (keys sorted, no white space, UTF-8), with
Ed25519. The file itself is indented, so that a change of it can be read in a review.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
)

from airbridge.ci.exceptions import ManifestError

CONTEXT = b"airbridge-release-v1\n"

Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
Revision = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
# Names of the platform's images, and their keys in an environment's file.
_TAKEN = ("control-plane", "control_plane", "edge-worker", "worker")


def _require_free(name: str) -> str:
    if name in _TAKEN:
        raise ValueError(f"{name} is the platform's own; choose another")
    return name


DerivedName = Annotated[
    str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=32), AfterValidator(_require_free)
]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class ReleaseVersions(_Model):
    """Versions inside the images."""

    airbridge: str
    airflow: str
    task_sdk: str
    python: str
    protocol: int


class Part(_Model):
    """An image for one architecture. `config` is its id, which does not depend on the compressor."""

    digest: Digest
    config: Digest
    sbom: Digest
    compressed_bytes: int


class ReleasedImage(_Model):
    """An image: the digest of its manifest list is what environments name."""

    digest: Digest
    parts: Annotated[dict[str, Part], Field(min_length=1)]


class DerivedImage(ReleasedImage):
    """A worker image that was built on the release's own: `base` is the digest of that one, `dockerfile` its recipe."""

    base: Digest
    dockerfile: str


class Release(_Model):
    """Everything a release is made of."""

    schema_: Annotated[Literal[1], Field(alias="schema")] = 1
    revision: Revision
    committed_at: AwareDatetime
    versions: ReleaseVersions
    base: str
    images: Annotated[dict[str, ReleasedImage], Field(min_length=1)]
    derived: dict[DerivedName, DerivedImage] = {}

    @property
    def all_images(self) -> Mapping[str, ReleasedImage]:
        """Return the platform's images and the derived ones, by name."""
        return {**self.images, **self.derived}

    @model_serializer(mode="wrap")
    def _without_empty(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave `derived` out where there is none: such a release has the same bytes, and signature, as before there were any."""
        content: dict[str, Any] = serialise(self)
        return content if self.derived else {key: value for key, value in content.items() if key != "derived"}

    def canonical(self) -> bytes:
        """The bytes that are signed."""
        content = self.model_dump(mode="json", by_alias=True)
        return (
            CONTEXT + json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        )

    @property
    def digest(self) -> str:
        """The release's own name."""
        return f"sha256:{hashlib.sha256(self.canonical()).hexdigest()}"


class Signature(_Model):
    """One key's signature, base64url without padding."""

    kid: str
    ed25519: str


class Manifest(_Model):
    """A release and the signatures under it."""

    release: Release
    signatures: tuple[Signature, ...] = ()

    def text(self) -> str:
        """The file."""
        return json.dumps(self.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n"

    def signed(self, key: Ed25519PrivateKey) -> Manifest:
        """The same release with one more signature; a second one by the same key replaces the first."""
        kid = key_id(key.public_key())
        others = tuple(signature for signature in self.signatures if signature.kid != kid)
        made = Signature(kid=kid, ed25519=encode(key.sign(self.release.canonical())))
        return self.model_copy(update={"signatures": (*others, made)})

    def verify(self, trusted: Mapping[str, Ed25519PublicKey]) -> str:
        """The id of a trusted key whose signature holds; raises ManifestError with the reason if there is none."""
        if not self.signatures:
            raise ManifestError("the manifest is not signed; `airbridge-ci sign` signs it")
        for signature in self.signatures:
            if signature.kid in trusted:
                self._check(signature, trusted[signature.kid])
                return signature.kid
        signers = ", ".join(signature.kid for signature in self.signatures)
        known = ", ".join(sorted(trusted)) or "no key at all"
        raise ManifestError(f"the manifest is signed by {signers}, but trusted is {known}")

    def _check(self, signature: Signature, key: Ed25519PublicKey) -> None:
        try:
            key.verify(decode(signature.ed25519), self.release.canonical())
        except (InvalidSignature, ValueError) as error:
            raise ManifestError(
                f"the signature of {signature.kid} does not match: the manifest was altered"
            ) from error


def key_id(key: Ed25519PublicKey) -> str:
    """A key's name: the first 16 hexadecimal digits of the SHA-256 of its raw bytes."""
    return hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16]


def parse(text: str, source: str) -> Manifest:
    """The manifest in `text`; ManifestError names `source` and every wrong key, one that stands there twice included."""
    refuse_duplicates(text, source)
    try:
        return Manifest.model_validate_json(text)
    except ValidationError as error:
        problems = [f"{source}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ManifestError("\n".join(problems)) from error


def refuse_duplicates(text: str, source: str) -> None:
    """Raise ManifestError if an object has a key twice: readers differ in which of the values they take."""

    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        keys = [key for key, _ in pairs]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ManifestError(f"{source}: {', '.join(twice)}: stands there more than once")
        return dict(pairs)

    with suppress(json.JSONDecodeError):  # the model's own error names the place
        json.loads(text, object_pairs_hook=unique)


def load(path: Path) -> Manifest:
    """The manifest in a file."""
    try:
        return parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ManifestError(f"{path}: the release manifest cannot be read: {error}") from error


def encode(content: bytes) -> str:
    """base64url without padding."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    """The inverse of `encode`; ValueError if it is not that."""
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
    except binascii.Error as error:
        raise ValueError(f"not base64url: {error}") from error
