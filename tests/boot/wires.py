"""Network namespaces, and servers of this process that listen in them.

A socket stays in the namespace in which it was created: so one process serves in namespaces, and connects into them.
"""

from __future__ import annotations

import ctypes
import os
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from socketserver import BaseRequestHandler, ThreadingTCPServer
from typing import Any

_NETWORK = 0x40000000  # CLONE_NEWNET
_CHUNK = 65_536


def ip(*words: str) -> None:
    """Run `ip`; RuntimeError with its error."""
    command("ip", *words)


def command(*words: str) -> str:
    """Run a command and return what it prints; RuntimeError with its error."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)[:300]}: {done.stderr.strip()[-2000:] or done.stdout[-2000:]}")
    return done.stdout


@dataclass(frozen=True)
class Namespace:
    """A network namespace with a name."""

    name: str

    def run(self, *words: str) -> str:
        """Run a command in it."""
        return command("ip", "netns", "exec", self.name, *words)

    @property
    def path(self) -> str:
        """Return the file that names it for the container engine."""
        return f"/run/netns/{self.name}"

    def listen(self, address: str, port: int) -> socket.socket:
        """Return a socket that listens in the namespace."""

        def make() -> socket.socket:
            return socket.create_server((address, port), backlog=128)

        return self._inside(make)

    def connect(self, address: str, port: int) -> socket.socket:
        """Return a connection from inside the namespace."""
        return self._inside(lambda: socket.create_connection((address, port), timeout=20))

    def datagrams(self, address: str, port: int) -> socket.socket:
        """Return a bound UDP socket of the namespace."""

        def make() -> socket.socket:
            bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            bound.bind((address, port))
            return bound

        return self._inside(make)

    def _inside(self, make: Callable[[], socket.socket]) -> socket.socket:
        """Call in a thread that entered the namespace, and ends there."""
        made: list[socket.socket] = []
        failed: list[OSError] = []

        def enter() -> None:
            try:
                _enter(self.path)
                made.append(make())
            except OSError as error:
                failed.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if failed:
            raise failed[0]
        return made[0]


def _enter(path: str) -> None:
    """Move the calling thread into a namespace (setns(2))."""
    with Path(path).open("rb") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), _NETWORK):
            raise OSError(ctypes.get_errno(), f"setns {path}")


@contextmanager
def namespace(name: str) -> Iterator[Namespace]:
    """A namespace for the length of a block."""
    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        yield Namespace(name)
    finally:
        with suppress(RuntimeError):
            ip("netns", "del", name)


@dataclass(frozen=True)
class Wire:
    """Two ends of a connection: where a socket listens, what it is connected to, and the TLS that it ends."""

    listener: socket.socket
    connect: Callable[[], socket.socket]
    tls: ssl.SSLContext | None = None


@contextmanager
def forwarding(wire: Wire) -> Iterator[None]:
    """Forward connections for the length of a block."""

    class Handler(BaseRequestHandler):
        def handle(self) -> None:
            with suppress(OSError), ExitStack() as stack:
                near: socket.socket = self.request
                if wire.tls:
                    near = stack.enter_context(wire.tls.wrap_socket(near, server_side=True))
                far = stack.enter_context(wire.connect())
                far.settimeout(None)
                back = threading.Thread(target=_pump, args=(far, near), daemon=True)
                back.start()
                _pump(near, far)
                back.join()

    with serving(wire.listener, Handler):
        yield


def _pump(source: socket.socket, target: socket.socket) -> None:
    """Copy until the source ends; then no more is sent to the target."""
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    with suppress(OSError):
        # TLS has no half-closed connections: its other direction ends with this one.
        target.shutdown(socket.SHUT_RDWR if isinstance(target, ssl.SSLSocket) else socket.SHUT_WR)


class _Server(ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, listener: socket.socket, handler: Any) -> None:
        super().__init__(("", 0), handler, bind_and_activate=False)
        self.socket.close()
        self.socket = listener
        # What http.server reads of its own sockets.
        self.server_name, self.server_port = "boot", listener.getsockname()[1]

    def handle_error(self, *_: Any) -> None:
        """Connections end at any time, and nobody wants to know."""


@contextmanager
def serving(listener: socket.socket, handler: Any) -> Iterator[None]:
    """Serve connections of a listening socket for the length of a block."""
    server = _Server(listener, handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def loopback() -> socket.socket:
    """Return a socket that listens on this machine's loopback, at a free port."""
    return socket.create_server(("127.0.0.1", 0))


def is_root() -> bool:
    """Return whether namespaces can be made."""
    return os.geteuid() == 0
