"""Fields of a peer's certificate that the gateway reads, once per connection."""

from __future__ import annotations

import base64
import hashlib
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Self

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from airbridge.control_plane.exceptions import InvalidIdentity

# Exceptions of cryptography for malformed certificates; not all are a `ValueError`.
_UNREADABLE: Final = (
    ValueError,
    x509.ExtensionNotFound,
    x509.DuplicateExtension,
    x509.InvalidVersion,
    x509.UnsupportedGeneralNameType,
)


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """Client certificate whose chain TLS has verified; `uri` is its only SPIFFE URI."""

    uri: str
    #: SHA-256 of the DER certificate, hex.
    thumbprint: str
    #: The issuing CA's key identifier, hex.
    issuer: str
    serial: int
    not_before: datetime
    not_after: datetime

    @property
    def x5t_s256(self) -> str:
        """The thumbprint as RFC 8705 writes it: base64url without padding."""
        return base64.urlsafe_b64encode(bytes.fromhex(self.thumbprint)).rstrip(b"=").decode()

    def valid_at(self, now: datetime) -> bool:
        """Return whether the certificate is valid at `now`: a connection may outlive its certificate."""
        return self.not_before <= now < self.not_after

    @classmethod
    def from_der(cls, der: bytes) -> Self:
        """Read a DER certificate. Raises `InvalidIdentity` if it is not a worker's."""
        try:
            return cls.of(x509.load_der_x509_certificate(der), hashlib.sha256(der).hexdigest())
        except _UNREADABLE as error:
            raise InvalidIdentity(f"not a worker's certificate: {error}") from error

    @classmethod
    def of(cls, certificate: x509.Certificate, thumbprint: str) -> Self:
        """Read a parsed certificate with a known thumbprint."""
        extensions = certificate.extensions
        usage = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        if ExtendedKeyUsageOID.CLIENT_AUTH not in usage:
            raise InvalidIdentity("not a worker's certificate: it is not for client authentication")
        names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        if len(uris) != 1:
            raise InvalidIdentity(f"not a worker's certificate: {len(uris)} URIs in it, expected one")
        authority = extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        if authority is None:
            raise InvalidIdentity("not a worker's certificate: it does not name its issuer's key")
        return cls(
            uri=uris[0],
            thumbprint=thumbprint,
            issuer=authority.hex(),
            serial=certificate.serial_number,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
