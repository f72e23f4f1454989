"""Keys, certificate requests and TLS contexts. Private keys stay in memory: nothing here writes to a disk."""

from __future__ import annotations

import os
import ssl

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from airbridge.edge_worker.exceptions import IdentityError


def new_key() -> ec.EllipticCurvePrivateKey:
    """Return a new P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def certificate_request(key: ec.EllipticCurvePrivateKey, worker: str) -> str:
    """Return a PEM certificate request for `worker`; the CA decides on the certificate's content."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, worker)])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(Encoding.PEM).decode()


def anonymous_context(ca_pem: str) -> ssl.SSLContext:
    """Return a context that trusts only `ca_pem` and shows no certificate: for enrolment."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    try:
        context.load_verify_locations(cadata=ca_pem)
    except (ssl.SSLError, ValueError) as error:
        raise IdentityError(f"the CA certificates are not PEM: {error}") from error
    return context


def mutual_context(ca_pem: str, certificate_pem: str, key: ec.EllipticCurvePrivateKey) -> ssl.SSLContext:
    """Return a context that trusts only `ca_pem` and shows the certificate.

    Raises `IdentityError` if certificate and key do not belong together.
    """
    _check_pair(certificate_pem, key)
    context = anonymous_context(ca_pem)
    key_pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # Python's ssl takes a certificate by path only; an anonymous file in memory has one for as long as it is open.
    descriptor = os.memfd_create("airbridge-identity")
    try:
        os.write(descriptor, certificate_pem.encode() + b"\n" + key_pem)
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    except ssl.SSLError as error:
        raise IdentityError(f"the certificate cannot be used: {error}") from error
    finally:
        os.close(descriptor)
    return context


def _check_pair(certificate_pem: str, key: ec.EllipticCurvePrivateKey) -> None:
    try:
        certificate = x509.load_pem_x509_certificate(certificate_pem.encode())
    except ValueError as error:
        raise IdentityError(f"the certificate that was issued is not PEM: {error}") from error
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if certificate.public_key().public_bytes(*form) != key.public_key().public_bytes(*form):
        raise IdentityError("the certificate that was issued is not for the key of the request")
