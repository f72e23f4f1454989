"""Current keys of a gateway: read from the secrets directory, and reloaded when its files change."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from airbridge.control_plane.exceptions import SecretsError
from airbridge.control_plane.identity import secrets
from airbridge.control_plane.identity.access import AccessTokens
from airbridge.control_plane.identity.ca import CertificateAuthority, key_id
from airbridge.control_plane.identity.secrets import GatewaySecrets
from airbridge.core.protocol import TrustBundle, VerifyKey
from airbridge.core.signing import Verifier

FILES = (
    secrets.CA_CERTIFICATE,
    secrets.CA_KEY,
    secrets.VERIFY_KEYS,
    secrets.TOKEN_KEY,
    secrets.OLD_TOKEN_KEYS,
    secrets.PUBLISH_KEYS,
)


def trust_bundle(
    ca_pem: str, verify_keys: tuple[VerifyKey, ...], publish_keys: tuple[VerifyKey, ...] = ()
) -> TrustBundle:
    """Return the trust bundle; its version is a digest of its content."""
    keys = [f"{key.kid} {key.public_key}" for key in verify_keys]
    keys += [f"publish {key.kid} {key.public_key}" for key in publish_keys]
    content = "\n".join([ca_pem, *keys])
    version = hashlib.sha256(content.encode()).hexdigest()[:16]
    return TrustBundle(version=version, ca_pem=ca_pem, verify_keys=verify_keys, publish_keys=publish_keys)


@dataclass(frozen=True, slots=True)
class Keys:
    """Consistent set of keys."""

    ca: CertificateAuthority
    trust: TrustBundle
    tokens: AccessTokens
    verifier: Verifier

    @classmethod
    def of(cls, read: GatewaySecrets) -> Self:
        """Build the set from loaded secrets."""
        return cls(
            ca=read.ca,
            trust=trust_bundle(read.ca.certificate_pem, read.verify_keys, read.publish_keys),
            tokens=AccessTokens(read.token_key, read.old_token_keys),
            verifier=Verifier(read.verify_keys),
        )

    def describe(self) -> dict[str, object]:
        """Return the keys' public ids, for logs and the audit trail."""
        return {
            "issuing_ca": self.ca.key_id,
            "roots": [key_id(root) for root in self.ca.roots],
            "work_item_keys": [key.kid for key in self.trust.verify_keys],
            "publishing_keys": [key.kid for key in self.trust.publish_keys],
            "token_keys": self.tokens.key_ids,
            "trust": self.trust.version,
        }


class Keyring:
    """Holder of the current keys. Read `keys` once per request, so that its decisions are consistent."""

    def __init__(self, read: GatewaySecrets, directory: Path) -> None:
        self.directory = directory
        self._read_from = fingerprint(directory)
        self.keys = Keys.of(read)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """Read a secrets directory. Raises `SecretsError`."""
        return cls(GatewaySecrets.load(directory), directory)

    def reload(self) -> bool:
        """Reload the files if one has changed; return whether the keys changed.

        Raises `SecretsError` while the files are inconsistent: the keys stay as they were.
        """
        found = fingerprint(self.directory)
        if found == self._read_from:
            return False
        keys = Keys.of(GatewaySecrets.load(self.directory))
        if fingerprint(self.directory) != found:
            raise SecretsError(f"{self.directory} is being changed at this moment")
        self.keys, self._read_from = keys, found
        return True


def fingerprint(directory: Path) -> str:
    """Return a digest of the files' content."""
    digest = hashlib.sha256()
    for name in FILES:
        path = directory / name
        content = path.read_bytes() if path.exists() else b""
        digest.update(f"{name} {len(content)}\n".encode() + content)
    return digest.hexdigest()
