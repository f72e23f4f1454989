"""Publishing a build: images by digest, signed, with their SBOMs, and read back before they are announced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from airbridge.ci.exceptions import BuildError, RegistryError
from airbridge.ci.images import provenance
from airbridge.ci.images.assemble import Output
from airbridge.ci.images.layout import digest_of
from airbridge.ci.registry import Registry, tag_of
from airbridge.ci.release.manifest import Manifest, Release, ReleasedImage
from airbridge.ci.release.signers import Signer


@dataclass(frozen=True)
class Published:
    """An image in a registry."""

    name: str
    reference: str
    sboms: tuple[str, ...]


@dataclass(frozen=True)
class Publisher:
    """Publisher of a build. `sign` is the way of signing images: a cosign key, "" for keyless, None for not at all."""

    registry: Registry
    output: Output
    report: Callable[[str], None]
    sign: str | None = None
    #: Builder that the provenance names.
    builder: str = provenance.BY_HAND

    def publish(self, manifest: Manifest) -> list[Published]:
        """Publish all images of the manifest. Raises BuildError if the output does not match the manifest."""
        return [
            self._image(name, image, manifest.release) for name, image in manifest.release.all_images.items()
        ]

    def _image(self, name: str, image: ReleasedImage, release: Release) -> Published:
        folder = self.output.image(name)
        if (found := digest_of((folder / "manifest.json").read_bytes())) != image.digest:
            raise BuildError(f"{folder}: holds {found}, the manifest says {image.digest}")
        self.report(f"{name}: pushing {image.digest}")
        self.registry.push(folder, name, tag_of(release))
        self.registry.manifest(name, image.digest)
        if self.sign is not None:
            self.report(f"{name}: signing")
            self.registry.sign(name, image.digest, self.sign or None)
            self.report(f"{name}: signing its provenance")
            told = provenance.predicate(release, name, self.builder)
            self.registry.attest(name, image.digest, provenance.COSIGN_TYPE, told, self.sign or None)
        bills = tuple(self._sbom(name, architecture, image) for architecture in image.parts)
        return Published(name, self.registry.reference(name, image.digest), bills)

    def _sbom(self, name: str, architecture: str, image: ReleasedImage) -> str:
        part = image.parts[architecture]
        content = self.output.sbom(name, architecture).read_bytes()
        if digest_of(content) != part.sbom:
            raise BuildError(
                f"{self.output.sbom(name, architecture)}: is not the SBOM that the manifest names"
            )
        attached = self.registry.attach_sbom(name, part.digest, content)
        if self.sign is not None:
            self.registry.sign(name, attached, self.sign or None)
        return attached


def require_published(registry: Registry, manifest: Manifest, signer: Signer | None) -> None:
    """RegistryError unless the registry holds every image of the release under its digest, with its SBOM.

    With a signer, images, SBOMs and provenance must be signed by that one, and the provenance must be that of the release.
    """
    for name, image in manifest.release.all_images.items():
        registry.manifest(name, image.digest)
        for architecture, part in image.parts.items():
            try:
                registry.manifest(name, part.digest)
            except RegistryError as error:
                raise RegistryError(f"{name} for {architecture}: {error}") from error
            bill = registry.sbom(name, part.digest, part.sbom)
            if signer is not None:
                registry.verify(name, bill, signer)
        if signer is not None:
            registry.verify(name, image.digest, signer)
            _require_provenance(registry, manifest.release, name, signer)


def _require_provenance(registry: Registry, release: Release, name: str, signer: Signer) -> None:
    """RegistryError unless the signer signed provenance of this image, and all of it is what the release says."""
    for statement in registry.attested(name, release.all_images[name].digest, provenance.COSIGN_TYPE, signer):
        provenance.require(statement, release, name, signer.builder)
