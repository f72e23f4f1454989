"""Client of the gateway: one method a request, over mutual TLS with persistent connections.

Every failure is a `GatewayError`; `airbridge.edge_worker.gateway_client.retry` decides whether it may be retried.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from airbridge.core.protocol import (
    PROTOCOL_VERSION,
    VERSION_HEADER,
    ClaimRequest,
    ClaimResponse,
    Credentials,
    EnrolRequest,
    ExchangeRequest,
    ExchangeResponse,
    Heartbeat,
    HeartbeatResponse,
    Problem,
    RefusalReason,
    ReleaseRequest,
    ReleaseResponse,
    RenewRequest,
)
from airbridge.edge_worker.clock import Clock
from airbridge.edge_worker.exceptions import (
    GatewayBusy,
    GatewayRefused,
    GatewayUnreachable,
    MalformedResponse,
)
from airbridge.edge_worker.gateway_client.connectivity import Connectivity

Answer = TypeVar("Answer", bound=BaseModel)

_ROOT = "/edge/v1/"
_BUSY = frozenset({429, 503})
_UNAVAILABLE = frozenset({502, 504})
_LONGEST_RETRY_AFTER = 300.0
# Seconds for requests under way to end when the worker does.
CLOSE_SECONDS = 1.0

_PIECE_BYTES: Final = 64 * 1024
# Of a large request, when its last piece is written, up to so much may still be in the kernel's buffers (`tcp_wmem`), which a line at the
# gateway's slowest rate (bytes a second) has to carry before an answer can come.
_BUFFERED_BYTES: Final = 4 * 1024 * 1024
_SLOWEST: Final = 64 * 1024

# Eight idle connections: with four, a fan-out at 200 ms round trip took twice as long, for TLS handshakes.
_KEEP_ALIVE = httpx.Limits(max_connections=16, max_keepalive_connections=8, keepalive_expiry=75.0)


class Gateway:
    """Requests to the gateway. All but `enrol` need an identity, see `identify`."""

    def __init__(
        self,
        base_url: str,
        anonymous: ssl.SSLContext,
        connectivity: Connectivity,
        clock: Clock,
        *,
        timeout_seconds: float = 30.0,
        connect_timeout_seconds: float = 5.0,
        on_identity: Callable[[ssl.SSLContext, dict[str, str]], None] | None = None,
    ) -> None:
        self._base_url = base_url
        self._anonymous = anonymous
        self._connectivity = connectivity
        self._clock = clock
        self._timeout = httpx.Timeout(timeout_seconds, connect=connect_timeout_seconds)
        self._on_identity = on_identity
        self._channel: _Channel | None = None
        self._retired: set[asyncio.Task[None]] = set()
        self._offset = timedelta(0)
        self._enrolling = False

    def identify(self, context: ssl.SSLContext, access_token: str) -> None:
        """Use this identity from now on; requests under way end under the one they began with."""
        headers = {VERSION_HEADER: str(PROTOCOL_VERSION), "Authorization": f"Bearer {access_token}"}
        self._enrolling = False
        old, self._channel = self._channel, self._open(context, headers)
        if old is not None:
            self._retire(old)
        if self._on_identity is not None:
            self._on_identity(context, headers)

    @property
    def enrolling(self) -> bool:
        """Return whether an enrolment was sent that has not led to an identity yet: it may have ended the one we have."""
        return self._enrolling

    @property
    def identified(self) -> bool:
        """Return whether there is an identity to make requests with."""
        return self._channel is not None

    def server_now(self) -> datetime:
        """Return the gateway's time, by the last answer's Date header: exact to about a second, whatever our clock."""
        return self._clock.now() + self._offset

    async def enrol(self, request: EnrolRequest) -> Credentials:
        """Request an identity, without presenting one."""
        channel = self._open(self._anonymous, {VERSION_HEADER: str(PROTOCOL_VERSION)})
        self._enrolling = True
        try:
            return await self._post(channel, "enrol", request, Credentials)
        except GatewayRefused:
            self._enrolling = False
            raise
        finally:
            await channel.close(0.0)

    async def renew(self, request: RenewRequest) -> Credentials:
        """Request the next certificate and access token."""
        return await self._request("renew", request, Credentials)

    async def claim(self, request: ClaimRequest) -> ClaimResponse:
        """Claim work items."""
        return await self._request("claim", request, ClaimResponse)

    async def heartbeat(self, request: Heartbeat) -> HeartbeatResponse:
        """Renew all leases; return commands."""
        return await self._request("heartbeat", request, HeartbeatResponse)

    async def exchange(self, request: ExchangeRequest) -> ExchangeResponse:
        """Send records; return Airflow's responses."""
        return await self._request("exchange", request, ExchangeResponse)

    async def release(self, request: ReleaseRequest) -> ReleaseResponse:
        """Release work items that were never started."""
        return await self._request("release", request, ReleaseResponse)

    async def close(self) -> None:
        """Close every connection."""
        if self._channel is not None:
            await self._channel.close(CLOSE_SECONDS)
        for task in self._retired:
            task.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)

    async def _request(self, what: str, request: BaseModel, answer: type[Answer]) -> Answer:
        channel = self._channel
        if channel is None:
            raise GatewayUnreachable("this worker has no identity yet")
        try:
            return await self._post(channel, what, request, answer)
        except GatewayRefused as error:
            if error.reason is RefusalReason.REVOKED and (self._enrolling or channel is not self._channel):
                # Enrolling anew revokes the certificate before. The next request shows whether the worker itself is revoked.
                raise GatewayUnreachable(f"{what}: made under an identity since replaced: {error}") from error
            raise

    async def _post(self, channel: _Channel, what: str, request: BaseModel, answer: type[Answer]) -> Answer:
        with self._connectivity.request() as progressed:
            response = await _send(channel, _ROOT + what, request.model_dump_json().encode(), progressed)
            self._record_time(response)
            return _parse(response, answer)

    def _open(self, context: ssl.SSLContext, headers: dict[str, str]) -> _Channel:
        transport = httpx.AsyncHTTPTransport(verify=context, limits=_KEEP_ALIVE, trust_env=False)
        return _Channel(
            transport,
            self._base_url.rstrip("/"),
            {**headers, "Content-Type": "application/json"},
            self._timeout,
        )

    def _retire(self, channel: _Channel) -> None:
        task = asyncio.create_task(channel.close_when_idle())
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    def _record_time(self, response: httpx.Response) -> None:
        try:
            server = parsedate_to_datetime(response.headers["Date"])
        except (KeyError, ValueError):
            return
        self._offset = server.astimezone(UTC) - self._clock.now()


class _Channel:
    """Connections under one identity, and the requests that use them.

    It uses httpx's transport without its client: there are no cookies, redirects or proxies here, and the client costs as much
    CPU again as the request itself. A request whose caller is cancelled goes on by itself.
    """

    def __init__(
        self,
        transport: httpx.AsyncHTTPTransport,
        base_url: str,
        headers: dict[str, str],
        timeout: httpx.Timeout,
    ) -> None:
        self._transport = transport
        self._base_url = base_url
        self._headers = headers
        self._timeout = timeout
        self._requests: set[asyncio.Task[httpx.Response]] = set()

    async def post(self, path: str, content: bytes, progressed: Callable[[], None]) -> httpx.Response:
        # In a task of its own: cancelled in the middle of a TLS handshake, httpcore would leave the connection open.
        request = asyncio.create_task(self._exchange(path, content, progressed))
        self._requests.add(request)
        request.add_done_callback(self._ended)
        return await asyncio.shield(request)

    async def _exchange(self, path: str, content: bytes, progressed: Callable[[], None]) -> httpx.Response:
        headers, timeout = self._headers, self._timeout.as_dict()
        body: bytes | AsyncIterator[bytes] = content
        if len(content) > _PIECE_BYTES:
            body = _pieces(content, progressed)
            headers = {**headers, "Content-Length": str(len(content))}
            timeout["read"] = (timeout["read"] or 0.0) + min(len(content), _BUFFERED_BYTES) / _SLOWEST
        response = await self._transport.handle_async_request(
            httpx.Request(
                "POST",
                f"{self._base_url}{path}",
                headers=headers,
                content=body,
                extensions={"timeout": timeout},
            )
        )
        try:
            await response.aread()
        finally:
            await response.aclose()
        return response

    async def close_when_idle(self) -> None:
        while self._requests:
            await asyncio.wait(self._requests)
        await self._transport.aclose()

    async def close(self, patience: float) -> None:
        if self._requests:
            await asyncio.wait(self._requests, timeout=patience)
        for request in self._requests:
            request.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)
        await self._transport.aclose()

    def _ended(self, request: asyncio.Task[httpx.Response]) -> None:
        self._requests.discard(request)
        if not request.cancelled():
            request.exception()  # retrieved, so that asyncio does not log it as lost


async def _pieces(content: bytes, progressed: Callable[[], None]) -> AsyncIterator[bytes]:
    """Yield the content in pieces, each of which has the write time-out for itself, so that only a line that stands still fails."""
    for start in range(0, len(content), _PIECE_BYTES):
        yield content[start : start + _PIECE_BYTES]
        progressed()


async def _send(
    channel: _Channel, path: str, content: bytes, progressed: Callable[[], None]
) -> httpx.Response:
    try:
        return await channel.post(path, content, progressed)
    except httpx.DecodingError as error:
        raise MalformedResponse(f"POST {path}: {error}") from error
    except httpx.RemoteProtocolError as error:
        raise GatewayUnreachable(f"POST {path}: the connection broke: {error}") from error
    except (httpx.TransportError, ssl.SSLError, OSError) as error:
        raise GatewayUnreachable(f"POST {path}: {type(error).__name__}: {error}") from error


def _parse(response: httpx.Response, answer: type[Answer]) -> Answer:
    if response.status_code != 200:
        raise _error(response)
    try:
        return answer.model_validate_json(response.content)
    except ValidationError as error:
        shown = error.errors(include_url=False, include_input=False)[:3]
        raise MalformedResponse(f"the answer is no {answer.__name__}: {shown}") from error


def _error(response: httpx.Response) -> Exception:
    status = response.status_code
    if status in _BUSY:
        return GatewayBusy(f"status {status}", _retry_after(response.headers))
    if status in _UNAVAILABLE:
        return GatewayUnreachable(f"status {status}: no gateway behind this address")
    try:
        problem = Problem.model_validate_json(response.content)
    except ValidationError:
        return MalformedResponse(f"status {status} without a problem: {response.content[:200]!r}")
    return GatewayRefused(status, problem.reason, problem.detail)


def _retry_after(headers: Any) -> float | None:
    try:
        seconds = float(headers["Retry-After"])
    except (KeyError, ValueError):
        return None
    return min(max(0.0, seconds), _LONGEST_RETRY_AFTER) if seconds == seconds else None  # noqa: PLR0124 - NaN
