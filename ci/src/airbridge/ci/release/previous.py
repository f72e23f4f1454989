"""Releases of an environment's previous images, beside its own: without them nothing signed would name those digests.

The control plane admits a previous worker's digest, and a wave that is rolled back applies it. Whoever applies the stacks
verifies these manifests as it verifies the current one, without Git's history.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from pydantic import BaseModel, ConfigDict, ValidationError

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import ManifestError
from airbridge.ci.release import manifest, pins
from airbridge.ci.release.manifest import Manifest
from airbridge.ci.release.pins import Pins, Reference


class _Previous(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    releases: tuple[Manifest, ...]


def path(environment: str) -> str:
    """Return the file's path; there is none while no previous image is named."""
    return f"{pins.FOLDER}/{environment}.previous.json"


def load(checkout: Checkout, environment: str) -> tuple[Manifest, ...]:
    """Return the previous releases of an environment; none without a file. Raises ManifestError if it is malformed."""
    file = path(environment)
    if not checkout.has(file):
        return ()
    written = checkout.source(file).text
    manifest.refuse_duplicates(written, file)
    try:
        return _Previous.model_validate_json(written).releases
    except ValidationError as error:
        problems = [f"{file}: {'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors()]
        raise ManifestError("\n".join(problems)) from error


def text_of(found: Pins, known: Iterable[Manifest]) -> str | None:
    """Return the file's text: the releases of `known` that name a previous image. None if no previous image is named."""
    needed, known = list(references(found)), list(known)
    kept: dict[str, Manifest] = {}
    for reference in needed:
        named = next((each for each in known if names(each, reference)), None)
        if named is not None:
            kept[named.release.digest] = named
    return text(kept.values()) if needed else None


def text(releases: Iterable[Manifest]) -> str:
    """Return the text of a file with these releases."""
    content = {"releases": [json.loads(each.text()) for each in releases]}
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def references(found: Pins) -> Iterator[Reference]:
    """Yield the previous images that an environment's file names."""
    yield from (each for each in found.references() if each.key == pins.PREVIOUS)
    yield from found.derived(pins.PREVIOUS_DERIVED).values()


def names(release: Manifest, reference: Reference) -> bool:
    """Return whether a release has an image under that digest."""
    image = release.release.all_images.get(reference.image)
    return image is not None and image.digest == reference.digest


def problems(
    checkout: Checkout, environment: str, trusted: Mapping[str, Ed25519PublicKey]
) -> Iterator[tuple[Reference, str]]:
    """Yield each previous image that no signed previous release names, and the reason."""
    needed = list(references(pins.load(checkout, environment)))
    try:
        releases = load(checkout, environment) if needed else ()
        for release in releases:
            release.verify(trusted)
    except ManifestError as error:
        yield needed[0], str(error)
        return
    for reference in needed:
        if not any(names(release, reference) for release in releases):
            yield reference, f"no release in {path(environment)} names {reference.text}"
