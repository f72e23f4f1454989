"""Reading of request bodies: counted, bounded in size and time, and parsed off the event loop if they are large."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final, TypeVar

from pydantic import BaseModel
from starlette.requests import ClientDisconnect, Request

from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.control_plane.gateway.api import requests
from airbridge.control_plane.gateway.auth.authentication import PEER
from airbridge.control_plane.gateway.net.body_reads import BodyRead, BodyReads
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.core.protocol import RefusalReason

Model = TypeVar("Model", bound=BaseModel)

BODY_SECONDS: Final = 30.0
# Bytes. Larger bodies are parsed in a thread: up to here parsing takes less time than the way there and back.
ON_THE_LOOP: Final = 64 * 1024
# Digits of the largest Content-Length that is read as a number.
_DIGITS: Final = 12


# Where in a request's scope its `Deadline` is.
DEADLINE: Final = "airbridge.deadline"


@dataclass(frozen=True, slots=True)
class Deadline:
    """Deadline of a request's answer, `seconds` after its body."""

    timeout: asyncio.Timeout
    seconds: float

    @property
    def monotonic(self) -> float:
        """This deadline as a time of `time.monotonic`."""
        when = self.timeout.when()
        if when is None:
            return math.inf
        return time.monotonic() + when - asyncio.get_running_loop().time()

    def follow(self, body: float) -> None:
        """Move it behind the time, of the event loop, at which the body has to be here."""
        when = self.timeout.when()
        if when is not None and when < body + self.seconds:
            self.timeout.reschedule(body + self.seconds)


@dataclass(frozen=True, slots=True)
class BodyLimit:
    """Limits of an endpoint's body."""

    #: Bytes.
    size: int
    #: Values in its JSON, see `json_bounds.check`.
    values: int = requests.MOST_VALUES
    #: From the request's head to the end of its body.
    seconds: float = BODY_SECONDS
    #: Bytes a second at which a body may arrive beyond these seconds; None: not at all. Only for authenticated callers.
    slowest: int | None = None


class BodyReader:
    """Reads and parses the bodies of one listener."""

    def __init__(self, reads: BodyReads, parsing: ThreadPool) -> None:
        self._reads = reads
        self._parsing = parsing

    @asynccontextmanager
    async def read(self, request: Request, limit: BodyLimit) -> AsyncIterator[bytes]:
        """Yield the body; its bytes count until the block ends.

        Raises `Refused` (413, 408) if it is too large or too slow, and `Unavailable` if there are too many bodies.
        """
        declared = request.headers.get("content-length", "0")
        if not declared.isdecimal() or len(declared) > _DIGITS or int(declared) > limit.size:
            raise _too_large(limit)
        deadline = asyncio.timeout(limit.seconds)
        counted = self._reads.begin(request.scope[PEER], lambda: _expire(deadline))
        try:
            body = await _receive(request, limit, counted, deadline)
            yield body
        finally:
            counted.release()

    @asynccontextmanager
    async def parsed(self, request: Request, model: type[Model], limit: BodyLimit) -> AsyncIterator[Model]:
        """Yield the body as `model`; see `read`. Raises `Refused` (400, 413) if it is malformed."""
        async with self.read(request, limit) as body:
            yield await self._parse(body, model, limit)

    async def parse(self, request: Request, model: type[Model], limit: BodyLimit) -> Model:
        """Return the body as `model`, for a body whose memory need not be counted later on; see `parsed`."""
        async with self.read(request, limit) as body:
            return await self._parse(body, model, limit)

    async def _parse(self, body: bytes, model: type[Model], limit: BodyLimit) -> Model:
        if len(body) <= ON_THE_LOOP:
            return requests.parse(body, model, limit.values)
        return await self._parsing.run(requests.parse, body, model, limit.values)


async def _receive(request: Request, limit: BodyLimit, counted: BodyRead, deadline: asyncio.Timeout) -> bytes:
    chunks: list[bytes] = []
    size = 0
    began = asyncio.get_running_loop().time()
    answer: Deadline | None = request.scope.get(DEADLINE)
    try:
        async with deadline:
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit.size:
                    raise _too_large(limit)
                # What has arrived, not what was declared: a declaration costs its sender nothing.
                counted.reserve(size)
                chunks.append(chunk)
                if limit.slowest is not None:
                    last = began + limit.seconds + size / limit.slowest
                    deadline.reschedule(last)
                    if answer is not None:
                        answer.follow(last)
    except TimeoutError as error:
        if counted.evicted:
            raise Unavailable("too many bodies are being sent; send this one again") from error
        raise Refused(
            408,
            RefusalReason.MALFORMED,
            f"the body took longer than {limit.seconds:g} s"
            + (f" and arrived with less than {limit.slowest} bytes a second" if limit.slowest else ""),
        ) from error
    except ClientDisconnect as error:
        raise Refused(400, RefusalReason.MALFORMED, "the client went away") from error
    counted.received()
    return b"".join(chunks)


def _expire(deadline: asyncio.Timeout) -> None:
    if not deadline.expired():
        deadline.reschedule(0.0)


def _too_large(limit: BodyLimit) -> Refused:
    return Refused(413, RefusalReason.MALFORMED, f"the body is larger than {limit.size} bytes")
