"""Requests for queue, DAG code and logs to the gateway: blocking, for threads, over connections of their own.

They share the worker's identity with `airbridge.edge_worker.gateway_client.client.Gateway`, and nothing else: a log on its way
delays no heartbeat, and a long poll is no sign of a silent gateway.
"""

from __future__ import annotations

import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final, TypeVar
from urllib.parse import urlencode

import httpx
from pydantic import BaseModel, ValidationError

from airbridge.core.protocol import Problem
from airbridge.edge_worker.exceptions import (
    GatewayBusy,
    GatewayError,
    GatewayRefused,
    GatewayUnreachable,
    MalformedResponse,
)

Answer = TypeVar("Answer", bound=BaseModel)

ROOT: Final = "/edge/v1/"
# Of one worker: the gateway serves four contents and four polls at a time.
_LIMITS: Final = httpx.Limits(max_connections=8, max_keepalive_connections=4, keepalive_expiry=75.0)
# Largest answer that is read as a whole: ten messages of 256 KiB, as JSON.
_LARGEST_ANSWER: Final = 32 * 1024 * 1024
# A connection that a cut has killed is given up after about 20 s, whether it sends, waits for an answer, or polls.
_ALIVE: Final = (
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 20_000),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 2),
)
_BUSY: Final = frozenset({429, 503})
_UNAVAILABLE: Final = frozenset({502, 504})
_JSON: Final = "application/json"
_BYTES: Final = "application/octet-stream"


class _Channel:
    """Connections under one identity. Closed when it is replaced and its last request has ended."""

    def __init__(self, context: ssl.SSLContext, headers: Mapping[str, str]) -> None:
        self.transport = httpx.HTTPTransport(
            verify=context, limits=_LIMITS, trust_env=False, socket_options=_ALIVE
        )
        self.headers = dict(headers)
        self.users = 0
        self.retired = False


class Transfers:
    """See the module. Every failure is a `GatewayError`. Safe between threads."""

    def __init__(
        self, base_url: str, *, timeout_seconds: float = 30.0, connect_timeout_seconds: float = 5.0
    ) -> None:
        self._base_url = base_url.rstrip("/")
        self._timeout = timeout_seconds
        self._connect_timeout = connect_timeout_seconds
        self._channel: _Channel | None = None
        self._lock = threading.Lock()

    def identify(self, context: ssl.SSLContext, headers: Mapping[str, str]) -> None:
        """Use this identity from now on; requests under way end under the one they began with."""
        fresh = _Channel(context, headers)
        with self._lock:
            old, self._channel = self._channel, fresh
        self._retire(old)

    def close(self) -> None:
        """Close the connections that no request uses, and the others when theirs has ended."""
        with self._lock:
            old, self._channel = self._channel, None
        self._retire(old)

    def ask(
        self, what: str, request: BaseModel, answer: type[Answer], *, wait_seconds: float = 0.0
    ) -> Answer:
        """Send a request; return its answer. `wait_seconds` is how long the gateway itself may wait."""
        body = request.model_dump_json().encode()
        with self._response(what, body, _JSON, self._timeout + wait_seconds) as response:
            return _parse(response, answer)

    def put(self, what: str, content: bytes, answer: type[Answer], **query: str | int) -> Answer:
        """Send bytes; return the answer."""
        with self._response(f"{what}?{urlencode(query)}", content, _BYTES, self._timeout) as response:
            return _parse(response, answer)

    def stream(self, what: str, request: BaseModel) -> Iterator[bytes]:
        """Send a request; yield the bytes of its answer as they arrive."""
        with self._response(what, request.model_dump_json().encode(), _JSON, self._timeout) as response:
            if response.status_code != 200:
                raise _error(response, _read(response))
            try:
                yield from response.iter_raw()
            except httpx.HTTPError as error:
                raise GatewayUnreachable(f"POST {what}: the answer ended early: {error}") from error

    @contextmanager
    def _response(
        self, what: str, content: bytes, kind: str, read_seconds: float
    ) -> Iterator[httpx.Response]:
        timeout = httpx.Timeout(read_seconds, connect=self._connect_timeout)
        with self._used() as channel:
            request = httpx.Request(
                "POST",
                f"{self._base_url}{ROOT}{what}",
                headers={**channel.headers, "Content-Type": kind},
                content=content,
                extensions={"timeout": timeout.as_dict()},
            )
            try:
                response = channel.transport.handle_request(request)
            except (httpx.HTTPError, ssl.SSLError, OSError) as error:
                path = what.partition("?")[0]
                raise GatewayUnreachable(f"POST {path}: {type(error).__name__}: {error}") from error
            response.request = request
            try:
                yield response
            finally:
                # Broken connections raise here again what has been raised already.
                with suppress(httpx.HTTPError, OSError):
                    response.close()

    @contextmanager
    def _used(self) -> Iterator[_Channel]:
        with self._lock:
            channel = self._channel
            if channel is None:
                raise GatewayUnreachable("this worker has no identity yet")
            channel.users += 1
        try:
            yield channel
        finally:
            with self._lock:
                channel.users -= 1
                unused = channel.retired and not channel.users
            if unused:
                channel.transport.close()

    def _retire(self, channel: _Channel | None) -> None:
        if channel is None:
            return
        with self._lock:
            channel.retired = True
            unused = not channel.users
        if unused:
            channel.transport.close()


def _parse(response: httpx.Response, answer: type[Answer]) -> Answer:
    content = _read(response)
    if response.status_code != 200:
        raise _error(response, content)
    try:
        return answer.model_validate_json(content)
    except ValidationError as error:
        raise MalformedResponse(f"the answer is no {answer.__name__}") from error


def _read(response: httpx.Response) -> bytes:
    content = bytearray()
    try:
        for piece in response.iter_raw():
            content += piece
            if len(content) > _LARGEST_ANSWER:
                raise MalformedResponse(f"the answer has more than {_LARGEST_ANSWER} bytes")
    except httpx.HTTPError as error:
        raise GatewayUnreachable(f"the answer ended early: {error}") from error
    return bytes(content)


def _error(response: httpx.Response, content: bytes) -> GatewayError:
    status = response.status_code
    if status in _BUSY:
        return GatewayBusy(f"status {status}{_reason(content)}", None)
    if status in _UNAVAILABLE:
        return GatewayUnreachable(f"status {status}: no gateway behind this address")
    try:
        problem = Problem.model_validate_json(content)
    except ValidationError:
        return MalformedResponse(f"status {status} without a problem: {content[:200]!r}")
    return GatewayRefused(status, problem.reason, problem.detail)


def _reason(content: bytes) -> str:
    try:
        return f": {Problem.model_validate_json(content).detail}"
    except ValidationError:
        return ""
