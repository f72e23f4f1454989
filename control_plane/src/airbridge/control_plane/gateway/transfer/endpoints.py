"""Endpoints for workers that reach nothing but the gateway: their pool's queue, their region's DAG code, their tasks' logs.

They are authorised as every other request of a worker: by its certificate, whose region and pool decide on queue and buckets. No
request names a queue or a bucket. They have connections, threads, body limits and shares of their own, apart from heartbeats and claims.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self, TypeVar

import structlog
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.control_plane.gateway.api import requests
from airbridge.control_plane.gateway.api.body_reader import BodyLimit, BodyReader
from airbridge.control_plane.gateway.api.handling import Guard, Handler
from airbridge.control_plane.gateway.auth.authentication import Caller
from airbridge.control_plane.gateway.net.body_reads import MIB, BodyReadLimits, BodyReads
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.control_plane.gateway.threads import ThreadPools
from airbridge.control_plane.gateway.transfer.caller_checks import CallerChecks
from airbridge.control_plane.gateway.transfer.log_access import LogAccess
from airbridge.control_plane.gateway.transfer.receipts import PURPOSE, Receipts
from airbridge.control_plane.gateway.transfer.receiving import Receiving
from airbridge.control_plane.gateway.transfer.shares import ShareLimits, Shares
from airbridge.control_plane.gateway.transfer.sources import Sources
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.core.code.snapshot import hex_of
from airbridge.core.exceptions import ObjectNotFound, QueueError, StoreError
from airbridge.core.protocol import RefusalReason
from airbridge.core.wire.transfers import (
    MAX_KEYS,
    MAX_PARTS,
    PART_BYTES,
    CodeRequest,
    DeleteRequest,
    LogFinish,
    LogKey,
    LogKeys,
    LogUpload,
    QueueMessage,
    ReceiveRequest,
    ReceiveResponse,
    ReturnRequest,
    Stored,
)

T = TypeVar("T")
_Handler = Callable[[Request, Caller], Awaitable[Response]]

log = structlog.get_logger()

PATHS: Final = (
    "queue/receive",
    "queue/delete",
    "queue/return",
    "code",
    "logs/put",
    "logs/begin",
    "logs/part",
    "logs/finish",
    "logs/list",
    "logs/delete",
)
#: Of log contents, which have a memory of their own: exchanges keep theirs.
LOG_BODIES: Final = BodyReadLimits(per_worker=8, bytes_total=64 * MIB, bytes_per_caller=16 * MIB)
SMALL_BODY: Final = BodyLimit(16 * 1024)
RECEIPTS_BODY: Final = BodyLimit(4 * MIB, values=MAX_KEYS + 16)
KEYS_BODY: Final = BodyLimit(1 * MIB, values=MAX_KEYS + 16)
# At 300 kbit/s a part takes this long.
LOG_SECONDS: Final = 145.0
LOG_BODY: Final = BodyLimit(PART_BYTES, seconds=LOG_SECONDS - 5.0)
# Longest time of one archive's answer; what is missing is asked for by its offset.
CODE_SECONDS: Final = 900.0
# Polls of a worker: one, and one that its connection lost.
RECEIVES: Final = ShareLimits(per_worker=4, per_region=4_096, total=8_192)
CONTENTS: Final = ShareLimits(per_worker=4, per_region=16, total=64)
_RECEIPT: Final = "receipt"
_UPLOAD: Final = "upload"


@dataclass(frozen=True, slots=True)
class TransferApi:
    """The endpoints, over their components."""

    sources: Sources
    receipts: Receipts
    bodies: BodyReader
    log_bodies: BodyReader
    #: Checks of logs in the database.
    checks: ThreadPool
    callers: CallerChecks
    #: Calls of S3 and SQS.
    calls: ThreadPool
    receiving: Receiving = field(default_factory=Receiving)
    access: LogAccess = field(default_factory=LogAccess)
    receives: Shares = field(default_factory=lambda: Shares("messages", RECEIVES))
    contents: Shares = field(default_factory=lambda: Shares("logs and DAG code", CONTENTS))

    @classmethod
    def of(cls, sources: Sources, keyring: Keyring, threads: ThreadPools) -> Self:
        """Return the endpoints over these sources, in these threads."""
        return cls(
            sources=sources,
            receipts=Receipts(lambda: keyring.keys.tokens.derived_key(PURPOSE)),
            bodies=BodyReader(BodyReads(), threads.parsing),
            log_bodies=BodyReader(BodyReads(LOG_BODIES), threads.parsing),
            checks=threads.transfer_checks,
            callers=CallerChecks(threads.transfer_checks),
            calls=threads.transfers,
        )

    def routes(self, root: str, guard: Guard, caller: Callable[[Request], Caller]) -> list[Route]:
        """Return the routes under `root`. `caller` authenticates a request."""
        handlers: dict[str, _Handler] = {
            "queue/receive": self._receive,
            "queue/delete": self._delete,
            "queue/return": self._give_back,
            "code": self._code,
            "logs/put": self._put,
            "logs/begin": self._begin,
            "logs/part": self._part,
            "logs/finish": self._finish,
            "logs/list": self._list,
            "logs/delete": self._delete_logs,
        }
        return [
            Route(
                f"{root}/{path}", guard(self._handler(handlers[path], caller), LOG_SECONDS), methods=["POST"]
            )
            for path in PATHS
        ]

    def _handler(self, handle: _Handler, caller: Callable[[Request], Caller]) -> Handler:
        async def endpoint(request: Request) -> Response:
            who = caller(request)
            self.sources.require(who.name)
            try:
                return await handle(request, who)
            except ObjectNotFound as error:
                raise Refused(404, RefusalReason.UNKNOWN, str(error)) from error
            except StoreError as error:
                log.warning("transfer.failed", path=request.url.path, detail=str(error))
                raise Unavailable(
                    "the region's bucket is out of reach, or refuses", retry_after=5.0
                ) from error
            except QueueError as error:
                log.warning("transfer.failed", path=request.url.path, detail=str(error))
                raise Unavailable("the pool's queue is out of reach, or refuses", retry_after=2.0) from error

        return endpoint

    # --- the queue -------------------------------------------------------------------------------------

    async def _receive(self, request: Request, caller: Caller) -> Response:
        caller.require("work:claim", queue=caller.name.queue)
        body = await self.bodies.parse(request, ReceiveRequest, SMALL_BODY)
        with self.receives.hold(caller.name):
            await self.callers.check(caller)
            messages = await _unless_gone(
                request,
                self.receiving.receive(
                    (caller.name.region, caller.name.pool),
                    lambda: self.sources.queue(caller.name),
                    body.limit,
                    body.wait_seconds,
                ),
            )
        return requests.answer(
            ReceiveResponse(
                messages=tuple(
                    QueueMessage(
                        body=message.body,
                        receipt=self.receipts.seal(caller.name, _RECEIPT, message.receipt),
                        receives=message.receives,
                    )
                    for message in messages
                )
            )
        )

    async def _delete(self, request: Request, caller: Caller) -> Response:
        caller.require("work:claim", queue=caller.name.queue)
        body = await self.bodies.parse(request, DeleteRequest, RECEIPTS_BODY)
        receipts = self._opened(caller, body.receipts)
        await self.callers.check(caller)
        await self.calls.run(lambda: self.sources.queue(caller.name).delete(receipts))
        return requests.answer(Stored())

    async def _give_back(self, request: Request, caller: Caller) -> Response:
        caller.require("work:claim", queue=caller.name.queue)
        body = await self.bodies.parse(request, ReturnRequest, RECEIPTS_BODY)
        receipts, delay = self._opened(caller, body.receipts), body.after_seconds
        await self.callers.check(caller)
        await self.calls.run(lambda: self.sources.queue(caller.name).release(receipts, after_seconds=delay))
        return requests.answer(Stored())

    def _opened(self, caller: Caller, sealed: tuple[str, ...]) -> list[str]:
        return [self.receipts.open(caller.name, _RECEIPT, each) for each in sealed]

    # --- DAG code --------------------------------------------------------------------------------------

    async def _code(self, request: Request, caller: Caller) -> Response:
        caller.require("code:read", region=caller.name.region)
        body = await self.bodies.parse(request, CodeRequest, SMALL_BODY)
        key = _code_key(body)
        with ExitStack() as stack:
            stack.enter_context(self.contents.hold(caller.name))
            await self.callers.check(caller)
            pieces = await self.calls.run(lambda: self.sources.code(caller.name).stream(key, body.offset))
            # The first piece, so that an archive that is not there is an answer, and not an answer that ends early.
            first = await self.calls.run(next, pieces, b"")
            return _Archive(self._pieces(first, pieces), stack.pop_all())

    async def _pieces(self, first: bytes, pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
        piece = first
        while piece:
            yield piece
            # Only once the piece before is on its way: a slow reader holds one piece, and no thread.
            piece = await self.calls.run(next, pieces, b"")

    # --- logs ------------------------------------------------------------------------------------------

    async def _put(self, request: Request, caller: Caller) -> Response:
        async def put(key: str, data: bytes) -> str:
            return await self.calls.run(lambda: self.sources.logs(caller.name).put(key, data))

        return await self._content(request, caller, put)

    async def _part(self, request: Request, caller: Caller) -> Response:
        number = _number(request)
        upload = self._upload(
            caller, request.query_params.get("key", ""), request.query_params.get("upload", "")
        )

        async def put(key: str, data: bytes) -> str:
            return await self.calls.run(
                lambda: self.sources.logs(caller.name).put_part(key, upload, number, data)
            )

        return await self._content(request, caller, put)

    async def _content(
        self, request: Request, caller: Caller, put: Callable[[str, bytes], Awaitable[str]]
    ) -> Response:
        key = request.query_params.get("key", "")
        caller.require("logs:write", worker=caller.name.worker)
        with self.contents.hold(caller.name):
            # Before the body: who may not write need not send it.
            await self.checks.run(self.access.check, caller, key)
            async with self.log_bodies.read(request, LOG_BODY) as data:
                return requests.answer(Stored(etag=await put(key, data)))

    async def _begin(self, request: Request, caller: Caller) -> Response:
        caller.require("logs:write", worker=caller.name.worker)
        key = (await self.bodies.parse(request, LogKey, SMALL_BODY)).key
        await self.checks.run(self.access.check, caller, key)
        upload = await self.calls.run(lambda: self.sources.logs(caller.name).begin_parts(key))
        return requests.answer(LogUpload(upload=self.receipts.seal(caller.name, f"{_UPLOAD} {key}", upload)))

    async def _finish(self, request: Request, caller: Caller) -> Response:
        caller.require("logs:write", worker=caller.name.worker)
        body = await self.bodies.parse(request, LogFinish, KEYS_BODY)
        upload = self._upload(caller, body.key, body.upload)
        await self.checks.run(self.access.check, caller, body.key)
        etag = await self.calls.run(
            lambda: self.sources.logs(caller.name).finish_parts(body.key, upload, body.etags)
        )
        return requests.answer(Stored(etag=etag))

    def _upload(self, caller: Caller, key: str, sealed: str) -> str:
        return self.receipts.open(caller.name, f"{_UPLOAD} {key}", sealed)

    async def _list(self, request: Request, caller: Caller) -> Response:
        caller.require("logs:write", worker=caller.name.worker)
        full = (await self.bodies.parse(request, LogKey, SMALL_BODY)).key
        await self.checks.run(self.access.check, caller, full)
        prefix = full.rpartition("/")[0] + "/"
        found = await self.calls.run(
            lambda: [
                info.key
                for info, _ in zip(self.sources.logs(caller.name).list(prefix), range(MAX_KEYS), strict=False)
            ]
        )
        return requests.answer(LogKeys(keys=tuple(found)))

    async def _delete_logs(self, request: Request, caller: Caller) -> Response:
        caller.require("logs:write", worker=caller.name.worker)
        body = await self.bodies.parse(request, LogKeys, KEYS_BODY)
        await self.checks.run(self.access.check, caller, *body.keys)
        await self.calls.run(lambda: self.sources.logs(caller.name).delete(body.keys))
        return requests.answer(Stored())


class _Archive(StreamingResponse):
    """An archive on its way. What it holds is freed however the answer ends, also if it never begins."""

    def __init__(self, pieces: AsyncIterator[bytes], held: ExitStack) -> None:
        super().__init__(pieces, media_type="application/octet-stream")
        self._held = held

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, within `CODE_SECONDS`."""
        with self._held:
            async with asyncio.timeout(CODE_SECONDS):
                await super().__call__(scope, receive, send)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return what `work` returns; cancel it, and raise `Unavailable`, if the client goes away meanwhile."""
    task = asyncio.create_task(work)
    gone = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            raise Unavailable("the client went away")
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


def _code_key(body: CodeRequest) -> str:
    """Return the key of an archive. Raises `Refused` for a name that is none of a bundle."""
    parts = body.bundle.split("/")
    if not {"", ".", ".."}.isdisjoint(parts) or not body.bundle.isprintable():
        raise Refused(400, RefusalReason.MALFORMED, f"{body.bundle[:200]!r} is not the name of a bundle")
    return f"bundles/{body.bundle}/{hex_of(body.version)}.tar.gz"


def _number(request: Request) -> int:
    text = request.query_params.get("number", "")
    if not text.isdecimal() or len(text) > 4 or not 1 <= int(text) <= MAX_PARTS:
        raise Refused(400, RefusalReason.MALFORMED, f"number must be 1 to {MAX_PARTS}")
    return int(text)
