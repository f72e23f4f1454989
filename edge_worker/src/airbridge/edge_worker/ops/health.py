"""The agent's status on a UNIX socket in its state directory: every connection is sent one JSON object."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from airbridge.edge_worker.exceptions import SettingsError
from airbridge.edge_worker.ops.status import Status

_TIMEOUT_SECONDS = 3.0


class Peer(NamedTuple):
    """Process that connected to a UNIX socket, from the kernel. `uid` is its effective user's."""

    pid: int
    uid: int


class StatusServer:
    """Serves `status()` until closed, except to this process's own descendants: they are tasks."""

    def __init__(self, path: Path, status: Callable[[], Status]) -> None:
        self._path = path
        self._status = status
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen, for the owner of the state directory only."""
        self._path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        with _reachable(self._path) as short:
            # Through the directory's descriptor: state directories are often longer than an address.
            listener.bind(short)
        self._path.chmod(0o600)
        self._server = await asyncio.start_unix_server(self._answer, sock=listener)

    async def close(self) -> None:
        """Stop listening."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _answer(self, _: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if is_task(_peer(writer.get_extra_info("socket")), os.geteuid()):
                return
            writer.write(json.dumps(self._status()).encode())
            await writer.drain()
        except OSError:
            return
        finally:
            writer.close()


def _peer(sock: socket.socket) -> Peer:
    credentials = struct.Struct("3i")
    pid, uid, _gid = credentials.unpack(
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, credentials.size)
    )
    return Peer(pid, uid)


def is_task(peer: Peer, agent_uid: int) -> bool:
    """Return whether a process may be a task of the agent, or started by one."""
    # Nothing that a worker without privileges starts becomes root; and where /proc is mounted with hidepid, it shows such a
    # worker no process of root's.
    return (peer.uid != 0 or agent_uid == 0) and is_descendant(peer.pid)


def is_descendant(pid: int) -> bool:
    """Return whether a process descends from this one, orphans included: this process and its runner adopt them."""
    if pid == os.getpid():
        return False
    while pid > 1:
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError):
            return True  # it has ended, and may have left its connection to another process
        if pid == os.getpid():
            return True
    return False


def read_status(path: Path) -> Status:
    """Return the status of the agent that runs with this state directory. Raises `SettingsError` if none does."""
    chunks = bytearray()
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(_TIMEOUT_SECONDS)
        try:
            with _reachable(path) as short:
                client.connect(short)
            while chunk := client.recv(65536):
                chunks += chunk
        except OSError as error:
            raise SettingsError(f"no worker answers at {path}: {error.strerror or error}") from error
    if not chunks:
        raise SettingsError(
            f"the worker at {path} closed the connection without an answer: tasks get none, nor does a process whose parents it "
            "cannot see, as with /proc mounted with hidepid; call it as root"
        )
    try:
        status: Status = json.loads(chunks)
    except ValueError as error:
        raise SettingsError(f"the worker at {path} was interrupted in its answer; try again") from error
    return status


@contextmanager
def _reachable(path: Path) -> Iterator[str]:
    """Yield a short name of `path`: a UNIX socket address holds 107 bytes at most."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
