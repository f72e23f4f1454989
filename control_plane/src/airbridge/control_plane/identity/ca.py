"""Two-tier CA: an offline root that signs issuing CAs, and an issuing CA for workers and the gateway."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from airbridge.control_plane.exceptions import AuthorityEnded, InvalidIdentity, SecretsError
from airbridge.control_plane.identity.spiffe import WorkerName

CA_LIFETIME = timedelta(days=3650)
ISSUING_LIFETIME = timedelta(days=365)
# From then on logs and alarms name the CA that ends, and local mode rotates its own.
WARN_BEFORE = timedelta(days=30)
# Backdating of workers' certificates: the clocks of the gateways that verify them differ a little.
BACKDATE = timedelta(minutes=5)
# Backdating of the CA's and the gateway's certificates: edge hosts verify them, and their clocks may be far off.
SERVER_BACKDATE = timedelta(days=1)
MAX_CSR_BYTES = 16_384


class RootAuthority:
    """Root CA: signs only issuing CAs. Its key is offline except when one is created."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self._key = key

    @classmethod
    def generate(cls, trust_domain: str, now: datetime) -> Self:
        """Return a new root for `trust_domain`."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _ca_name("root", trust_domain)
        certificate = _ca_builder(name, name, key.public_key(), now, now + CA_LIFETIME, path_length=1)
        return cls(certificate.sign(key, hashes.SHA256()), key)

    @classmethod
    def from_pem(cls, certificate_pem: bytes, key_pem: bytes) -> Self:
        """Load a root. Raises `SecretsError` if certificate and key do not match."""
        certificate = _certificates(certificate_pem)[0]
        return cls(certificate, _ec_key(key_pem, [certificate]))

    @property
    def certificate_pem(self) -> str:
        """PEM of the root's certificate."""
        return _pem(self.certificate)

    @property
    def key_id(self) -> str:
        """Key identifier of the root, in hex."""
        return key_id(self.certificate)

    def key_pem(self) -> bytes:
        """Return the private key as unencrypted PKCS#8 PEM."""
        return _key_pem(self._key)

    def issue_authority(self, trust_domain: str, now: datetime) -> CertificateAuthority:
        """Return a new issuing CA under this root."""
        key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(
            x509.SubjectKeyIdentifier(bytes.fromhex(self.key_id))
        )
        until = min(now + ISSUING_LIFETIME, self.certificate.not_valid_after_utc)
        builder = _ca_builder(
            _ca_name("issuing CA", trust_domain),
            self.certificate.subject,
            key.public_key(),
            now,
            until,
            path_length=0,
        )
        certificate = builder.add_extension(authority, critical=False).sign(self._key, hashes.SHA256())
        return CertificateAuthority(certificate, key, (self.certificate,))


class CertificateAuthority:
    """Issuing CA: issues leaf certificates. Holds a private key of the control plane."""

    def __init__(
        self,
        certificate: x509.Certificate,
        key: ec.EllipticCurvePrivateKey,
        roots: Sequence[x509.Certificate] = (),
    ) -> None:
        self.certificate = certificate
        self._key = key
        self.roots = tuple(roots) or (certificate,)

    @classmethod
    def generate(cls, trust_domain: str, now: datetime) -> Self:
        """Return a new one-tier CA for `trust_domain`, which is its own root."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = _ca_name("issuing CA", trust_domain)
        certificate = _ca_builder(name, name, key.public_key(), now, now + CA_LIFETIME, path_length=0)
        return cls(certificate.sign(key, hashes.SHA256()), key)

    @classmethod
    def from_pem(cls, certificates_pem: bytes, key_pem: bytes) -> Self:
        """Load a CA: `certificates_pem` holds the certificate of the key, and the roots.

        Raises `SecretsError` if they do not match.
        """
        certificates = _certificates(certificates_pem)
        key = _ec_key(key_pem, certificates)
        issuing = next(each for each in certificates if each.public_key() == key.public_key())
        roots = [each for each in certificates if each.issuer == each.subject]
        if not any(_issued(root, issuing) for root in roots):
            raise SecretsError("no root among the CA's certificates has signed the issuing CA's")
        return cls(issuing, key, roots)

    @property
    def root(self) -> x509.Certificate:
        """Root that signed the issuing CA's certificate; the certificate itself if it is a root."""
        return next((root for root in self.roots if _issued(root, self.certificate)), self.certificate)

    @property
    def certificate_pem(self) -> str:
        """PEM of the roots' certificates."""
        return "".join(_pem(root) for root in self.roots)

    @property
    def chain_pem(self) -> str:
        """Intermediate certificates that are sent with a leaf: the issuing CA's, unless it is a root."""
        return "" if self.certificate in self.roots else _pem(self.certificate)

    @property
    def key_id(self) -> str:
        """Key identifier of the issuing CA, in hex, as revocations and leaf certificates name it."""
        return key_id(self.certificate)

    def key_pem(self) -> bytes:
        """Return the private key as unencrypted PKCS#8 PEM."""
        return _key_pem(self._key)

    def issue_worker(
        self, csr_pem: str, name: WorkerName, now: datetime, lifetime: timedelta
    ) -> x509.Certificate:
        """Return a client certificate for `name` over the CSR's key; everything else in the CSR is ignored.

        Raises `InvalidIdentity` if the CSR cannot be read or its key is not EC P-256 or Ed25519; `AuthorityEnded`.
        """
        public_key = _csr_key(csr_pem)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name.worker)])
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(name.uri)])
        return self._issue(
            subject,
            public_key,
            names,
            usage=ExtendedKeyUsageOID.CLIENT_AUTH,
            now=now,
            lifetime=lifetime,
            backdate=BACKDATE,
        )

    def issue_server(self, hosts: Sequence[str], now: datetime, lifetime: timedelta) -> tuple[bytes, bytes]:
        """Return (certificate PEM, key PEM) of a server reached by these DNS names and IP addresses.

        Raises `AuthorityEnded`.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "AirBridge gateway")])
        names = x509.SubjectAlternativeName([_general_name(host) for host in hosts])
        leaf = self._issue(
            subject,
            key.public_key(),
            names,
            usage=ExtendedKeyUsageOID.SERVER_AUTH,
            now=now,
            lifetime=lifetime,
            backdate=SERVER_BACKDATE,
        )
        return leaf.public_bytes(Encoding.PEM) + self.chain_pem.encode(), _key_pem(key)

    def _issue(
        self,
        subject: x509.Name,
        public_key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
        names: x509.SubjectAlternativeName,
        *,
        usage: x509.ObjectIdentifier,
        now: datetime,
        lifetime: timedelta,
        backdate: timedelta,
    ) -> x509.Certificate:
        ends = self.certificate.not_valid_after_utc
        if ends <= now:
            raise AuthorityEnded(
                f"the issuing CA {self.key_id} ended at {ends.isoformat()} and can issue no certificates; 'airbridge ca rotate' makes a new one"
            )
        identifier = x509.SubjectKeyIdentifier(bytes.fromhex(self.key_id))
        authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)
        return (
            # No longer than the CA: its end is the end of the chain, and a worker must know when to enrol again.
            _builder(subject, self.certificate.subject, public_key, now - backdate, min(now + lifetime, ends))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_key_usage(ca=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
            .add_extension(names, critical=False)
            .add_extension(authority, critical=False)
            .sign(self._key, hashes.SHA256())
        )


def key_id(certificate: x509.Certificate) -> str:
    """Return a CA's key identifier, hex."""
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest.hex()


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(Encoding.PEM).decode()


def _certificates(pem: bytes) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(pem)
    except ValueError as error:
        raise SecretsError(f"the CA's certificates are not valid PEM: {error}") from error


def _ec_key(pem: bytes, certificates: Sequence[x509.Certificate]) -> ec.EllipticCurvePrivateKey:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise SecretsError(f"the CA's key is not an unencrypted PEM: {error}") from error
    fits = any(each.public_key() == key.public_key() for each in certificates)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not fits:
        raise SecretsError("the CA's key must be the EC key of one of the CA's certificates")
    return key


def _issued(root: x509.Certificate, certificate: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _ca_name(what: str, trust_domain: str) -> x509.Name:
    # Names of CAs need not be unique: key identifiers are.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"AirBridge {what} for {trust_domain}"[:64])])


def _ca_builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    not_before: datetime,
    not_after: datetime,
    *,
    path_length: int,
) -> x509.CertificateBuilder:
    return (
        _builder(subject, issuer, key, not_before - SERVER_BACKDATE, not_after)
        .add_extension(x509.BasicConstraints(ca=True, path_length=path_length), critical=True)
        .add_extension(_key_usage(ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey,
    not_before: datetime,
    not_after: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
    )


def _key_usage(*, ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not ca,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def _csr_key(csr_pem: str) -> ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey:
    if len(csr_pem) > MAX_CSR_BYTES:
        raise InvalidIdentity(f"the CSR has {len(csr_pem)} bytes, more than {MAX_CSR_BYTES}")
    try:
        csr = x509.load_pem_x509_csr(csr_pem.encode())
        key = csr.public_key()
        signed = csr.is_signature_valid
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.InvalidVersion) as error:
        raise InvalidIdentity("the CSR is not a valid PEM certificate signing request") from error
    if not signed:
        raise InvalidIdentity("the CSR is not signed by its own key")
    if isinstance(key, ed25519.Ed25519PublicKey):
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1):
        return key
    raise InvalidIdentity("the CSR's key must be EC P-256 or Ed25519")


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
