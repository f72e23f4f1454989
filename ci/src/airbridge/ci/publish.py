"""Publishing a build: images by digest, signed, with their SBOMs, and read back before they are announced."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from airbridge.ci.exceptions import BuildError, RegistryError
from airbridge.ci.images.assemble import Output
from airbridge.ci.images.layout import digest_of
from airbridge.ci.registry import Registry, tag_of
from airbridge.ci.release.manifest import Manifest, ReleasedImage


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

    def publish(self, manifest: Manifest) -> list[Published]:
        """Publish all images of the manifest. Raises BuildError if the output does not match the manifest."""
        return [
            self._image(name, image, tag_of(manifest.release))
            for name, image in manifest.release.all_images.items()
        ]

    def _image(self, name: str, image: ReleasedImage, tag: str) -> Published:
        folder = self.output.image(name)
        if (found := digest_of((folder / "manifest.json").read_bytes())) != image.digest:
            raise BuildError(f"{folder}: holds {found}, the manifest says {image.digest}")
        self.report(f"{name}: pushing {image.digest}")
        self.registry.push(folder, name, tag)
        self.registry.manifest(name, image.digest)
        if self.sign is not None:
            self.report(f"{name}: signing")
            self.registry.sign(name, image.digest, self.sign or None)
        bills = tuple(self._sbom(name, architecture, image) for architecture in image.parts)
        return Published(name, self.registry.reference(name, image.digest), bills)

    def _sbom(self, name: str, architecture: str, image: ReleasedImage) -> str:
        part = image.parts[architecture]
        content = self.output.sbom(name, architecture).read_bytes()
        if digest_of(content) != part.sbom:
            raise BuildError(
                f"{self.output.sbom(name, architecture)}: is not the SBOM that the manifest names"
            )
        return self.registry.attach_sbom(name, part.digest, content)


def require_published(registry: Registry, manifest: Manifest, cosign_key: str | None) -> None:
    """RegistryError unless the registry holds every image of the release under its digest, signed if a key is given."""
    for name, image in manifest.release.all_images.items():
        registry.manifest(name, image.digest)
        for architecture, part in image.parts.items():
            try:
                registry.manifest(name, part.digest)
            except RegistryError as error:
                raise RegistryError(f"{name} for {architecture}: {error}") from error
        if cosign_key is not None:
            registry.verify(name, image.digest, cosign_key)
