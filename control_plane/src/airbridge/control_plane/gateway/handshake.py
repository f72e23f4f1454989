"""Accepts connections and makes TLS with each, under the context of that moment; a refused handshake leaves a trace.

uvicorn would hand the event loop one context for good, and the loop says nothing of handshakes that fail.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

import structlog

from airbridge.control_plane.gateway.audit import ANONYMOUS, Denial
from airbridge.control_plane.gateway.connections import Connections, Ticket

log = structlog.get_logger()

HANDSHAKE_SECONDS: Final = 15.0
PAUSE_SECONDS: Final = 0.5
"""How long nothing is accepted when the process has no file descriptor left."""
_CLIENTS_OWN: Final = ("ALERT", "EOF", "UNEXPECTED")
"""Parts of OpenSSL's names for failures that are the client's decision, or its going away: no denial of ours."""


class Acceptor:
    """Accepts on one bound socket. `start`, then `close`."""

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
        """The port that was bound."""
        port: int = self._listening.getsockname()[1]
        return port

    def start(self, backlog: int) -> None:
        """Listen."""
        self._listening.listen(backlog)
        self._listening.setblocking(False)
        self._follow(self._accept())

    def close(self) -> None:
        """Accept no more, and give up the handshakes that are under way. uvicorn calls it as it shuts down."""
        for task in self._tasks:
            task.cancel()
        self._listening.close()

    async def wait_closed(self) -> None:
        """Return when nothing is under way any more. uvicorn waits for it."""
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
            self._take_in(connection, where(address))
            # With a queue of connections `sock_accept` never yields, and handshakes would not get on meanwhile.
            await asyncio.sleep(0)

    def _take_in(self, connection: socket.socket, address: str) -> None:
        def give_up() -> None:
            task.cancel()

        ticket = self._connections.admit(address.rpartition(":")[0], give_up)
        if ticket is None:
            connection.close()
            return
        task = self._follow(self._secure(connection, address, ticket))

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
            ticket.give_back()
            self._failed(address, error)
        except asyncio.CancelledError:
            ticket.give_back()
            connection.close()
            raise

    def _failed(self, address: str, error: Exception) -> None:
        """Write a failed handshake down, if it was this side that refused it."""
        why = explain(error)
        log.info("handshake.failed", address=address, why=why)
        if isinstance(error, ssl.SSLError) and not any(part in (error.reason or "") for part in _CLIENTS_OWN):
            self._denied(Denial("handshake.refused", ANONYMOUS, address, "tls", None, {"why": why}))

    def _follow(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("handshake.broken", exc_info=error)


def explain(error: Exception) -> str:
    """Return why a handshake failed, in a line."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        return (error.reason or str(error)).lower().replace("_", " ")
    return str(error) or type(error).__name__


def where(address: Any) -> str:
    """Return address and port of the other end."""
    return f"{address[0]}:{address[1]}" if isinstance(address, tuple) else "unknown"
