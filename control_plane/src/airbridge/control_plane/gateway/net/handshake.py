"""Accept loop with TLS handshakes under the current context, and an audit row for each handshake it refuses.

uvicorn would give the event loop one SSL context for good, and asyncio does not report failed handshakes.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import structlog

from airbridge.control_plane.gateway.audit.denials import ANONYMOUS, Denial
from airbridge.control_plane.gateway.loops import supervise
from airbridge.control_plane.gateway.net.connections import Connections, Ticket

log = structlog.get_logger()

HANDSHAKE_SECONDS: Final = 15.0
# Pause before the next accept when the process has no file descriptors left.
PAUSE_SECONDS: Final = 0.5
# Parts of OpenSSL's reason names for failures that the client caused by an alert or by disconnecting: those are
# not denials.
_CLIENT_REASONS: Final = ("ALERT", "EOF", "UNEXPECTED")


class Acceptor:
    """Accepts connections on one bound socket. `start`, then `close`."""

    def __init__(
        self,
        listening: socket.socket,
        context: Callable[[], ssl.SSLContext],
        protocol: Callable[[Ticket], asyncio.Protocol],
        connections: Connections,
        denied: Callable[[Denial], object],
    ) -> None:
        self._listening = listening
        self._context = context
        self._protocol = protocol
        self._connections = connections
        self._denied = denied
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """Bound port."""
        port: int = self._listening.getsockname()[1]
        return port

    def start(self, backlog: int) -> None:
        """Start listening."""
        self._listening.listen(backlog)
        self._listening.setblocking(False)
        self._start_task(supervise("accept", self._accept, PAUSE_SECONDS))

    def close(self) -> None:
        """Stop accepting, and cancel handshakes in progress. uvicorn calls it at shutdown."""
        for task in self._tasks:
            task.cancel()
        self._listening.close()

    async def wait_closed(self) -> None:
        """Wait for the cancelled tasks. uvicorn awaits it."""
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, address = await loop.sock_accept(self._listening)
            except OSError as error:
                log.warning("gateway.accept_failed", detail=str(error))
                await asyncio.sleep(PAUSE_SECONDS)
                continue
            self._admit(connection, where(address))
            # With a queue of connections `sock_accept` never yields, and pending handshakes would starve.
            await asyncio.sleep(0)

    def _admit(self, connection: socket.socket, address: str) -> None:
        def abort() -> None:
            task.cancel()

        ticket = self._connections.admit(address.rpartition(":")[0], abort)
        if ticket is None:
            connection.close()
            return
        task = self._start_task(self._secure(connection, address, ticket))

    async def _secure(self, connection: socket.socket, address: str, ticket: Ticket) -> None:
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: self._protocol(ticket),
                connection,
                ssl=self._context(),
                ssl_handshake_timeout=HANDSHAKE_SECONDS,
            )
        except (OSError, TimeoutError) as error:
            ticket.release()
            self._failed(address, error)
        except asyncio.CancelledError:
            ticket.release()
            connection.close()
            raise

    def _failed(self, address: str, error: Exception) -> None:
        """Log a failed handshake, and audit it if this side refused it."""
        why = explain(error)
        log.info("handshake.failed", address=address, why=why)
        if isinstance(error, ssl.SSLError) and not any(
            part in (error.reason or "") for part in _CLIENT_REASONS
        ):
            self._denied(Denial("handshake.refused", ANONYMOUS, address, "tls", None, {"why": why}))

    def _start_task(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("handshake.crashed", exc_info=error)


def explain(error: Exception) -> str:
    """Return the reason of a failed handshake, in one line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return str(error) or type(error).__name__


def where(address: Any) -> str:
    """Return address and port of the remote end."""
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unknown"
