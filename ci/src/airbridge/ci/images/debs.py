"""Debian packages that the images add to their base: named by hash in images/debs.toml, fetched into the context."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import BuildError
from airbridge.ci.images.specs import Architecture

FILE = "images/debs.toml"
MIRROR = "http://deb.debian.org/debian"  # plain: the hash, not the channel, vouches for the file


class Deb(BaseModel):
    """One package file of Debian's pool."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    version: str
    architecture: Architecture
    path: str
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Debs(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    deb: tuple[Deb, ...]


def listed(checkout: Checkout, architecture: Architecture) -> tuple[Deb, ...]:
    """The packages of one architecture."""
    try:
        debs = _Debs.model_validate(tomllib.loads(checkout.source(FILE).text)).deb
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise BuildError(f"{FILE}: {error}") from error
    return tuple(deb for deb in debs if deb.architecture == architecture)


def fetch(debs: tuple[Deb, ...], folder: Path, client: httpx.Client, mirror: str = MIRROR) -> None:
    """Put the packages into `folder`; raises BuildError if a hash does not match."""
    folder.mkdir(parents=True, exist_ok=True)
    for deb in debs:
        url = f"{mirror}/{deb.path}"
        try:
            content = client.get(url, follow_redirects=True).raise_for_status().content
        except httpx.HTTPError as error:
            raise BuildError(f"{url}: {error}") from error
        if (found := hashlib.sha256(content).hexdigest()) != deb.sha256:
            raise BuildError(f"{url}: its SHA-256 is {found}, {FILE} says {deb.sha256}")
        (folder / Path(deb.path).name).write_bytes(content)
