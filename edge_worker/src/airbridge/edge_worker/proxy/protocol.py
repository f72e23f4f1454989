"""Protocol between a task's supervisor and the execution API proxy, over one socketpair per task.

A frame is a 4-byte big-endian length and a msgpack map. The supervisor sends a `Call` with an `id` above 0
and gets a `Reply` with the same `id`. Unasked, the agent sends a `Cancel` (its `id` is 0): stop the task.
End of file on the supervisor's side means that the agent is gone: the task is stopped as well.

Nothing here imports Airflow or the agent, so that the runner's processes can use it cheaply.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import Final

import msgspec

from airbridge.edge_worker.exceptions import UNDECODABLE, FrameError

# A bound on one message. Values have a lower one (airbridge.core.task_calls), which a task meets first.
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024

#: Methods of calls that change nothing.
READS: Final = frozenset({"GET", "HEAD"})

_LENGTH: Final = struct.Struct(">I")


class Call(msgspec.Struct, frozen=True):
    """A request to the Task Execution API.

    `path` is relative to the API's root and still percent-encoded (``task-instances/<id>/state``), `query` is the
    encoded query string without ``?``, `body` is JSON text or None.
    """

    id: int
    method: str
    path: str
    query: str = ""
    body: str | None = None


class Reply(msgspec.Struct, frozen=True):
    """The answer to the `Call` of the same `id`: an HTTP status, headers (lower-case names) and JSON text."""

    id: int
    status: int
    headers: dict[str, str] = {}
    body: str | None = None


class Cancel(msgspec.Struct, frozen=True):
    """Stop the task. `cancel` is a `RefusalReason`; the supervisor writes `detail` into the task's log."""

    cancel: str
    detail: str = ""
    id: int = 0


class _FromAgent(msgspec.Struct, frozen=True):
    """Union of `Reply` and `Cancel`; an `id` of 0 is a cancellation."""

    id: int
    status: int = 0
    headers: dict[str, str] = {}
    body: str | None = None
    cancel: str = ""
    detail: str = ""


_CALLS: Final = msgspec.msgpack.Decoder(Call)
_FROM_AGENT: Final = msgspec.msgpack.Decoder(_FromAgent)


def encode(frame: Call | Reply | Cancel) -> bytes:
    """Return the frame's bytes, length first. Raises `FrameError` if it is larger than `MAX_FRAME_BYTES`."""
    payload = msgspec.msgpack.encode(frame)
    if len(payload) > MAX_FRAME_BYTES:
        raise FrameError(
            f"{len(payload)} bytes of request or answer; a task's call has at most {MAX_FRAME_BYTES}"
        )
    return _LENGTH.pack(len(payload)) + payload


def decode_call(payload: bytes) -> Call:
    """Return the supervisor's call in `payload`. Raises `FrameError`."""
    try:
        return _CALLS.decode(payload)
    except UNDECODABLE as error:
        raise FrameError(f"not a call: {error}") from error


def decode_from_agent(payload: bytes) -> Reply | Cancel:
    """Return the agent's reply or cancellation in `payload`. Raises `FrameError`."""
    try:
        frame = _FROM_AGENT.decode(payload)
    except UNDECODABLE as error:
        raise FrameError(f"neither a reply nor a cancellation: {error}") from error
    if frame.id == 0:
        return Cancel(cancel=frame.cancel or "unknown", detail=frame.detail)
    return Reply(id=frame.id, status=frame.status, headers=frame.headers, body=frame.body)


async def read_call(reader: asyncio.StreamReader) -> Call | None:
    """Return the next call, or None at end of file. Raises `FrameError` for a torn or oversized frame."""
    try:
        length = checked_length(await reader.readexactly(_LENGTH.size))
        return decode_call(await reader.readexactly(length))
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise FrameError("the socket ended inside a frame") from error
        return None


def send(sock: socket.socket, frame: Call | Reply | Cancel) -> None:
    """Send one frame on a blocking socket."""
    sock.sendall(encode(frame))


def receive(sock: socket.socket) -> Reply | Cancel | None:
    """Return the agent's next frame from a blocking socket, or None at end of file. Raises `FrameError`."""
    head = _receive_exactly(sock, _LENGTH.size)
    if not head:
        return None
    payload = _receive_exactly(sock, checked_length(head))
    if not payload:
        raise FrameError("the socket ended inside a frame")
    return decode_from_agent(payload)


def checked_length(head: bytes) -> int:
    """Return the length that the 4 bytes of `head` announce. Raises `FrameError` if it is out of bounds."""
    (length,) = _LENGTH.unpack(head)
    if not 0 < length <= MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {length} bytes; between 1 and {MAX_FRAME_BYTES} are allowed")
    return int(length)


def _receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Return `count` bytes, or b"" if the stream ended before the first. Raises `FrameError` if it ended later."""
    chunks = bytearray()
    while len(chunks) < count:
        chunk = sock.recv(count - len(chunks))
        if not chunk:
            if chunks:
                raise FrameError("the socket ended inside a frame")
            return b""
        chunks += chunk
    return bytes(chunks)
