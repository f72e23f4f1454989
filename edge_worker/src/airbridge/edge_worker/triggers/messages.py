"""Messages between the agent and a trigger host, over one socket pair: a 4-byte big-endian length and a msgpack map each.

A host runs user code, so the agent trusts nothing that it receives: numbers that it did not give, and frames that are no
message, end nothing but the host.
"""

from __future__ import annotations

import asyncio
import struct
from datetime import datetime
from typing import Any, Final

import msgspec

from airbridge.edge_worker.exceptions import UNDECODABLE, FrameError

# Of one message to a host: the read of an XCom has up to 31 MiB.
MAX_FRAME_BYTES: Final = 64 * 1024 * 1024

# Of one message of a host, which may send as many as it likes: an event has up to 1 MiB, and a line of a log no more.
MAX_OF_HOST_BYTES: Final = 2 * 1024 * 1024

LENGTH: Final = struct.Struct(">I")


class Run(msgspec.Struct, frozen=True, tag=True):
    """Agent to host: run a trigger. `number` names it on this connection; `kwargs` are encoded by Airflow's serialisation."""

    number: int
    trigger_id: int
    classpath: str
    kwargs: dict[str, Any]
    ti: dict[str, Any]
    timeout_after: datetime | None = None


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """Agent to host: stop a trigger, which reports nothing more."""

    number: int


class Answer(msgspec.Struct, frozen=True, tag=True):
    """Agent to host: the answer to the `Ask` of the same `id`."""

    id: int
    status: int
    headers: dict[str, str] = {}
    body: str | None = None


class Ask(msgspec.Struct, frozen=True, tag=True):
    """Host to agent: a read of a trigger from the Task Execution API. It has no body."""

    id: int
    number: int
    method: str
    path: str
    query: str = ""


class Fired(msgspec.Struct, frozen=True, tag=True):
    """Host to agent: a trigger's event, or its end without one, as the body of its record. Nothing follows."""

    number: int
    body: str


class Logged(msgspec.Struct, frozen=True, tag=True):
    """Host to agent: a line of a trigger's log, masked, in the Task SDK's format."""

    number: int
    line: bytes


ToHost = Run | Cancel | Answer
ToAgent = Ask | Fired | Logged

_TO_HOST: Final = msgspec.msgpack.Decoder(ToHost)
_TO_AGENT: Final = msgspec.msgpack.Decoder(ToAgent)


def encode(message: ToHost | ToAgent) -> bytes:
    """Return a message's bytes, length first. Raises `FrameError` if it is larger than its receiver takes."""
    payload = msgspec.msgpack.encode(message)
    most = MAX_OF_HOST_BYTES if isinstance(message, ToAgent) else MAX_FRAME_BYTES
    if len(payload) > most:
        raise FrameError(f"a message of {len(payload)} bytes; at most {most} are allowed")
    return LENGTH.pack(len(payload)) + payload


def decode_to_host(payload: bytes) -> ToHost:
    """Return a message of the agent. Raises `FrameError`."""
    try:
        found: ToHost = _TO_HOST.decode(payload)
    except UNDECODABLE as error:
        raise FrameError(f"no message of the agent: {error}") from error
    return found


async def receive(reader: asyncio.StreamReader) -> ToAgent | None:
    """Return the host's next message, or None at end of file. Raises `FrameError`."""
    try:
        (length,) = LENGTH.unpack(await reader.readexactly(LENGTH.size))
        if not 0 < length <= MAX_OF_HOST_BYTES:
            raise FrameError(f"a frame of {length} bytes; between 1 and {MAX_OF_HOST_BYTES} are allowed")
        found: ToAgent = _TO_AGENT.decode(await reader.readexactly(length))
    except asyncio.IncompleteReadError:
        return None
    except UNDECODABLE as error:
        raise FrameError(f"no message of a trigger host: {error}") from error
    return found
