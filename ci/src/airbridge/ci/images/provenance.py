"""Provenance of an image, as SLSA v1 has it: what it was built from, by rules that anyone can repeat, and by whom.

cosign wraps it into an in-toto statement about the image's digest and signs that. Everything but the builder follows from the
signed release, so a reader compares it with the release instead of believing it.
"""

from __future__ import annotations

import json
from typing import Any

from airbridge.ci.exceptions import RegistryError
from airbridge.ci.images.specs import REPOSITORY
from airbridge.ci.release.manifest import DerivedImage, Release

#: cosign's name of the predicate's type, and the type itself.
COSIGN_TYPE = "slsaprovenance1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = f"{REPOSITORY}/blob/main/docs/reference/images.md#provenance"
#: Builder of images that a person signed with a key of their own.
BY_HAND = f"{REPOSITORY}/blob/main/docs/how-to/release.md#release-by-hand"


def predicate(release: Release, name: str, builder: str) -> bytes:
    """Return the provenance of an image of a release: the same release gives the same bytes."""
    content = {
        "buildDefinition": _definition(release, name),
        "runDetails": {"builder": {"id": builder}},
    }
    return json.dumps(content, indent=1, sort_keys=True).encode() + b"\n"


def _definition(release: Release, name: str) -> dict[str, Any]:
    image = release.all_images[name]
    base = image.base if isinstance(image, DerivedImage) else release.base
    recipe = image.dockerfile if isinstance(image, DerivedImage) else f"images/{name}.Dockerfile"
    source = f"git+{REPOSITORY}@{release.revision}"
    return {
        "buildType": BUILD_TYPE,
        "externalParameters": {"source": source, "recipe": recipe, "base": base},
        "internalParameters": {
            "architectures": sorted(image.parts),
            "versions": release.versions.model_dump(mode="json"),
        },
        "resolvedDependencies": [
            {"uri": source, "digest": {"gitCommit": release.revision}},
            {"uri": base.partition("@")[0], "digest": {"sha256": base.rpartition("sha256:")[2]}},
        ],
    }


def require(statement: dict[str, Any], release: Release, name: str, builder: str | None) -> None:
    """Raise RegistryError unless a verified statement is of this image, release and builder. `builder` None is any."""
    digest = release.all_images[name].digest
    subjects = [each.get("digest", {}).get("sha256") for each in statement.get("subject", ())]
    if subjects != [digest.removeprefix("sha256:")]:
        raise RegistryError(f"{name}@{digest}: its provenance is of another image: {subjects}")
    if statement.get("predicateType") != PREDICATE_TYPE:
        raise RegistryError(f"{name}@{digest}: its provenance is a {statement.get('predicateType')}")
    content = statement.get("predicate", {})
    if content.get("buildDefinition") != _definition(release, name):
        raise RegistryError(
            f"{name}@{digest}: its provenance tells of another build than the release: {json.dumps(content)[:300]}"
        )
    made_by = content.get("runDetails", {}).get("builder", {}).get("id")
    if builder is not None and made_by != builder:
        raise RegistryError(f"{name}@{digest}: its provenance names the builder {made_by}, not {builder}")
