"""Copies of a release in other registries, by digest: those of other accounts, and of regions that came later.

ECR replicates what is pushed after replication was configured, and nothing between accounts. A copy has what was published: images,
cosign's signatures and attestations, SBOMs, and whatever else has a tag `sha256-<digest>…`, which is where clients without the
referrers API look. Artifacts that only the referrers API lists are not copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from airbridge.ci.exceptions import RegistryError, ToolError
from airbridge.ci.images.layout import digest_of
from airbridge.ci.registry import Registry, tag_of
from airbridge.ci.release.manifest import Manifest, ReleasedImage


@dataclass(frozen=True)
class Copied:
    """An image in the target: whether this run copied it, and the tags of the artifacts that this run copied."""

    name: str
    reference: str
    copied: bool
    artifacts: tuple[str, ...]


@dataclass(frozen=True)
class Copier:
    """Copier of releases. What the target has already is left alone, so a run that was cut goes on where it was."""

    source: Registry
    target: Registry
    report: Callable[[str], None]

    def copy(self, manifest: Manifest) -> list[Copied]:
        """Copy every image of a release. RegistryError names digest and registry of what is missing or differs."""
        images = manifest.release.all_images
        for name, image in images.items():
            self._require_complete(name, image)
        return [self._image(name, image, tag_of(manifest.release)) for name, image in images.items()]

    def _require_complete(self, name: str, image: ReleasedImage) -> None:
        """Before anything is copied: the source has the release's images and SBOMs."""
        for digest in _subjects(image):
            self.source.manifest(name, digest)
        for part in image.parts.values():
            self.source.sbom(name, part.digest, part.sbom)

    def _image(self, name: str, image: ReleasedImage, tag: str) -> Copied:
        missing = [digest for digest in _subjects(image) if not self.target.holds(name, digest)]
        if missing:
            self.report(f"{name}: copying {image.digest} to {self.target.address}")
            self._send(name, f"@{image.digest}", tag)
        for digest in _subjects(image):
            self.target.manifest(name, digest)
        artifacts = tuple(self._artifacts(name, image))
        for part in image.parts.values():
            self.target.sbom(name, part.digest, part.sbom)
        return Copied(name, self.target.reference(name, image.digest), bool(missing), artifacts)

    def _artifacts(self, name: str, image: ReleasedImage) -> Iterator[str]:
        """Copy what belongs to the image, and yield the tags that were not yet there, or named something older."""
        bills = [self.source.sbom(name, part.digest, part.sbom) for part in image.parts.values()]
        # An SBOM is an artifact of its own, with a signature of its own.
        prefixes = tuple(digest.replace(":", "-") for digest in (*_subjects(image), *bills))
        there = set(self.target.tags(name))
        for tag in sorted(tag for tag in self.source.tags(name) if tag.startswith(prefixes)):
            wanted = digest_of(self.source.tagged(name, tag))
            if tag in there and digest_of(self.target.tagged(name, tag)) == wanted:
                continue
            self.report(f"{name}: copying {tag}")
            self._send(name, f":{tag}", tag)
            if (found := digest_of(self.target.tagged(name, tag))) != wanted:
                raise RegistryError(
                    f"{self.target.address}/{name}:{tag}: is {found}, the source has {wanted}"
                )
            yield tag

    def _send(self, name: str, which: str, tag: str) -> None:
        try:
            self.source.copy_to(self.target, name, which, tag)
        except ToolError as error:
            raise RegistryError(
                f"{self.source.address}/{name}{which} is not copied to {self.target.address}/{name}: {error}"
            ) from error


def _subjects(image: ReleasedImage) -> list[str]:
    """Return the digests of an image: the list's, and each architecture's."""
    return [image.digest, *(part.digest for part in image.parts.values())]
