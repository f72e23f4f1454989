"""The execution API proxy: the local endpoint of one running task, on one socket, in place of the control plane."""

from __future__ import annotations

import asyncio
import json
import socket

import structlog

from airbridge.core.protocol import RecordResult, RefusalReason
from airbridge.edge_worker.exceptions import FrameError, RecordTooLarge
from airbridge.edge_worker.gateway_client.connectivity import Connectivity
from airbridge.edge_worker.ops.events import EventLog
from airbridge.edge_worker.proxy import protocol
from airbridge.edge_worker.proxy.protocol import Call, Cancel, Reply
from airbridge.edge_worker.proxy.read_cache import ReadCache
from airbridge.edge_worker.proxy.recorder import Recorder
from airbridge.edge_worker.proxy.region_calls import RegionCalls, is_ours, is_read
from airbridge.edge_worker.proxy.routes import Kind, Route, classify
from airbridge.edge_worker.work.attempts import Attempt

log = structlog.get_logger(__name__)

JSON = {"content-type": "application/json"}
# Seconds between two checks of a waiting call whether the gateway is silent.
CUT_CHECK_SECONDS = 0.25


class ExecutionApiProxy:
    """Serves one task's supervisor until it hangs up."""

    def __init__(
        self,
        attempt: Attempt,
        *,
        recorder: Recorder,
        cache: ReadCache,
        connectivity: Connectivity,
        events: EventLog,
        cut_off_after: float,
        region_calls: RegionCalls,
    ) -> None:
        self._region_calls = region_calls
        self._attempt = attempt
        self._recorder = recorder
        self._cache = cache
        self._connectivity = connectivity
        self._events = events
        self._cut_off_after = cut_off_after
        self._writer: asyncio.StreamWriter | None = None
        self._reads: set[asyncio.Task[None]] = set()
        self._writes: set[asyncio.Task[None]] = set()
        self._log = log.bind(item_id=attempt.key[0], epoch=attempt.grant.epoch)

    async def serve(self, sock: socket.socket) -> None:
        """Answer calls until end of file. Takes over `sock`."""
        reader, writer = await asyncio.open_connection(sock=sock)
        self._writer = writer
        try:
            await self._read_calls(reader)
        except (FrameError, OSError) as error:
            self._log.error("proxy.broken", detail=str(error))
        finally:
            self._writer = None
            writer.close()
            await self._settle_calls()

    def cancel(self, reason: RefusalReason, detail: str) -> None:
        """Send the supervisor a cancellation."""
        self._send(Cancel(cancel=reason, detail=detail))

    async def _read_calls(self, reader: asyncio.StreamReader) -> None:
        while (call := await protocol.read_call(reader)) is not None:
            # Concurrently: a supervisor may give a read up and go on to report its task's end.
            # The first step of each, which takes the seq, runs in the order of the calls.
            route = classify(call, self._attempt.grant)
            tasks = self._reads if route.kind is Kind.READ else self._writes
            task = asyncio.create_task(self._handle(call, route))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

    async def _settle_calls(self) -> None:
        """Cancel reads, and finish journalling writes: the supervisor has gone."""
        for task in self._reads:
            task.cancel()
        await asyncio.gather(*self._reads, *self._writes, return_exceptions=True)

    async def answer(self, call: Call) -> Reply:
        """Answer one call that came another way than over the socket: a trigger's."""
        return await self._reply_to(call, classify(call, self._attempt.grant))

    async def _handle(self, call: Call, route: Route) -> None:
        self._send(await self._reply_to(call, route))

    async def _reply_to(self, call: Call, route: Route) -> Reply:
        try:
            return await self._answer(call, route)
        except (ValueError, TypeError) as error:
            return _problem(call, 422, f"not a call of the Task Execution API: {error}")
        except RecordTooLarge as error:
            return _problem(call, 413, str(error))

    async def _answer(self, call: Call, route: Route) -> Reply:
        if (reason := self._why_stopped(call)) is not None:
            return _problem(call, 409, f"this attempt is being stopped: {reason}")
        if is_ours(call):
            # In a thread: the first credential may come over the network.
            ours = await asyncio.to_thread(self._region_calls.answer, self._attempt, call)
            return ours if isinstance(ours, Reply) else await self._read(ours)
        match route.kind:
            # The gateway has started the task instance at the claim; the grant has its context.
            case Kind.RUN:
                return Reply(call.id, 200, JSON, json.dumps(self._attempt.grant.ti_context))
            # The worker's heartbeat renews the lease of all its tasks.
            case Kind.HEARTBEAT:
                return Reply(call.id, 204)
            case Kind.READ:
                return await self._read(call)
            case Kind.FINAL | Kind.DEFERRED:
                await self._recorder.write(self._attempt, call, final=route.kind is Kind.FINAL)
                self._cache.written(self._attempt.grant, call)
                return Reply(call.id, route.accepted, JSON, "{}")
            case Kind.PASSED:
                return await self._pass(call, route)
            case Kind.UNKNOWN:
                return _problem(call, 405, f"{call.method!r} is not a method of the Task Execution API")

    def _why_stopped(self, call: Call) -> RefusalReason | None:
        """Return why the attempt is being stopped, if the call may not be made therefore."""
        stop, fenced = self._attempt.stop, self._attempt.fenced
        if is_read(call) and fenced in {None, RefusalReason.CANCELLED}:
            # The task's `on_kill` may have to read a connection, to stop what it has started elsewhere.
            return None
        return stop.reason if stop is not None else fenced

    async def _pass(self, call: Call, route: Route) -> Reply:
        waiter: asyncio.Future[RecordResult] = asyncio.get_running_loop().create_future()
        entry = await self._recorder.write(self._attempt, call, waiter=waiter)
        while not waiter.done():
            if self._cut_off() or self._writer is None:
                self._log.info("proxy.accepted_locally", method=call.method, path=call.path)
                self._events.emit(
                    "write.accepted_locally", self._attempt.key, method=call.method, path=call.path
                )
                # The task has its reply: a refusal that comes later goes to its log.
                entry.waiter = None
                self._cache.written(self._attempt.grant, call)
                return Reply(call.id, route.accepted, JSON, "{}")
            await asyncio.wait({waiter}, timeout=CUT_CHECK_SECONDS)
        reply = _reply(call, waiter.result())
        if reply.status < 400:
            self._cache.written(self._attempt.grant, call)
        return reply

    async def _read(self, call: Call) -> Reply:
        waiter: asyncio.Future[RecordResult] = asyncio.get_running_loop().create_future()
        self._recorder.read(self._attempt, call, waiter)
        try:
            while not waiter.done():
                cached = self._cache.find(self._attempt.grant, call) if self._cut_off() else None
                if cached is not None:
                    self._log.info("proxy.read_from_cache", path=call.path)
                    return cached
                await asyncio.wait({waiter}, timeout=CUT_CHECK_SECONDS)
            reply = _reply(call, waiter.result())
        finally:
            waiter.cancel()
        self._cache.answered(self._attempt.grant, call, reply)
        return reply

    def _cut_off(self) -> bool:
        return self._connectivity.silent_for() > self._cut_off_after

    def _send(self, frame: Reply | Cancel) -> None:
        if self._writer is None or self._writer.is_closing():
            return
        try:
            self._writer.write(protocol.encode(frame))
        except FrameError as error:
            self._log.error("proxy.reply_too_large", detail=str(error))
            if isinstance(frame, Reply):
                self._writer.write(
                    protocol.encode(Reply(frame.id, 500, JSON, '{"detail": "reply too large"}'))
                )


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
