"""Release manifests: signed, typed, and refused when anything about them is not as it was signed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.ci.tree import COMMITTED, Tree, digest

from airbridge.ci.exceptions import ManifestError
from airbridge.ci.release import keys, manifest
from airbridge.ci.release.manifest import (
    Manifest,
    Part,
    Release,
    ReleasedImage,
    ReleaseVersions,
    decode,
    encode,
    key_id,
)

KEY = Ed25519PrivateKey.generate()
TRUSTED = {key_id(KEY.public_key()): KEY.public_key()}
RELEASE = Release(
    revision="a" * 40,
    committed_at=COMMITTED,
    versions=ReleaseVersions(
        airbridge="0.1.0", airflow="3.0.4", task_sdk="1.0.4", python="3.12.14", protocol=1
    ),
    base="python:3.12-slim-bookworm@" + digest(1),
    images={
        name: ReleasedImage(
            digest=digest(number),
            parts={
                "amd64": Part(
                    digest=digest(number + 1),
                    config=digest(number + 2),
                    sbom=digest(number + 3),
                    compressed_bytes=9,
                )
            },
        )
        for number, name in ((10, "control-plane"), (20, "edge-worker"))
    },
)
SIGNED = Manifest(release=RELEASE).signed(KEY)


def test_a_signed_manifest_survives_its_file() -> None:
    """A manifest read back from its file is equal and still verifies."""
    again = manifest.parse(SIGNED.text(), "release.json")
    assert again == SIGNED
    assert again.verify(TRUSTED) in TRUSTED


def test_an_unsigned_manifest_is_refused() -> None:
    """The error names the command that signs it."""
    with pytest.raises(ManifestError, match="airbridge-ci sign"):
        Manifest(release=RELEASE).verify(TRUSTED)


def test_untrusted_signature_is_refused() -> None:
    """The error names the signer and the trusted keys."""
    stranger = Ed25519PrivateKey.generate()
    with pytest.raises(ManifestError, match=key_id(stranger.public_key())):
        Manifest(release=RELEASE).signed(stranger).verify(TRUSTED)


def test_one_trusted_signature_suffices() -> None:
    """A key can be retired: both sign for a while."""
    both = Manifest(release=RELEASE).signed(Ed25519PrivateKey.generate()).signed(KEY)
    assert both.verify(TRUSTED) == key_id(KEY.public_key())


def _leaves(value: object, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if isinstance(value, dict):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, (*path, key))]
    return [path]


@pytest.mark.parametrize("path", _leaves(json.loads(SIGNED.text())["release"]), ids=".".join)
def test_no_field_can_be_altered(path: tuple[str, ...]) -> None:
    """A change of any field invalidates the signature."""
    content = json.loads(SIGNED.text())
    at = content["release"]
    for key in path[:-1]:
        at = at[key]
    old = at[path[-1]]
    at[path[-1]] = old + 1 if isinstance(old, int) else old[:-1] + ("0" if old[-1] != "0" else "1")
    with pytest.raises(ManifestError):
        manifest.parse(json.dumps(content), "release.json").verify(TRUSTED)


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_altered_signature_is_refused(place: int, change: int) -> None:
    """A flipped bit in the signature is found."""
    raw = bytearray(decode(SIGNED.signatures[0].ed25519))
    raw[place % len(raw)] ^= change
    altered = SIGNED.model_copy(
        update={"signatures": (SIGNED.signatures[0].model_copy(update={"ed25519": encode(bytes(raw))}),)}
    )
    with pytest.raises(ManifestError, match="altered"):
        altered.verify(TRUSTED)


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ('"revision": "aaaa', '"revision": "main', "release.revision"),
        ('"protocol": 1', '"protocol": "one"', "release.versions.protocol"),
        ('"schema": 1', '"schema": 2', "release.schema"),
        ('"base"', '"bases"', "release.base"),
        ("sha256:", "sha1:", "digest"),
        ('"committed_at": "2026-01-10T12:00:00Z"', '"committed_at": "2026-01-10T12:00:00"', "committed_at"),
    ],
)
def test_malformed_manifest_is_refused(old: str, new: str, says: str) -> None:
    """The error names the file and the field."""
    with pytest.raises(ManifestError, match=says) as caught:
        manifest.parse(SIGNED.text().replace(old, new), "release.json")
    assert "release.json" in str(caught.value)


def test_keygen_creates_private_file(tmp_path: Path) -> None:
    """keygen writes mode 0600, prints the public entry, and never overwrites."""
    file = tmp_path / "release.key"
    trusted = keys.parse(keys.create(file, "tests"))
    assert file.stat().st_mode & 0o777 == 0o600
    assert Manifest(release=RELEASE).signed(keys.private(file)).verify(trusted) in trusted
    with pytest.raises(ManifestError, match="never overwritten"):
        keys.create(file, "tests")
    file.chmod(0o644)
    with pytest.raises(ManifestError, match="0600"):
        keys.private(file)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[key]]\nkid = "0123456789abcdef"\npublic_key = "AA"\nowner = "x"', "32 bytes"),
        ('[[key]]\nkid = "short"\npublic_key = "AA"\nowner = "x"', "kid"),
        ("[[key]", "release-keys.toml"),
    ],
)
def test_malformed_key_list_is_refused(text: str, says: str) -> None:
    """The error names the entry and the reason."""
    with pytest.raises(ManifestError, match=says):
        keys.parse(text)


def test_key_that_stands_twice(tree: Tree) -> None:
    """Readers differ in which of two values they take, so neither is."""
    text = tree.release().text().replace('"base": ', '"base": "another", "base": ', 1)
    with pytest.raises(ManifestError, match="f: base: stands there more than once"):
        manifest.parse(text, "f")
