"""uvicorn's HTTP protocol, with the peer's certificate in the ASGI scope and deadlines for slow clients.

uvicorn does not add the certificate to the scope. It is read once, when the connection is established.
"""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, Final, cast

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from airbridge.control_plane.exceptions import InvalidIdentity
from airbridge.control_plane.gateway.auth.authentication import PEER, Peer
from airbridge.control_plane.gateway.net.connections import Ticket
from airbridge.control_plane.identity.certificates import PeerCertificate

MAX_HEAD_BYTES: Final = 32_768
MAX_HEADERS: Final = 64
# Bytes of a chunk's framing to each byte of a body: a client may send single bytes as chunks.
FRAMING: Final = 8
# Deadline for a request's head, from the connection or from its first byte.
HEAD_SECONDS: Final = 15.0
# Deadline for a request's body, whether or not the application reads it; the application's own is shorter.
MESSAGE_SECONDS: Final = 150.0
# Bytes a second at which the body of a caller with a certificate may arrive beyond that: XComs over a slow line. The application
# bounds its size, and so its time.
SLOWEST: Final = 64 * 1024
# Deadline for the rest of a body that nobody reads any more, because its request is answered.
LINGER_SECONDS: Final = 5.0
# Deadline for a client to read a response that does not fit into the socket's buffers.
WRITE_SECONDS: Final = 60.0


class _TooMuch(Exception):  # noqa: N818 - raised to the parser, which ends the connection
    """A request with too many headers, or with headers after its body."""


class PeerProtocol(HttpToolsProtocol):
    """HTTP/1.1 over TLS with the peer in the scope; closes connections whose heads are too large or too slow."""

    def __init__(
        self, config: Config, server_state: ServerState, app_state: dict[str, Any], ticket: Ticket
    ) -> None:
        super().__init__(config, server_state, app_state)
        self._ticket = ticket
        self._deadline: asyncio.TimerHandle | None = None
        self._write_deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        """Read the peer's certificate."""
        super().connection_made(transport)
        self._head_bytes = 0
        self._body_bytes = 0
        self._received = 0
        self._in_head = True
        self._peer = read_peer(transport.get_extra_info("ssl_object"), self.client)
        self._ticket.abort = transport.abort
        if self._peer.certificate is not None:
            self._ticket.assign_worker(self._peer.certificate.uri)
        self._start_deadline(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the deadlines, and free the connection's slot."""
        self._cancel_deadline()
        self._cancel_write_deadline()
        self._ticket.release()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count the bytes that the parser itself buffers without limit: of a head, and of what frames a body's chunks."""
        in_body = not self._in_head
        self._head_bytes += len(data)
        if self._in_head:
            self._start_deadline(HEAD_SECONDS)
        super().data_received(data)
        if in_body and not self._in_head:
            self._head_bytes = max(0, self._head_bytes - self._body_bytes * FRAMING)
            self._body_bytes = 0
        if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.send_400_response("The request's head is too large.")

    def on_message_begin(self) -> None:
        """Add the peer to the ASGI scope."""
        super().on_message_begin()
        cast("dict[str, Any]", self.scope)[PEER] = self._peer

    def on_header(self, name: bytes, value: bytes) -> None:
        """Bound the number of headers. None may follow the body: nothing here reads trailers."""
        if not self._in_head or len(self.headers) >= MAX_HEADERS:
            raise _TooMuch
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Stop counting: the body follows, which the application limits."""
        self._in_head = False
        self._head_bytes = 0
        self._cancel_deadline()
        self._received, self._began = 0, self.loop.time()
        self._deadline = self.loop.call_later(MESSAGE_SECONDS, self._message_late)
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Count the body's own bytes."""
        self._body_bytes += len(body)
        self._received += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Expect the head of the next request."""
        self._in_head = True
        self._head_bytes = self._body_bytes = 0
        self._cancel_deadline()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give the client a moment to end its body, if the request was answered without it."""
        super().on_response_complete()
        if not self._in_head and self.cycle.response_complete:
            self._cancel_deadline()
            self._start_deadline(LINGER_SECONDS)

    def pause_writing(self) -> None:
        """Start the write deadline: the client does not read its response."""
        super().pause_writing()
        self._cancel_write_deadline()
        self._write_deadline = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Cancel the write deadline: the client reads again."""
        self._cancel_write_deadline()
        super().resume_writing()

    def _start_deadline(self, seconds: float) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(seconds, self._close)

    def _cancel_write_deadline(self) -> None:
        if self._write_deadline is not None:
            self._write_deadline.cancel()
            self._write_deadline = None

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _message_late(self) -> None:
        """Close the connection, unless the body of a known caller arrives at the rate of a slow line."""
        self._deadline = None
        allowed = MESSAGE_SECONDS
        if self._peer.certificate is not None:
            allowed += self._received / SLOWEST
        left = self._began + allowed - self.loop.time()
        if left > 0.001:
            self._deadline = self.loop.call_later(left, self._message_late)
        else:
            self._close()

    def _close(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()


def read_peer(ssl_object: ssl.SSLObject | None, address: tuple[str, int] | None) -> Peer:
    """Return the peer of a connection. TLS has verified the certificate's chain, if there is a certificate."""
    where = f"{address[0]}:{address[1]}" if address else "unknown"
    der = ssl_object.getpeercert(binary_form=True) if ssl_object is not None else None
    if der is None:
        return Peer(where)
    try:
        return Peer(where, PeerCertificate.from_der(der))
    except InvalidIdentity as error:
        return Peer(where, problem=str(error))
