"""TLS 1.3 for the gateway's listeners, under a certificate that the gateway issues to itself and renews."""

from __future__ import annotations

import ssl
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

from airbridge.control_plane.identity.ca import CertificateAuthority
from airbridge.control_plane.identity.secrets import write

LIFETIME: Final = timedelta(days=7)
RENEW_EVERY: Final = timedelta(days=1)


class ServerCertificate:
    """The gateway's own certificate, put into every context made here and renewed in place."""

    def __init__(self, ca: CertificateAuthority, names: Sequence[str], clock: Callable[[], datetime]) -> None:
        self._ca = ca
        self._names = names
        self._clock = clock
        self._contexts: list[ssl.SSLContext] = []

    def edge_context(self) -> ssl.SSLContext:
        """Return a context that verifies a client's certificate where there is one.

        It is not required, because a worker that enrols has none yet; every other endpoint requires it.
        """
        context = self._context()
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=self._ca.certificate_pem)
        return context

    def operator_context(self) -> ssl.SSLContext:
        """Return a context that asks for no client certificate."""
        return self._context()

    def renew(self) -> None:
        """Issue a new certificate; connections made from now on see it."""
        for context in self._contexts:
            self._load(context)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # No resumption: a resumed session would not show its certificate to be verified again.
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        self._load(context)
        self._contexts.append(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        certificate, key = self._ca.issue_server(self._names, self._clock(), LIFETIME)
        # OpenSSL reads these from files only; they are gone again when it has.
        with tempfile.TemporaryDirectory(prefix="airbridge-tls-") as directory:
            path = Path(directory) / "gateway.pem"
            write(path, certificate + key)
            context.load_cert_chain(path)
