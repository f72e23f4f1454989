"""Debian packages by hash: those that the images add to their base (images/debs.toml), and those of the Debian base itself."""

from __future__ import annotations

import hashlib
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import BuildError
from airbridge.ci.images.specs import Architecture

FILE = "images/debs.toml"
BASE_FILE = "images/base-debs.toml"
# Plain HTTP: the hash, not the channel, vouches for a file.
_POOL = "http://deb.debian.org/{archive}/{path}"
# The pool loses a file when a newer version replaces it; the archive of a day keeps it.
_SNAPSHOT = "http://snapshot.debian.org/archive/{archive}/SNAPSHOT/{path}"


class Deb(BaseModel):
    """One package file. `path` starts with its archive (debian, debian-security); no `images` means all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    architecture: Architecture | Literal["all"]
    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    images: tuple[Literal["control-plane", "edge-worker"], ...] = ()

    @property
    def file_name(self) -> str:
        """The file's name: without the version's epoch, as Debian writes it."""
        return f"{self.name}_{self.version.partition(':')[2] or self.version}_{self.architecture}.deb"


class _Debs(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    snapshot: Annotated[str, Field(pattern=r"^\d{8}T\d{6}Z$")]
    deb: tuple[Deb, ...]


def _read(checkout: Checkout, file: str = FILE) -> _Debs:
    try:
        return _Debs.model_validate(tomllib.loads(checkout.source(file).text))
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise BuildError(f"{file}: {error}") from error


def listed(checkout: Checkout, architecture: Architecture, image: str | None = None) -> tuple[Deb, ...]:
    """The packages of one architecture, of one image or of all."""
    return tuple(
        deb
        for deb in _read(checkout).deb
        if deb.architecture in {architecture, "all"}
        and (image is None or not deb.images or image in deb.images)
    )


def of_base(checkout: Checkout, architecture: Architecture) -> tuple[Deb, ...]:
    """Return the packages of the Debian base."""
    return tuple(deb for deb in _read(checkout, BASE_FILE).deb if deb.architecture in {architecture, "all"})


def mirrors(checkout: Checkout, file: str = FILE) -> tuple[str, ...]:
    """Return the mirrors, in the order in which they are tried: patterns with the fields `archive` and `path`."""
    return (_POOL, _SNAPSHOT.replace("SNAPSHOT", _read(checkout, file).snapshot))


def fetch(debs: tuple[Deb, ...], folder: Path, client: httpx.Client, mirrors: Sequence[str]) -> None:
    """Put the packages into `folder`; raises BuildError if a hash does not match."""
    folder.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        url, content = _download(deb, client, mirrors)
        if (found := hashlib.sha256(content).hexdigest()) != deb.sha256:
            raise BuildError(f"{deb.name} {deb.version}: {url} has the SHA-256 {found}, not {deb.sha256}")
        (folder / Path(deb.path).name).write_bytes(content)


def _download(deb: Deb, client: httpx.Client, mirrors: Sequence[str]) -> tuple[str, bytes]:
    archive, _, path = deb.path.partition("/")
    failures = []
    for mirror in mirrors:
        url = mirror.format(archive=archive, path=path)
        try:
            return url, client.get(url, follow_redirects=True).raise_for_status().content
        except httpx.HTTPError as error:
            failures.append(f"{url}: {str(error).splitlines()[0]}")
    raise BuildError(f"{deb.name} {deb.version} is gone: {'; '.join(failures)}")
