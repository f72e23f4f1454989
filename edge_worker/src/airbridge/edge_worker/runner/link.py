"""The supervisor's end of the relay: one call at a time, and an ear for the order to stop."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Final

from airbridge.edge_worker import frames
from airbridge.edge_worker.exceptions import FrameError
from airbridge.edge_worker.frames import Call, Cancel, Reply

AGENT_GONE: Final = "agent_gone"
"""The reason when the relay's socket ends: there is nobody left to report to."""

_CHUNK: Final = 64 * 1024
_HEAD: Final = 4


class Link:
    """A relay socket. Once `ended` says why, every further call is answered with 409 and nothing is sent."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._sock.setblocking(True)
        self._buffer = bytearray()
        self._last_id = 0
        self.ended: Cancel | None = None

    def fileno(self) -> int:
        """Return the descriptor, for a selector."""
        return self._sock.fileno()

    def close(self) -> None:
        """Let go of the socket."""
        self._sock.close()

    def call(self, method: str, path: str, query: str, body: str | None) -> Reply:
        """Send one call and wait for its reply, however long the relay takes."""
        self._last_id += 1
        if self.ended is None:
            self._send(Call(id=self._last_id, method=method, path=path, query=query, body=body))
        while self.ended is None:
            # All that has come is looked at before the reply is returned: a cancellation may be right behind it.
            replies = {reply.id: reply for reply in self._read()}
            if self._last_id in replies:
                return replies[self._last_id]
        return _refusal(self._last_id, self.ended)

    def poll(self) -> bool:
        """Read what has come unasked; call it when the socket is readable. Returns False once the link has ended."""
        if self.ended is None:
            list(self._read())
        return self.ended is None

    def pause(self, seconds: float) -> None:
        """Sleep for `seconds`, or until the link ends."""
        if self.ended is None and select.select([self._sock], [], [], seconds)[0]:
            self.poll()

    def _send(self, call: Call) -> None:
        try:
            frames.send(self._sock, call)
        except OSError as error:
            self._end(AGENT_GONE, f"the relay could not be written to: {error}")

    def _read(self) -> Iterator[Reply]:
        """Wait for bytes and yield the replies in them; a cancellation or the end of file ends the link."""
        try:
            chunk = self._sock.recv(_CHUNK)
        except OSError as error:
            self._end(AGENT_GONE, f"the relay could not be read: {error}")
            return
        if not chunk:
            self._end(AGENT_GONE, "the worker's agent has gone away")
            return
        self._buffer += chunk
        yield from self._replies()

    def _replies(self) -> Iterator[Reply]:
        try:
            while (payload := self._next_payload()) is not None:
                frame = frames.decode_from_agent(payload)
                if isinstance(frame, Reply):
                    yield frame
                else:
                    self.ended = self.ended or frame
        except FrameError as error:
            self._end(AGENT_GONE, f"the relay sent what is not a frame: {error}")

    def _next_payload(self) -> bytes | None:
        if len(self._buffer) < _HEAD:
            return None
        end = _HEAD + frames.checked_length(bytes(self._buffer[:_HEAD]))
        if len(self._buffer) < end:
            return None
        payload = bytes(self._buffer[_HEAD:end])
        del self._buffer[:end]
        return payload

    def _end(self, reason: str, detail: str) -> None:
        self.ended = self.ended or Cancel(cancel=reason, detail=detail)


def _refusal(call_id: int, ended: Cancel) -> Reply:
    body = '{"detail": {"reason": "not_running", "message": "the task is being stopped: %s"}}' % ended.cancel  # noqa: UP031 - braces
    return Reply(id=call_id, status=409, body=body)
