"""From parts to a release: images of one or more architectures under one digest each, SBOMs, and the manifest."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from airbridge.ci.exceptions import BuildError
from airbridge.ci.images.build import Built
from airbridge.ci.images.layout import Layout, digest_of, write_list
from airbridge.ci.images.specs import EDGE_WORKER, IMAGES, Architecture
from airbridge.ci.release.manifest import (
    DerivedImage,
    DerivedName,
    Manifest,
    Part,
    Release,
    ReleasedImage,
    ReleaseVersions,
)

MANIFEST = "release.json"


class PartRecord(BaseModel):
    """Record of a build of one architecture (`part.json`)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    architecture: Architecture
    revision: str
    committed_at: datetime
    base: str
    versions: ReleaseVersions
    #: Paths of the Dockerfiles of derived images in the checkout, by name.
    derived: dict[DerivedName, str] = {}


@dataclass(frozen=True)
class Output:
    """The folder that a build fills. `parts/` are its makings, `images/` and `sbom/` the result."""

    folder: Path

    def part(self, architecture: Architecture) -> Path:
        """Return the folder of one architecture's images."""
        return self.folder / "parts" / architecture

    @property
    def manifest(self) -> Path:
        """The release manifest."""
        return self.folder / MANIFEST

    def image(self, name: str) -> Path:
        """An image under its manifest list, as the registry will have it."""
        return self.folder / "images" / name

    def sbom(self, name: str, architecture: str) -> Path:
        """The SBOM of an image."""
        return self.folder / "sbom" / f"{name}.{architecture}.cdx.json"


def write_part(output: Output, record: PartRecord, built: list[Built]) -> None:
    """Put beside the images of one architecture what `assemble` needs to know of them."""
    folder = output.part(record.architecture)
    for part in built:
        (folder / f"{part.image.name}.cdx.json").write_bytes(part.sbom)
    (folder / "part.json").write_text(record.model_dump_json(indent=2) + "\n", encoding="utf-8")


def write_derived(output: Output, record: PartRecord, name: str, dockerfile: str, bill: bytes) -> None:
    """Add a derived image, whose layout lies beside the others, to the record of its architecture."""
    folder = output.part(record.architecture)
    (folder / f"{name}.cdx.json").write_bytes(bill)
    updated = record.model_copy(update={"derived": {**record.derived, name: dockerfile}})
    (folder / "part.json").write_text(updated.model_dump_json(indent=2) + "\n", encoding="utf-8")


def assemble(output: Output) -> Manifest:
    """Join the parts; writes images, SBOMs and the unsigned manifest."""
    records = read_records(output)
    first = next(iter(records.values()))
    for name in ("images", "sbom"):
        shutil.rmtree(output.folder / name, ignore_errors=True)
    (output.folder / "sbom").mkdir()
    images = {image.name: _join(output, image.name, list(records)) for image in IMAGES}
    derived = {
        name: DerivedImage(
            **_join(output, name, list(records)).model_dump(),
            base=images[EDGE_WORKER.name].digest,
            dockerfile=dockerfile,
        )
        for name, dockerfile in sorted(first.derived.items())
    }
    release = Release(
        revision=first.revision,
        committed_at=first.committed_at,
        versions=first.versions,
        base=first.base,
        images=images,
        derived=derived,
    )
    manifest = Manifest(release=release)
    output.manifest.write_text(manifest.text(), encoding="utf-8")
    return manifest


def read_records(output: Output) -> dict[Architecture, PartRecord]:
    """Return the records of the parts, by architecture. Raises BuildError if there is none, or if they differ."""
    files = sorted((output.folder / "parts").glob("*/part.json"))
    records = [PartRecord.model_validate(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    if not records:
        raise BuildError(f"{output.folder}/parts: no part to assemble; `airbridge-ci build` makes them")
    if len({record.model_copy(update={"architecture": "amd64"}).model_dump_json() for record in records}) > 1:
        raise BuildError(
            f"{output.folder}/parts: the parts are of different revisions, bases, versions or derived images"
        )
    return {record.architecture: record for record in records}


def _join(output: Output, name: str, architectures: list[Architecture]) -> ReleasedImage:
    layouts: dict[Architecture, Layout] = {
        architecture: Layout(output.part(architecture) / name) for architecture in architectures
    }
    digest = write_list(output.image(name), layouts)
    parts = {}
    for architecture, layout in layouts.items():
        bill = (output.part(architecture) / f"{name}.cdx.json").read_bytes()
        output.sbom(name, architecture).write_bytes(bill)
        parts[str(architecture)] = Part(
            digest=layout.digest,
            config=layout.config_digest,
            sbom=digest_of(bill),
            compressed_bytes=layout.compressed_bytes,
        )
    return ReleasedImage(digest=digest, parts=parts)
