"""uvicorn's HTTP protocol, with the peer's certificate in the ASGI scope and a bound on how long a request may take to arrive.

uvicorn does not put the certificate there. It is read once, when the connection is made.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final, cast

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from airbridge.control_plane.exceptions import InvalidIdentity
from airbridge.control_plane.gateway.authentication import PEER, Peer
from airbridge.control_plane.gateway.connections import Ticket
from airbridge.control_plane.identity.certificates import PeerCertificate

MAX_HEAD_BYTES: Final = 32_768
HEAD_SECONDS: Final = 15.0
"""How long a client may take to send a request's head, from the connection or from its first byte."""
MESSAGE_SECONDS: Final = 150.0
"""How long a request's body may take, whether or not somebody reads it; the application has bounds of its own."""
WRITE_SECONDS: Final = 60.0
"""How long a client may leave an answer lying that does not fit into the socket's buffers."""


class PeerProtocol(HttpToolsProtocol):
    """HTTP/1.1 over TLS: knows its peer, and gives up on heads that are too big or too slow."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], ticket: Ticket
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._ticket = ticket
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Read who is at the other end."""
        super().connection_made(transport)
        self._head_bytes = 0
        self._in_head = True
        self._peer = read_peer(transport.get_extra_info("ssl_object"), self.client)
        self._ticket.abort = transport.abort
        if self._peer.certificate is not None:
            self._ticket.belongs_to(self._peer.certificate.uri)
        self._expect(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the deadlines, and give the place back."""
        self._stop_waiting()
        self._stop_writing()
        self._ticket.give_back()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes of a head before the parser gathers them: the parser itself has no bound."""
        if self._in_head:
            self._head_bytes += len(data)
            self._expect(HEAD_SECONDS)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        """Put the peer where the application looks for it."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[PEER] = self._peer

    def on_headers_complete(self) -> None:
        """Stop counting: what follows is the body, which the application bounds."""
        self._in_head = False
        self._head_bytes = 0
        self._stop_waiting()
        self._expect(MESSAGE_SECONDS)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The next bytes are a new head."""
        self._in_head = True
        self._stop_waiting()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client does not take what it is sent."""
        super().pause_writing()
        self._stop_writing()
        self._write_deadline = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        self._stop_writing()
        super().resume_writing()

    def _expect(self, seconds: float) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(seconds, self._give_up)

    def _stop_writing(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def read_peer(ssl_object: ssl.SSLObject | None, address: tuple[str, int] | None) -> Peer:
    """Return the peer of a connection; TLS has verified the chain of the certificate, if there is one."""
    where = f"{address[0]}:{address[1]}" if address else "unknown"
    der = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
    if der is None:
        return Peer(where)
    try:
        return Peer(where, PeerCertificate.from_der(der))
    except InvalidIdentity as error:
        return Peer(where, problem=str(error))
