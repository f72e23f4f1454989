"""The Task SDK's client, over a relay link."""

from __future__ import annotations

import json as jsonlib
from typing import Any, Final

import httpx
from airflow.sdk.api.client import API_RETRY_WAIT_MIN, Client, raise_on_4xx_5xx

from airbridge.edge_worker.runner.link import Link

_NO_DETAIL: Final = '{"detail": {"reason": "unexplained", "message": "the control plane gave no reason"}}'
"""The body of an error answer that has none: the supervisor hands on only errors that explain themselves."""


class RelayClient(Client):  # type: ignore[misc] # Airflow publishes no types
    """The Task SDK's client over a relay link: no connection, TLS context, cookies or token.

    It does without httpx's machinery, which costs several times what a call does, and keeps the SDK's retries, with
    pauses that hear the order to stop.
    """

    def __init__(self, link: Link) -> None:  # does not call httpx.Client.__init__: nothing it sets up is used
        self._link = link

    def request(self, method: str, url: str, **kwargs: Any) -> httpx.Response:
        """Send a request; retry as the Task SDK does, unless the task is being stopped."""
        try:
            return self._attempt(method, url, **kwargs)
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500 and error.response.status_code != 429:
                raise
        self._link.pause(API_RETRY_WAIT_MIN)
        retrying = Client.request.retry.copy(sleep=self._link.pause)
        response: httpx.Response = retrying(self._attempt, method, url, **kwargs)
        return response

    def _attempt(
        self,
        method: str,
        url: str,
        *,
        params: Any = None,
        content: Any = None,
        json: object = None,
        **_unused: Any,
    ) -> httpx.Response:
        target = httpx.URL(url, params=params) if params else httpx.URL(url)
        path, _, query = target.raw_path.decode().partition("?")
        body: str | None = content if json is None else jsonlib.dumps(json, allow_nan=False)
        reply = self._link.call(method, path.lstrip("/"), query, body)
        headers = {"content-type": "application/json", **reply.headers}
        text = reply.body if reply.body or reply.status < 400 else _NO_DETAIL
        response = httpx.Response(reply.status, headers=headers, content=(text or "").encode())
        if not response.is_success:
            response.request = httpx.Request(method, f"http://relay/{path.lstrip('/')}")
            raise_on_4xx_5xx(response)
        return response
