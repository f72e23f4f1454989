"""A client of the gateway's operators' API: TLS 1.3 and a bearer token."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import httpx
from pydantic import ValidationError

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.local.exceptions import PlatformUnreachable
from airbridge.executor.exceptions import ConfigurationError
from airbridge.executor.protocol import Problem

PREFIX = "/operator/v1"
_TIMEOUT_SECONDS = 30.0
_PUSH_TIMEOUT_SECONDS = 300.0


@dataclass(frozen=True)
class Endpoint:
    """Where the API is, whom to trust, and as whom to call."""

    url: str
    ca_file: Path | None
    token: str = field(repr=False)


class OperatorClient:
    """Calls the API; a context manager.

    Raises `Refused` with the gateway's own words, or `PlatformUnreachable`.
    """

    def __init__(self, endpoint: Endpoint, transport: httpx.BaseTransport | None = None) -> None:
        self._client = httpx.Client(
            base_url=endpoint.url,
            verify=_trust(endpoint.ca_file),
            headers={"Authorization": f"Bearer {endpoint.token}"},
            timeout=_TIMEOUT_SECONDS,
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, **query: str) -> Any:
        """Read something."""
        return self._call("GET", path, params=query)

    def post(self, path: str, body: Any = None) -> Any:
        """Change something."""
        return self._call("POST", path, json=body)

    def delete(self, path: str, **query: str) -> Any:
        """End something."""
        return self._call("DELETE", path, params=query)

    def put_bytes(self, path: str, content: bytes, content_type: str) -> Any:
        """Send a file."""
        return self._call(
            "PUT",
            path,
            content=content,
            headers={"Content-Type": content_type},
            timeout=_PUSH_TIMEOUT_SECONDS,
        )

    def _call(self, method: str, path: str, **more: Any) -> Any:
        try:
            answer = self._client.request(method, f"{PREFIX}/{path}", **more)
        except httpx.HTTPError as error:
            raise PlatformUnreachable(f"{self._client.base_url} does not answer: {error}") from error
        if answer.is_error:
            raise _refusal(answer)
        return answer.json() if answer.content else None


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"--ca-file {ca_file}: {error}; it must be a PEM file") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    return context


def _refusal(answer: httpx.Response) -> Exception:
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        return PlatformUnreachable(f"{answer.url}: {answer.status_code} {answer.text[:500]}")
    if problem.status >= 500:
        return PlatformUnreachable(f"{answer.url}: {problem.status} {problem.detail}")
    return Refused(problem.status, problem.reason, problem.detail)
