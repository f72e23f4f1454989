"""Signers of images in a registry: a cosign key, or the identity that cosign's certificate names.

An identity is a workflow of a repository on a branch, as the issuer of its token knows it: another workflow of the same repository, or
the same workflow on another branch, signs as somebody else.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass

from pydantic import ValidationError

from airbridge.ci.checkout import Checkout
from airbridge.ci.exceptions import ManifestError
from airbridge.ci.images import provenance
from airbridge.ci.release import keys


@dataclass(frozen=True)
class Signer:
    """Signer of images: `key` is a public key of cosign, `identity` and `issuer` are those of a certificate.

    `roots` is a PEM file of the authorities that issue certificates, where they are not Sigstore's own: then there is neither
    transparency log nor timestamp to be asked.
    """

    key: str | None = None
    identity: str | None = None
    issuer: str | None = None
    roots: str | None = None

    @property
    def options(self) -> list[str]:
        """Return cosign's options that accept this signer and no other."""
        if self.key is not None:
            return ["--key", self.key, "--insecure-ignore-tlog"]
        named = [
            f"--certificate-identity={self.identity}",
            f"--certificate-oidc-issuer={self.issuer}",
        ]
        private = [f"--ca-roots={self.roots}", "--insecure-ignore-tlog", "--insecure-ignore-sct"]
        return [*named, *(private if self.roots else ())]

    @property
    def builder(self) -> str:
        """Return the builder that this signer's provenance names."""
        return self.identity or provenance.BY_HAND

    def __str__(self) -> str:
        return self.key or f"{self.identity}, as {self.issuer} knows it"


def pipeline(checkout: Checkout) -> Signer:
    """Return the pipeline that signs releases, from images/release-keys.toml. Raises ManifestError if it names none."""
    text = checkout.source(keys.FILE).text
    try:
        found = keys.Keys.model_validate(tomllib.loads(text)).keyless
    except (tomllib.TOMLDecodeError, ValidationError) as error:
        raise ManifestError(f"{keys.FILE}: {error}") from error
    if found is None:
        raise ManifestError(
            f"{keys.FILE}: [keyless] is missing: it names the workflow that signs images without a key"
        )
    return Signer(identity=found.identity, issuer=found.issuer)


def chosen(checkout: Checkout, key: str | None, *, keyless: bool) -> Signer | None:
    """Return the signer that a command's options name; None if they name none."""
    if keyless:
        return pipeline(checkout)
    return Signer(key=key) if key is not None else None
