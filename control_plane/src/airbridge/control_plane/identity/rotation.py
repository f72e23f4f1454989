"""Rotation of every key, in steps that each leave a secrets directory that works. Files only: gateways and schedulers follow.

A step that others must have taken up before the next one says so in its docstring; `airbridge keys` checks it.
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
from airbridge.control_plane.identity.ca import CertificateAuthority, RootAuthority, key_id
from airbridge.executor.protocol import VerifyKey
from airbridge.executor.signing import Signer, public_verify_key


@dataclass(frozen=True, slots=True)
class Certificates:
    """What ``ca.crt`` holds."""

    issuing: x509.Certificate
    others: tuple[x509.Certificate, ...]
    """Issuing CAs of before, whose certificates still run."""
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
    """Make a new issuing CA under `root`, which must be trusted already: workers renew to it within a heartbeat or two.

    The old one's certificates stay good until they run out, or until the old one is revoked.
    """
    here = certificates(directory)
    if root.certificate not in here.roots:
        raise SecretsError(
            f"root {root.key_id} is not trusted yet; 'airbridge ca add-root' first, and wait until workers have it"
        )
    new = root.issue_authority(trust_domain, now)
    # In this order a reader always finds a key and a certificate that belong together.
    _write_certificates(directory, [new.certificate, here.issuing], here.roots)
    secrets.write(directory / secrets.CA_KEY, new.key_pem())
    return CertificateAuthority.from_pem(secrets.read(directory / secrets.CA_CERTIFICATE), new.key_pem())


def add_root(directory: Path, root: x509.Certificate) -> None:
    """Trust another root. The trust bundle goes to workers by heartbeat; they need it before a CA under it issues."""
    here = certificates(directory)
    if root in here.roots:
        raise SecretsError(f"root {key_id(root)} is trusted already")
    if root.issuer != root.subject:
        raise SecretsError("the certificate is no root: it is not its own issuer")
    _write_certificates(directory, [here.issuing, *here.others], (*here.roots, root))


def drop_root(directory: Path, identifier: str) -> None:
    """Trust a root no more. Everything under it is refused from the next connection on."""
    here = certificates(directory)
    kept = tuple(root for root in here.roots if key_id(root) != identifier)
    if len(kept) == len(here.roots):
        known = ", ".join(key_id(root) for root in here.roots)
        raise SecretsError(f"there is no root {identifier!r}; trusted are {known}")
    authority = here.issuing.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    if (authority.key_identifier or b"").hex() == identifier or not kept:
        raise SecretsError(
            f"root {identifier} has signed the issuing CA in use; 'airbridge ca rotate' under another root first"
        )
    _write_certificates(directory, [here.issuing], kept)


def stage_signing_key(directory: Path) -> VerifyKey:
    """Make the next key for work items, and let it be known. Workers need it before `activate_signing_key`."""
    path = directory / secrets.NEXT_SIGNING_KEY
    if path.exists():
        raise SecretsError(f"{path} is there already; 'airbridge keys activate-signing' takes it into use")
    signer = Signer.generate()
    keys = secrets.load_verify_keys(directory)
    secrets.write(path, signer.to_pem())
    secrets.write_verify_keys(directory / secrets.VERIFY_KEYS, (*keys, signer.verify_key))
    return signer.verify_key


def activate_signing_key(directory: Path) -> VerifyKey:
    """Sign work items with the staged key from now on. Those under way are still verified with the old one."""
    path = directory / secrets.NEXT_SIGNING_KEY
    if not path.exists():
        raise SecretsError(f"there is no {path}; 'airbridge keys stage-signing' makes it")
    key = Signer.from_pem(secrets.read(path)).verify_key
    secrets.write(directory / secrets.SIGNING_KEY, secrets.read(path))
    path.unlink()
    return key


def retire_signing_keys(directory: Path) -> tuple[VerifyKey, ...]:
    """Forget every key but the one in use, and the staged one. Messages under them are worth nothing from then on."""
    used = [Signer.from_pem(secrets.read(directory / secrets.SIGNING_KEY)).verify_key.kid]
    staged = directory / secrets.NEXT_SIGNING_KEY
    if staged.exists():
        used.append(Signer.from_pem(secrets.read(staged)).verify_key.kid)
    keys = secrets.load_verify_keys(directory)
    kept = tuple(key for key in keys if key.kid in used)
    secrets.write_verify_keys(directory / secrets.VERIFY_KEYS, kept)
    return tuple(key for key in keys if key.kid not in used)


def rotate_token_key(directory: Path) -> VerifyKey:
    """Mint access tokens with a new key. Tokens by the old one are accepted, and their holders told to renew."""
    old = public_verify_key(secrets.load_ed25519(directory / secrets.TOKEN_KEY).public_key())
    signer = Signer.generate()
    before = secrets.load_old_token_keys(directory)
    secrets.write_verify_keys(directory / secrets.OLD_TOKEN_KEYS, (old, *before))
    secrets.write(directory / secrets.TOKEN_KEY, signer.to_pem())
    return signer.verify_key


def retire_token_keys(directory: Path) -> tuple[VerifyKey, ...]:
    """Accept tokens by the key in use only."""
    old = secrets.load_old_token_keys(directory)
    (directory / secrets.OLD_TOKEN_KEYS).unlink(missing_ok=True)
    return old


def _write_certificates(
    directory: Path, issuing: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> None:
    unique = [each for each in dict.fromkeys(issuing) if each not in roots]
    pem = b"".join(each.public_bytes(Encoding.PEM) for each in (*unique, *roots))
    secrets.write(directory / secrets.CA_CERTIFICATE, pem)
