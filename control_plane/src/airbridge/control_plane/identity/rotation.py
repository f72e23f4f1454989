"""Key rotation, in steps that each leave a consistent secrets directory. Gateways and schedulers reload the files.

The docstring of a step names what must have reached workers before it; `airbridge keys` checks it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from airbridge.control_plane.exceptions import SecretsError
from airbridge.control_plane.identity import secrets
from airbridge.control_plane.identity.ca import WARN_BEFORE, CertificateAuthority, RootAuthority, key_id
from airbridge.core.code.signature import PUBLISH_KEY
from airbridge.core.protocol import VerifyKey
from airbridge.core.signing import Signer, public_verify_key


@dataclass(frozen=True, slots=True)
class Certificates:
    """Content of ``ca.crt``."""

    issuing: x509.Certificate
    #: Previous issuing CAs, whose certificates are still valid.
    others: tuple[x509.Certificate, ...]
    roots: tuple[x509.Certificate, ...]


def certificates(directory: Path) -> Certificates:
    """Read ``ca.crt``. Raises `SecretsError`."""
    ca = secrets.load_ca(directory)
    found = x509.load_pem_x509_certificates(secrets.read(directory / secrets.CA_CERTIFICATE))
    others = [each for each in found if each != ca.certificate and each not in ca.roots]
    return Certificates(ca.certificate, tuple(others), ca.roots)


def rotate_issuing_ca(
    directory: Path, root: RootAuthority, trust_domain: str, now: datetime
) -> CertificateAuthority:
    """Create a new issuing CA under `root`, which workers must trust already. They renew within a heartbeat or two.

    Certificates of the old one stay valid until they expire, or until the old one is revoked.
    """
    current = certificates(directory)
    if root.certificate not in current.roots:
        raise SecretsError(
            f"root {root.key_id} is not trusted yet; run 'airbridge ca new-root' first, and wait until workers have it"
        )
    new = root.issue_authority(trust_domain, now)
    # In this order a reader always finds a key with its certificate.
    _write_certificates(directory, [new.certificate, current.issuing], current.roots)
    secrets.write(directory / secrets.CA_KEY, new.key_pem())
    return CertificateAuthority.from_pem(secrets.read(directory / secrets.CA_CERTIFICATE), new.key_pem())


def rotate_ending_ca(directory: Path, trust_domain: str, now: datetime) -> CertificateAuthority | None:
    """Create a new issuing CA if the current one ends within `WARN_BEFORE`, and its root's key is in the directory."""
    current = certificates(directory)
    root_directory = directory / secrets.ROOT_DIRECTORY
    if (
        current.issuing.not_valid_after_utc - now > WARN_BEFORE
        or not (root_directory / secrets.ROOT_KEY).exists()
    ):
        return None
    root = secrets.load_root(root_directory)
    trusted = root.certificate in current.roots
    return rotate_issuing_ca(directory, root, trust_domain, now) if trusted else None


def add_root(directory: Path, root: x509.Certificate) -> None:
    """Trust another root. Workers receive it by heartbeat, and need it before a CA under it issues certificates."""
    current = certificates(directory)
    if root in current.roots:
        raise SecretsError(f"root {key_id(root)} is trusted already")
    if root.issuer != root.subject:
        raise SecretsError("the certificate is not a root: it is not its own issuer")
    _write_certificates(directory, [current.issuing, *current.others], (*current.roots, root))


def drop_root(directory: Path, identifier: str) -> None:
    """Stop trusting a root. Certificates under it are refused from the next connection on."""
    current = certificates(directory)
    kept = tuple(root for root in current.roots if key_id(root) != identifier)
    if len(kept) == len(current.roots):
        known = ", ".join(key_id(root) for root in current.roots)
        raise SecretsError(f"there is no root {identifier!r}; trusted are {known}")
    authority = current.issuing.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    if (authority.key_identifier or b"").hex() == identifier or not kept:
        raise SecretsError(
            f"root {identifier} has signed the issuing CA in use; 'airbridge ca rotate' under another root first"
        )
    _write_certificates(directory, [current.issuing], kept)


def stage_signing_key(directory: Path) -> VerifyKey:
    """Create the next work-item signing key and publish it. Workers need it before `activate_signing_key`."""
    path = directory / secrets.NEXT_SIGNING_KEY
    if path.exists():
        raise SecretsError(f"{path} is there already; 'airbridge keys activate-signing' takes it into use")
    signer = Signer.generate()
    keys = secrets.load_verify_keys(directory)
    secrets.write(path, signer.to_pem())
    secrets.write_verify_keys(directory / secrets.VERIFY_KEYS, (*keys, signer.verify_key))
    return signer.verify_key


def activate_signing_key(directory: Path) -> VerifyKey:
    """Sign work items with the staged key. Messages in flight are still verified with the old one."""
    path = directory / secrets.NEXT_SIGNING_KEY
    if not path.exists():
        raise SecretsError(f"there is no {path}; 'airbridge keys stage-signing' makes it")
    key = Signer.from_pem(secrets.read(path)).verify_key
    secrets.write(directory / secrets.SIGNING_KEY, secrets.read(path))
    path.unlink()
    return key


def retire_signing_keys(directory: Path) -> tuple[VerifyKey, ...]:
    """Drop every key but the current and the staged one. Messages signed with dropped keys become invalid."""
    used = [Signer.from_pem(secrets.read(directory / secrets.SIGNING_KEY)).verify_key.kid]
    staged = directory / secrets.NEXT_SIGNING_KEY
    if staged.exists():
        used.append(Signer.from_pem(secrets.read(staged)).verify_key.kid)
    keys = secrets.load_verify_keys(directory)
    kept = tuple(key for key in keys if key.kid in used)
    secrets.write_verify_keys(directory / secrets.VERIFY_KEYS, kept)
    return tuple(key for key in keys if key.kid not in used)


def rotate_publishing_key(directory: Path) -> VerifyKey:
    """Sign snapshots with a new key, or with a first one. What the old one has signed stays good: workers keep both keys.

    Once every live worker has the new key, gateways sign the recorded snapshots anew; then `retire_publishing_keys` ends the old key.
    A new snapshot that is claimed before its worker's next heartbeat is fetched again until the key has arrived.
    """
    signer = Signer.generate()
    keys = secrets.load_publish_keys(directory)
    # Published first: a snapshot must not be signed with a key that no worker knows yet.
    secrets.write_verify_keys(directory / secrets.PUBLISH_KEYS, (*keys, signer.verify_key))
    secrets.write(directory / PUBLISH_KEY, signer.to_pem())
    return signer.verify_key


def retire_publishing_keys(directory: Path) -> tuple[VerifyKey, ...]:
    """Drop every key of snapshots but the current one. What dropped keys have signed is refused by workers from then on.

    By then gateways must have signed the recorded snapshots anew, and what was granted before must have started.
    """
    keys = secrets.load_publish_keys(directory)
    used = Signer.from_pem(secrets.read(directory / PUBLISH_KEY)).verify_key
    secrets.write_verify_keys(directory / secrets.PUBLISH_KEYS, (used,))
    return tuple(key for key in keys if key.kid != used.kid)


def rotate_token_key(directory: Path) -> VerifyKey:
    """Sign access tokens with a new key. Tokens of the old one stay valid, and their holders receive RenewCommands."""
    old = public_verify_key(secrets.load_ed25519(directory / secrets.TOKEN_KEY).public_key())
    signer = Signer.generate()
    before = secrets.load_old_token_keys(directory)
    secrets.write_verify_keys(directory / secrets.OLD_TOKEN_KEYS, (old, *before))
    secrets.write(directory / secrets.TOKEN_KEY, signer.to_pem())
    return signer.verify_key


def retire_token_keys(directory: Path) -> tuple[VerifyKey, ...]:
    """Accept only tokens signed with the current key."""
    old = secrets.load_old_token_keys(directory)
    (directory / secrets.OLD_TOKEN_KEYS).unlink(missing_ok=True)
    return old


def _write_certificates(
    directory: Path, issuing: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> None:
    unique = [each for each in dict.fromkeys(issuing) if each not in roots]
    pem = b"".join(each.public_bytes(Encoding.PEM) for each in (*unique, *roots))
    secrets.write(directory / secrets.CA_CERTIFICATE, pem)
