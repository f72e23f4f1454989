"""Free ports on loopback."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from contextlib import ExitStack

LOOPBACK = "127.0.0.1"


def choose(names: Iterable[str], wanted: Mapping[str, int]) -> dict[str, int]:
    """Return a free port for each name: the wanted one where it is free, so that URLs stay valid across restarts."""
    with ExitStack() as stack:  # all sockets stay bound until all ports are chosen, so that no two are equal
        return {name: _reserve(stack, wanted.get(name, 0)) for name in names}


def _reserve(stack: ExitStack, wanted: int) -> int:
    for port in (wanted, 0):
        listener = stack.enter_context(socket.socket())
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            continue
        return int(listener.getsockname()[1])
    raise OSError(f"no free port on {LOOPBACK}")


def is_open(port: int) -> bool:
    """Return whether something listens on the port."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((LOOPBACK, port)) == 0
