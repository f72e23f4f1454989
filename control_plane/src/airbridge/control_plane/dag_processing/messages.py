"""Messages between the dag-processor and its zygote: JSON objects over sequenced-packet sockets, with descriptors."""

from __future__ import annotations

import json
import socket
from typing import Any, Final

MESSAGE_BYTES: Final = 64 * 1024


def pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that keep messages apart."""
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


def send(sock: socket.socket, message: dict[str, Any], fds: list[int] | None = None) -> None:
    """Send a message. Raises `OSError`."""
    socket.send_fds(sock, [json.dumps(message).encode()], fds or [])


def receive(sock: socket.socket, most_fds: int = 0) -> tuple[dict[str, Any] | None, list[int]]:
    """Return the next message and its descriptors; None once the other end is closed. Raises `OSError`."""
    content, fds, _, _ = socket.recv_fds(sock, MESSAGE_BYTES, most_fds)
    if not content:
        return None, fds
    return json.loads(content), fds
