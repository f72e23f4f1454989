"""Client of the gateway's operator API: TLS 1.3 and a bearer token."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from pydantic import ValidationError

from airbridge.control_plane.exceptions import Proposed, Refused
from airbridge.control_plane.local.exceptions import PlatformUnreachable
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import Problem

PREFIX = "/operator/v1"
_TIMEOUT_SECONDS = 30.0
_PUSH_TIMEOUT_SECONDS = 300.0
_CHUNK_BYTES = 64 * 1024


@dataclass(frozen=True)
class Endpoint:
    """URL of the API, the CA to verify it with, and the access token; None before signing in."""

    url: str
    ca_file: Path | None
    token: str | None = field(repr=False)


class OperatorClient:
    """Client of the operator API; a context manager.

    Its methods raise `Refused` with the gateway's reason, `Proposed` if the action waits for a second operator, or
    `PlatformUnreachable`.
    """

    def __init__(self, endpoint: Endpoint, transport: httpx.BaseTransport | None = None) -> None:
        self._client = httpx.Client(
            base_url=endpoint.url,
            verify=_trust(endpoint.ca_file),
            headers={"Authorization": f"Bearer {endpoint.token}"} if endpoint.token is not None else {},
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **query: str) -> Any:
        """Send a GET; return the answer's JSON."""
        return self._call("GET", path, params=query)

    def post(self, path: str, body: Any = None) -> Any:
        """Send a POST; return the answer's JSON."""
        return self._call("POST", path, json=body)

    def delete(self, path: str, **query: str) -> Any:
        """Send a DELETE; return the answer's JSON."""
        return self._call("DELETE", path, params=query)

    def put(self, path: str, body: Any) -> Any:
        """Send a PUT; return the answer's JSON."""
        return self._call("PUT", path, json=body)

    def put_bytes(self, path: str, content: bytes, content_type: str, sent: Callable[[int], None]) -> Any:
        """Send a PUT with a file, calling `sent` with the bytes sent so far; return the answer's JSON."""
        return self._call(
            "PUT",
            path,
            content=_chunks(content, sent),
            # With the length, the body is not sent in HTTP's chunks.
            headers={"Content-Type": content_type, "Content-Length": str(len(content))},
            timeout=_PUSH_TIMEOUT_SECONDS,
        )

    def _call(self, method: str, path: str, **more: Any) -> Any:
        try:
            answer = self._client.request(method, f"{PREFIX}/{path}", **more)
        except httpx.HTTPError as error:
            raise PlatformUnreachable(f"{self._client.base_url} does not answer: {error}") from error
        if answer.is_error:
            raise _refusal(answer)
        if answer.status_code == httpx.codes.ACCEPTED:
            raise _proposed(answer.json()["proposal"])
        return answer.json() if answer.content else None


def _chunks(content: bytes, sent: Callable[[int], None]) -> Iterator[bytes]:
    for begin in range(0, len(content), _CHUNK_BYTES):
        yield content[begin : begin + _CHUNK_BYTES]
        sent(min(begin + _CHUNK_BYTES, len(content)))


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"--ca-file {ca_file}: {error}; it must be a PEM file") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _proposed(proposal: dict[str, Any]) -> Proposed:
    return Proposed(
        f"proposal {proposal['id']} ({proposal['action']}) waits for a second operator until {proposal['expires_at']}: "
        f"airbridge approvals approve {proposal['id']}"
    )


def _refusal(answer: httpx.Response) -> Exception:
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        return PlatformUnreachable(f"{answer.url}: {answer.status_code} {answer.text[:500]}")
    if problem.status >= 500:
        return PlatformUnreachable(f"{answer.url}: {problem.status} {problem.detail}")
    return Refused(problem.status, problem.reason, problem.detail)
