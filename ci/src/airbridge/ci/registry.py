"""A registry: images pushed and read back by digest, signatures and SBOMs beside them. skopeo and cosign do the talking."""

from __future__ import annotations

import base64
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airbridge.ci.exceptions import RegistryError, ToolError
from airbridge.ci.images import sbom
from airbridge.ci.images.layout import VERSION_LINE, digest_of
from airbridge.ci.release.manifest import Release
from airbridge.ci.release.signers import Signer
from airbridge.ci.tools import Run

_OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
_OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
# What registries answer about a digest or a repository that they do not have; ECR's words are among them.
_UNKNOWN = re.compile(
    r"manifest unknown|name unknown|NAME_UNKNOWN|MANIFEST_UNKNOWN|requested image not found", re.IGNORECASE
)


@dataclass(frozen=True)
class Registry:
    """`address` is host[:port][/prefix]. `plain` allows HTTP, for a registry on this machine."""

    address: str
    run: Run
    plain: bool = False

    def reference(self, name: str, digest: str) -> str:
        """An image by digest."""
        return f"{self.address}/{name}@{digest}"

    def push(self, folder: Path, name: str, tag: str) -> None:
        """Push the image in `folder`. The tag only protects it from the registry's garbage collection."""
        self.run(
            "skopeo", "copy", "--quiet", "--all", "--preserve-digests", f"--dest-tls-verify={self._verify}",
            f"dir:{folder}", f"docker://{self.address}/{name}:{tag}",
        )  # fmt: skip

    def copy_to(self, target: Registry, name: str, which: str, tag: str) -> None:
        """Copy `name`, by `@digest` or `:tag`, with everything it lists, unchanged, to `target` under `tag`."""
        self.run(
            "skopeo", "copy", "--quiet", "--all", "--preserve-digests", f"--src-tls-verify={self._verify}",
            f"--dest-tls-verify={target._verify}", f"docker://{self.address}/{name}{which}", f"docker://{target.address}/{name}:{tag}",
        )  # fmt: skip

    def holds(self, name: str, digest: str) -> bool:
        """Return whether the registry has a digest. Raises RegistryError if it does not answer, or answers otherwise."""
        try:
            self.manifest(name, digest)
        except RegistryError as error:
            if _UNKNOWN.search(str(error)):
                return False
            raise
        return True

    def tags(self, name: str) -> list[str]:
        """Return the tags of a repository."""
        where = f"{self.address}/{name}"
        try:
            listed = self.run("skopeo", "list-tags", f"--tls-verify={self._verify}", f"docker://{where}")
        except ToolError as error:
            raise RegistryError(f"{where}: its tags cannot be read: {error}") from error
        return [str(tag) for tag in json.loads(listed)["Tags"] or ()]

    def tagged(self, name: str, tag: str) -> bytes:
        """Return the manifest that a tag names. Raises RegistryError if there is none."""
        where = f"{self.address}/{name}:{tag}"
        try:
            return self.run(
                "skopeo", "inspect", "--raw", f"--tls-verify={self._verify}", f"docker://{where}"
            ).encode()
        except ToolError as error:
            raise RegistryError(f"{where}: {error}") from error

    def manifest(self, name: str, digest: str) -> bytes:
        """Return the manifest of a digest. Raises RegistryError if it is missing or does not match."""
        reference = self.reference(name, digest)
        try:
            content = self.run(
                "skopeo", "inspect", "--raw", f"--tls-verify={self._verify}", f"docker://{reference}"
            ).encode()
        except ToolError as error:
            raise RegistryError(f"{reference}: {error}") from error
        if (found := digest_of(content)) != digest:
            raise RegistryError(f"{reference}: the registry answers with {found}")
        return content

    def pull(self, name: str, digest: str, folder: Path) -> None:
        """Fetch an image with all its layers; every byte is checked against its digest."""
        reference = self.reference(name, digest)
        try:
            self.run(
                "skopeo", "copy", "--quiet", "--all", "--preserve-digests", f"--src-tls-verify={self._verify}",
                f"docker://{reference}", f"dir:{folder}",
            )  # fmt: skip
        except ToolError as error:
            raise RegistryError(f"{reference}: {error}") from error
        if (found := digest_of((folder / "manifest.json").read_bytes())) != digest:
            raise RegistryError(f"{reference}: the registry answers with {found}")

    def attach_sbom(self, name: str, subject: str, content: bytes) -> str:
        """Put an SBOM beside an image, as an artifact that refers to it; returns the artifact's digest."""
        image = self.manifest(name, subject)
        config = b"{}"
        artifact = {
            "schemaVersion": 2,
            "mediaType": _OCI_MANIFEST,
            "artifactType": sbom.MEDIA_TYPE,
            "config": {"mediaType": _OCI_CONFIG, "digest": digest_of(config), "size": len(config)},
            "layers": [{"mediaType": sbom.MEDIA_TYPE, "digest": digest_of(content), "size": len(content)}],
            # A registry lists the artifact among the image's referrers by this, which must be the image's own type.
            "subject": {"mediaType": json.loads(image)["mediaType"], "digest": subject, "size": len(image)},
        }
        raw = json.dumps(artifact, indent=2).encode()
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            (folder / "version").write_text(VERSION_LINE, encoding="utf-8")
            (folder / "manifest.json").write_bytes(raw)
            for blob in (config, content):
                (folder / digest_of(blob).removeprefix("sha256:")).write_bytes(blob)
            self.push(folder, name, self.sbom_tag(subject))
        return digest_of(raw)

    def sbom(self, name: str, subject: str, expected: str) -> str:
        """Return the digest of the artifact that has an image's SBOM. RegistryError unless it refers to the image and has those bytes."""
        where = f"{self.address}/{name}: {subject}: its SBOM"
        tag = self.sbom_tag(subject)
        try:
            raw = self.tagged(name, tag)
            artifact = json.loads(raw)
            with tempfile.TemporaryDirectory() as scratch:
                self.run(
                    "skopeo", "copy", "--quiet", "--preserve-digests", f"--src-tls-verify={self._verify}",
                    f"docker://{self.reference(name, digest_of(raw))}", f"dir:{scratch}",
                )  # fmt: skip
        except (RegistryError, ToolError, ValueError) as error:
            raise RegistryError(f"{where} {expected} cannot be read: {error}") from error
        listed = [layer["digest"] for layer in artifact.get("layers", ())]
        if listed != [expected]:
            raise RegistryError(f"{where} is {listed}, and the release names {expected}")
        if artifact.get("subject", {}).get("digest") != subject:
            raise RegistryError(f"{where} refers to {artifact.get('subject')}")
        return digest_of(raw)

    @staticmethod
    def sbom_tag(subject: str) -> str:
        """Return the tag of an image's SBOM, for clients without the referrers API."""
        return f"{subject.replace(':', '-')}.sbom"

    def sign(self, name: str, digest: str, key: str | None) -> None:
        """Sign with cosign: with a key, or without one as the pipeline's own identity."""
        self.run("cosign", "sign", *self._how(key), *self._insecure, self.reference(name, digest))

    def attest(self, name: str, digest: str, kind: str, predicate: bytes, key: str | None) -> None:
        """Sign an in-toto statement about an image with cosign, and store it beside the image."""
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            file.write(predicate)
            file.flush()
            self.run(
                "cosign", "attest", "--type", kind, "--predicate", file.name, *self._how(key), *self._insecure,
                self.reference(name, digest),
            )  # fmt: skip

    def verify(self, name: str, digest: str, signer: Signer) -> None:
        """RegistryError unless cosign finds a signature of that signer."""
        reference = self.reference(name, digest)
        try:
            self.run("cosign", "verify", *signer.options, *self._insecure, reference)
        except ToolError as error:
            raise RegistryError(f"{reference}: no signature of {signer}: {error}") from error

    def attested(self, name: str, digest: str, kind: str, signer: Signer) -> list[dict[str, Any]]:
        """Return the statements about an image that this signer signed. RegistryError if there is none."""
        reference = self.reference(name, digest)
        try:
            written = self.run(
                "cosign", "verify-attestation", "--type", kind, *signer.options, *self._insecure, reference
            )
        except ToolError as error:
            raise RegistryError(f"{reference}: no {kind} signed by {signer}: {error}") from error
        envelopes = [json.loads(line) for line in written.splitlines() if line.startswith("{")]
        return [json.loads(base64.b64decode(envelope["payload"])) for envelope in envelopes]

    @staticmethod
    def _how(key: str | None) -> list[str]:
        return ["--key", key, "--tlog-upload=false"] if key else ["--yes"]

    @property
    def _insecure(self) -> list[str]:
        return ["--allow-insecure-registry", "--allow-http-registry"] if self.plain else []

    @property
    def _verify(self) -> str:
        return "false" if self.plain else "true"


def tag_of(release: Release) -> str:
    """The tag of a release's images: its version and commit. Nothing deploys by it."""
    return f"{release.versions.airbridge}-{release.revision[:12]}"
