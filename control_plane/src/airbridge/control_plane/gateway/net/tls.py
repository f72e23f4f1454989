"""TLS 1.3 for the gateway's listeners, under a certificate that the gateway issues to itself and renews."""

from __future__ import annotations

import asyncio
import ssl
import tempfile
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final

import structlog

from airbridge.control_plane.exceptions import AuthorityEnded
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.control_plane.identity.secrets import write

log = structlog.get_logger()

LIFETIME: Final = timedelta(days=7)
RENEW_EVERY: Final = timedelta(days=1)


class ServerContexts:
    """SSL contexts of new connections. They are replaced as a whole, so that a root can also lose its trust."""

    def __init__(self, keyring: Keyring, names: Sequence[str], clock: Callable[[], datetime]) -> None:
        """Raises `AuthorityEnded`."""
        self._keyring = keyring
        self._names = names
        self._clock = clock
        self._renew()

    def try_renew(self) -> None:
        """Issue a new certificate; later connections use it, and are verified against the current roots.

        An issuing CA that has ended changes nothing and is logged: the next one is taken up as soon as its files are there.
        """
        try:
            self._renew()
        except AuthorityEnded as error:
            log.error("gateway.certificate_not_renewed", why=str(error))  # noqa: TRY400 - no fault of this code
        else:
            log.info("gateway.certificate_renewed")

    async def run(self) -> None:
        """Renew daily, until cancelled."""
        while True:
            await asyncio.sleep(RENEW_EVERY.total_seconds())
            self.try_renew()

    def _renew(self) -> None:
        self._ca = self._keyring.keys.ca
        self._edge, self._operators = self._edge_context(), self._context()

    def edge(self) -> ssl.SSLContext:
        """Return the context that verifies a client's certificate where there is one.

        It is not required, because a worker that enrols has none yet; every other endpoint requires it.
        """
        return self._edge

    def operators(self) -> ssl.SSLContext:
        """Return the context without client certificates."""
        return self._operators

    def _edge_context(self) -> ssl.SSLContext:
        context = self._context()
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(cadata=self._ca.certificate_pem)
        return context

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        # No resumption: a resumed session would skip the verification of its certificate.
        context.num_tickets = 0
        context.set_alpn_protocols(["http/1.1"])
        self._load(context)
        return context

    def _load(self, context: ssl.SSLContext) -> None:
        certificate, key = self._ca.issue_server(self._names, self._clock(), LIFETIME)
        # OpenSSL loads certificate chains only from files; they are deleted right afterwards.
        with tempfile.TemporaryDirectory(prefix="airbridge-tls-") as directory:
            path = Path(directory) / "gateway.pem"
            write(path, certificate + key)
            context.load_cert_chain(path)
