"""An image as files (the `dir:` transport of skopeo and buildah): its manifests, and what its layers hold."""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from airbridge.ci.exceptions import BuildError
from airbridge.ci.images.specs import Architecture

LIST_TYPE = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
VERSION_LINE = "Directory Transport Version: 1.1\n"
# Names in a layer that remove a file of the layers below, and all of a directory.
WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"


def digest_of(content: bytes) -> str:
    """The name of some bytes: `sha256:` and their hash."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


@dataclass(frozen=True)
class File:
    """A file of an image. `text` is kept only for files that tell what is installed; `openssl` is the version that a library carries."""

    path: str
    size: int
    text: str | None = None
    sha256: str = ""
    openssl: str = ""


@dataclass(frozen=True)
class Layout:
    """One image of one architecture under `folder`."""

    folder: Path

    @cached_property
    def manifest_bytes(self) -> bytes:
        """The manifest as it is hashed."""
        return (self.folder / "manifest.json").read_bytes()

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The manifest, read."""
        return dict(json.loads(self.manifest_bytes))

    @property
    def digest(self) -> str:
        """The image's name in a registry."""
        return digest_of(self.manifest_bytes)

    @property
    def config_digest(self) -> str:
        """The image's id: covers the uncompressed layers, so it does not depend on the compressor's version."""
        return str(self.manifest["config"]["digest"])

    @cached_property
    def config(self) -> dict[str, Any]:
        """The image's configuration: user, entry point, labels."""
        return dict(json.loads(self.blob(self.config_digest)))

    @property
    def layers(self) -> list[dict[str, Any]]:
        """Digest and compressed size of each layer, the base's first."""
        return list(self.manifest["layers"])

    @property
    def compressed_bytes(self) -> int:
        """Compressed size of all blobs, in bytes."""
        return sum(int(layer["size"]) for layer in self.layers) + int(self.manifest["config"]["size"])

    def blob_path(self, digest: str) -> Path:
        """Return the path of a blob."""
        return self.folder / digest.removeprefix("sha256:")

    def blob(self, digest: str) -> bytes:
        """Return a blob. Raises BuildError if its digest does not match its name."""
        content = self.blob_path(digest).read_bytes()
        if digest_of(content) != digest:
            raise BuildError(
                f"{self.blob_path(digest)}: the content is {digest_of(content)}, the name says {digest}"
            )
        return content

    @cached_property
    def files(self) -> dict[str, File]:
        """Every regular file of the image after all layers, by its path."""
        found: dict[str, File] = {}
        for layer in self.layers:
            with tarfile.open(self.blob_path(layer["digest"]), "r:*") as packed:
                _apply(found, packed)
        return found


def _apply(found: dict[str, File], packed: tarfile.TarFile) -> None:
    added: dict[str, File] = {}
    for member in packed:
        path = PurePosixPath("/", member.name)
        if path.name == OPAQUE:
            _remove(found, str(path.parent))
        elif path.name.startswith(WHITEOUT):
            _remove(found, str(path.with_name(path.name.removeprefix(WHITEOUT))))
        elif member.isfile():
            added[str(path)] = _file(packed, member, str(path))
        elif not member.isdir():
            found.pop(str(path), None)
    found.update(added)


def _remove(found: dict[str, File], path: str) -> None:
    for gone in [name for name in found if name == path or name.startswith(f"{path}/")]:
        del found[gone]


_TELLING = re.compile(
    r"/(?:[^/]+\.dist-info/(?:METADATA|RECORD)|var/lib/dpkg/status|var/lib/dpkg/info/[^/]+\.list"
    r"|(?:etc|usr/lib)/os-release|usr/local/include/python3\.\d+/patchlevel\.h)$"
)
_OPENSSL = re.compile(rb"OpenSSL (\d+\.\d+\.\d+[a-z]?) +\d{1,2} [A-Z][a-z]{2} \d{4}")


def _file(packed: tarfile.TarFile, member: tarfile.TarInfo, path: str) -> File:
    reader = packed.extractfile(member)
    content = reader.read() if reader else b""
    text = content.decode("utf-8", "replace") if _TELLING.search(path) else None
    openssl = _OPENSSL.search(content) if ".so" in path else None
    return File(
        path, member.size, text, hashlib.sha256(content).hexdigest(), openssl[1].decode() if openssl else ""
    )


def settle(folder: Path) -> Layout:
    """Take out of an image's configuration what names the container that it was built in, which is another every time."""
    layout = Layout(folder)
    config = {
        key: value for key, value in layout.config.items() if key not in ("container", "container_config")
    }
    config["config"] = {**config["config"], "Hostname": "", "Image": ""}
    content = json.dumps(config, sort_keys=True, separators=(",", ":")).encode()
    manifest = {
        **layout.manifest,
        "config": {**layout.manifest["config"], "digest": digest_of(content), "size": len(content)},
    }
    layout.blob_path(layout.config_digest).unlink()
    layout.blob_path(digest_of(content)).write_bytes(content)
    (folder / "manifest.json").write_bytes(json.dumps(manifest, indent=2).encode())
    return Layout(folder)


def write_list(folder: Path, parts: Mapping[Architecture, Layout]) -> str:
    """Join images of several architectures under one manifest list in `folder`; returns the list's digest."""
    folder.mkdir(parents=True)
    (folder / "version").write_text(VERSION_LINE, encoding="utf-8")
    entries = []
    for architecture, part in sorted(parts.items()):
        for name in _blobs(part):
            target = folder / name
            if not target.exists():
                target.hardlink_to(part.folder / name)
        (folder / f"{part.digest.removeprefix('sha256:')}.manifest.json").write_bytes(part.manifest_bytes)
        entries.append(
            {
                "mediaType": MANIFEST_TYPE,
                "size": len(part.manifest_bytes),
                "digest": part.digest,
                "platform": {"architecture": architecture, "os": "linux"},
            }
        )
    content = json.dumps(
        {"schemaVersion": 2, "mediaType": LIST_TYPE, "manifests": entries}, indent=2
    ).encode()
    (folder / "manifest.json").write_bytes(content)
    return digest_of(content)


def _blobs(part: Layout) -> Iterator[str]:
    yield part.config_digest.removeprefix("sha256:")
    for layer in part.layers:
        yield str(layer["digest"]).removeprefix("sha256:")
