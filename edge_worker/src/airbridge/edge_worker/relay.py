"""The relay: what a running task talks to in place of the control plane. One per task, on one socket."""

from __future__ import annotations

import asyncio
import json
import socket

import structlog

from airbridge.edge_worker import frames
from airbridge.edge_worker.cache import ReadCache
from airbridge.edge_worker.events import EventLog
from airbridge.edge_worker.exceptions import FrameError
from airbridge.edge_worker.frames import Call, Cancel, Reply
from airbridge.edge_worker.holdings import Holding
from airbridge.edge_worker.link import Link
from airbridge.edge_worker.outbox import Outbox
from airbridge.edge_worker.routes import Kind, Route, classify
from airbridge.executor.protocol import RecordResult, RefusalReason

log = structlog.get_logger(__name__)

JSON = {"content-type": "application/json"}
CUT_CHECK_SECONDS = 0.25
"""How often a call that waits for the gateway looks whether it is cut off."""


class Relay:
    """Serves one task's supervisor until it hangs up."""

    def __init__(
        self,
        holding: Holding,
        *,
        outbox: Outbox,
        cache: ReadCache,
        link: Link,
        events: EventLog,
        cut_off_after: float,
    ) -> None:
        self._holding = holding
        self._outbox = outbox
        self._cache = cache
        self._link = link
        self._events = events
        self._cut_off_after = cut_off_after
        self._writer: asyncio.StreamWriter | None = None
        self._reads: set[asyncio.Task[None]] = set()
        self._writes: set[asyncio.Task[None]] = set()
        self._log = log.bind(item_id=holding.key[0], epoch=holding.grant.epoch)

    async def serve(self, sock: socket.socket) -> None:
        """Answer calls until end of file. Takes over `sock`. A write that has begun to be journalled is finished."""
        reader, writer = await asyncio.open_connection(sock=sock)
        self._writer = writer
        try:
            await self._read_calls(reader)
        except (FrameError, OSError) as error:
            self._log.error("relay.broken", detail=str(error))
        finally:
            self._writer = None
            writer.close()
            await self._settle_calls()

    def cancel(self, reason: RefusalReason, detail: str) -> None:
        """Tell the supervisor to stop its task."""
        self._send(Cancel(cancel=reason, detail=detail))

    async def _read_calls(self, reader: asyncio.StreamReader) -> None:
        while (call := await frames.read_call(reader)) is not None:
            # Concurrently: a supervisor may give a read up and go on to report its task's end.
            # The first step of each, which takes the seq, runs in the order of the calls.
            route = classify(call, self._holding.grant)
            tasks = self._reads if route.kind is Kind.READ else self._writes
            task = asyncio.create_task(self._handle(call, route))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _settle_calls(self) -> None:
        """Give reads up, and have writes journalled: there is nobody left to answer."""
        for task in self._reads:
            task.cancel()
        await asyncio.gather(*self._reads, *self._writes, return_exceptions=True)

    async def _handle(self, call: Call, route: Route) -> None:
        try:
            reply = await self._answer(call, route)
        except (ValueError, TypeError) as error:
            reply = _problem(call, 422, f"not a call of the Task Execution API: {error}")
        self._send(reply)

    async def _answer(self, call: Call, route: Route) -> Reply:
        stop = self._holding.stop
        if stop is not None or self._holding.fenced is not None:
            reason = stop.reason if stop is not None else self._holding.fenced
            return _problem(call, 409, f"this attempt is being stopped: {reason}")
        match route.kind:
            case Kind.RUN:
                return Reply(call.id, 200, JSON, json.dumps(self._holding.grant.ti_context))
            case Kind.HEARTBEAT:
                return Reply(call.id, 204)
            case Kind.READ:
                return await self._read(call)
            case Kind.FINAL | Kind.DEFERRED:
                await self._outbox.write(self._holding, call, final=route.kind is Kind.FINAL)
                self._cache.written(self._holding.grant, call)
                return Reply(call.id, route.accepted, JSON, "{}")
            case Kind.PASSED:
                return await self._pass(call, route)
            case Kind.UNKNOWN:
                return _problem(call, 405, f"{call.method!r} is not a method of the Task Execution API")

    async def _pass(self, call: Call, route: Route) -> Reply:
        waiter: asyncio.Future[RecordResult] = asyncio.get_running_loop().create_future()
        entry = await self._outbox.write(self._holding, call, waiter=waiter)
        while not waiter.done():
            if self._cut_off() or self._writer is None:
                self._log.info("relay.accepted_locally", method=call.method, path=call.path)
                self._events.note(
                    "write.accepted_locally", self._holding.key, method=call.method, path=call.path
                )
                entry.waiter = None
                self._cache.written(self._holding.grant, call)
                return Reply(call.id, route.accepted, JSON, "{}")
            await asyncio.wait({waiter}, timeout=CUT_CHECK_SECONDS)
        reply = _reply(call, waiter.result())
        if reply.status < 400:
            self._cache.written(self._holding.grant, call)
        return reply

    async def _read(self, call: Call) -> Reply:
        waiter: asyncio.Future[RecordResult] = asyncio.get_running_loop().create_future()
        self._outbox.read(self._holding, call, waiter)
        try:
            while not waiter.done():
                cached = self._cache.find(self._holding.grant, call) if self._cut_off() else None
                if cached is not None:
                    self._log.info("relay.read_from_cache", path=call.path)
                    return cached
                await asyncio.wait({waiter}, timeout=CUT_CHECK_SECONDS)
            reply = _reply(call, waiter.result())
        finally:
            waiter.cancel()
        self._cache.answered(self._holding.grant, call, reply)
        return reply

    def _cut_off(self) -> bool:
        return self._link.silent_for() > self._cut_off_after

    def _send(self, frame: Reply | Cancel) -> None:
        if self._writer is None or self._writer.is_closing():
            return
        try:
            self._writer.write(frames.encode(frame))
        except FrameError as error:
            self._log.error("relay.reply_too_large", detail=str(error))
            if isinstance(frame, Reply):
                self._writer.write(frames.encode(Reply(frame.id, 500, JSON, '{"detail": "reply too large"}')))


def _reply(call: Call, result: RecordResult) -> Reply:
    if result.refused is not None:
        return _problem(call, result.status, f"refused: {result.refused}")
    headers = {name.lower(): value for name, value in result.headers.items()}
    if result.body is not None:
        headers.setdefault("content-type", "application/json")
    return Reply(call.id, result.status, headers, result.body)


def _problem(call: Call, status: int, message: str) -> Reply:
    body = json.dumps({"detail": {"reason": "airbridge", "message": message}})
    return Reply(call.id, status, JSON, body)
