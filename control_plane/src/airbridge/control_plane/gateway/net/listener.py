"""A listener of the gateway: uvicorn's server over this package's connections, handshakes and HTTP protocol."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final

import uvicorn
from starlette.types import ASGIApp

from airbridge.control_plane.gateway.audit.denials import DenialLog
from airbridge.control_plane.gateway.net.connections import ConnectionLimits, Connections, Ticket
from airbridge.control_plane.gateway.net.handshake import Acceptor
from airbridge.control_plane.gateway.net.http import PeerProtocol
from airbridge.core.exceptions import ConfigurationError

# Longer than clients keep an idle connection, so that the client always closes it: a request on a connection that
# the server closes at that moment would fail.
KEEP_ALIVE_SECONDS: Final = 90
STOP_SECONDS: Final = 10
BACKLOG: Final = 1_024


class Listener(uvicorn.Server):
    """uvicorn server that leaves signals and process exit to the gateway, and TLS to an `Acceptor`."""

    def __init__(
        self,
        app: ASGIApp,
        address: tuple[str, int],
        *,
        context: Callable[[], ssl.SSLContext],
        denials: DenialLog,
        limits: ConnectionLimits,
    ) -> None:
        self._address = address
        self._context = context
        self._denials = denials
        self._connections = Connections(limits)
        config = uvicorn.Config(
            app,
            http=PeerProtocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=STOP_SECONDS,
            backlog=BACKLOG,
        )
        config.load()
        super().__init__(config)

    async def begin(self) -> None:
        """Bind and listen. Raises `ConfigurationError` if the address is not available."""
        self.lifespan = self.config.lifespan_class(self.config)
        await self.lifespan.startup()
        self._acceptor = Acceptor(
            _bind(*self._address), self._context, self._connection, self._connections, self._denials.submit
        )
        self._acceptor.start(self.config.backlog)
        self.servers = [self._acceptor]  # type: ignore[list-item]  # uvicorn does nothing but close them
        self.started = True

    def _connection(self, ticket: Ticket) -> asyncio.Protocol:
        return PeerProtocol(self.config, self.server_state, self.lifespan.state, ticket)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Install no signal handlers."""
        yield

    @property
    def bound_port(self) -> int:
        """Bound port."""
        return self._acceptor.port


def _bind(host: str, port: int) -> socket.socket:
    """Return a bound socket: uvicorn ends the process if it cannot bind one itself."""
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, number)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except BaseException:
            bound.close()
            raise
    except OSError as error:
        raise ConfigurationError(
            f"the gateway cannot listen on {host}:{port}: {error.strerror}; "
            "[airbridge] gateway_host, gateway_port and operator_port must name free ports of this host"
        ) from error
    return bound
