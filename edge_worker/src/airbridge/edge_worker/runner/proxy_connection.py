"""The supervisor's end of the proxy's socket: one call at a time, and cancellations in between."""

from __future__ import annotations

import json
import select
import socket
import time
from collections.abc import Iterator
from typing import Final

from airbridge.core import task_calls
from airbridge.edge_worker.exceptions import FrameError
from airbridge.edge_worker.proxy import protocol
from airbridge.edge_worker.proxy.protocol import Call, Cancel, Reply
from airbridge.edge_worker.proxy.region_calls import is_read

# Reason when the proxy's socket ends: the agent is gone.
AGENT_GONE: Final = "agent_gone"

_CHUNK: Final = 64 * 1024
_HEAD: Final = 4


class ProxyConnection:
    """Connection to the proxy. Once `ended` is set, calls are answered with 409, and nothing is sent but the reads that `serve_reads` allows."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(True)
        self._buffer = bytearray()
        self._last_id = 0
        self._gone = False
        self._reads_until: float | None = None
        self._requests: socket.socket | None = None
        self.ended: Cancel | None = None

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._sock.fileno()

    def close(self) -> None:
        """Let go of the socket."""
        self._sock.close()

    def serve_reads(self, seconds: float) -> None:
        """Make reads for so long although the task is being stopped. A read that lasts longer is given up."""
        self._reads_until = time.monotonic() + seconds

    def give_reads_up_for(self, requests: socket.socket) -> None:
        """Give a read up once the task's socket is readable: the task makes its next request, and waits for the read no more."""
        self._requests = requests

    def call(self, method: str, path: str, query: str, body: str | None) -> Reply:
        """Send one call and wait for its reply, however long the proxy takes, unless the task is being stopped."""
        self._last_id += 1
        call = Call(id=self._last_id, method=method, path=path, query=query, body=body)
        until = self._reads_until if self.ended is not None and is_read(call) else None
        try:
            if self.ended is None or until is not None:
                self._send(call)
        except FrameError as error:
            return _too_large(call, error)
        while self._wait(until, read=is_read(call)):
            # All that has come is looked at before the reply is returned: a cancellation may be right behind it.
            replies = {reply.id: reply for reply in self._read()}
            if self._last_id in replies:
                return replies[self._last_id]
        return _refusal(self._last_id, self.ended)

    def _wait(self, until: float | None, *, read: bool) -> bool:
        """Wait for bytes. Return False if the call is given up: its time is over, or nothing waits for it any more."""
        if self._gone or (self.ended is not None and until is None):
            return False
        watched = [self._sock]
        if read and self._requests is not None and self._requests.fileno() >= 0:
            watched.append(self._requests)
        seconds = None if until is None else max(0.0, until - time.monotonic())
        return self._sock in select.select(watched, [], [], seconds)[0]

    def poll(self) -> bool:
        """Read what has come unasked; call it when the socket is readable. Returns False once the agent is gone."""
        if not self._gone:
            list(self._read())
        return not self._gone

    def pause(self, seconds: float) -> None:
        """Sleep for `seconds`, or until the link ends."""
        if self.ended is None and select.select([self._sock], [], [], seconds)[0]:
            self.poll()

    def _send(self, call: Call) -> None:
        try:
            protocol.send(self._sock, call)
        except OSError as error:
            self._end(AGENT_GONE, f"the proxy could not be written to: {error}")

    def _read(self) -> Iterator[Reply]:
        """Wait for bytes and yield the replies in them; a cancellation or the end of file ends the link."""
        try:
            chunk = self._sock.recv(_CHUNK)
        except OSError as error:
            self._end(AGENT_GONE, f"the proxy could not be read: {error}")
            return
        if not chunk:
            self._end(AGENT_GONE, "the worker's agent has gone away")
            return
        self._buffer += chunk
        yield from self._replies()

    def _replies(self) -> Iterator[Reply]:
        try:
            while (payload := self._next_payload()) is not None:
                frame = protocol.decode_from_agent(payload)
                if isinstance(frame, Reply):
                    yield frame
                else:
                    self.ended = self.ended or frame
        except FrameError as error:
            self._end(AGENT_GONE, f"the proxy sent an invalid frame: {error}")

    def _next_payload(self) -> bytes | None:
        if len(self._buffer) < _HEAD:
            return None
        end = _HEAD + protocol.checked_length(bytes(self._buffer[:_HEAD]))
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[_HEAD:end])
        del self._buffer[:end]
        return payload

    def _end(self, reason: str, detail: str) -> None:
        self._gone = True
        self.ended = self.ended or Cancel(cancel=reason, detail=detail)


def _too_large(call: Call, error: FrameError) -> Reply:
    message = f"{task_calls.describe(call.method, call.path)} does not fit: {error}"
    detail = {"reason": "refused_write", "message": message}
    return Reply(id=call.id, status=413, body=json.dumps({"detail": detail}))


def _refusal(call_id: int, ended: Cancel | None) -> Reply:
    why = f"the task is being stopped: {ended.cancel}" if ended else "the task makes its next request"
    detail = {"reason": "not_running" if ended else "given_up", "message": why}
    return Reply(id=call_id, status=409, body=json.dumps({"detail": detail}))
