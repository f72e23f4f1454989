"""The Task SDK's client, over the execution API proxy."""

from __future__ import annotations

import json as jsonlib
from typing import Any, Final
from urllib.parse import quote

import httpx
from airflow.sdk.api.client import API_RETRY_WAIT_MIN, Client, raise_on_4xx_5xx

from airbridge.core import task_calls
from airbridge.core.violations import Place, Violation
from airbridge.edge_worker.proxy.protocol import Reply
from airbridge.edge_worker.runner.proxy_connection import ProxyConnection

# Body for an error response without one: the supervisor passes on only errors that have a detail.
_NO_DETAIL: Final = '{"detail": {"reason": "unexplained", "message": "the control plane gave no reason"}}'
# Characters of a path that stay as they are. The SDK puts names into it as they come: one with a "?", a "#", a "%" or
# a ".." would name something else if the path were read as a URL.
_PLAIN: Final = "/:+@,;=&$!*'()~"


class ProxyClient(Client):  # type: ignore[misc] # Airflow publishes no types
    """The Task SDK's client over a proxy connection: no HTTP connection, TLS context, cookies or token.

    It keeps the SDK's retries, with pauses that a cancellation interrupts.
    """

    def __init__(
        self, proxy: ProxyConnection
    ) -> None:  # does not call httpx.Client.__init__: nothing it sets up is used
        self._proxy = proxy

    def request(self, method: str, url: str, **kwargs: Any) -> httpx.Response:
        """Send a request; retry as the Task SDK does, unless the task is being stopped."""
        try:
            return self._attempt(method, url, **kwargs)
        except httpx.HTTPStatusError as error:
            if error.response.status_code < 500 and error.response.status_code != 429:
                raise
        self._proxy.pause(API_RETRY_WAIT_MIN)
        retrying = Client.request.retry.copy(sleep=self._proxy.pause)
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
        return _response(method, self._reply(method, url, str(httpx.QueryParams(params)), content, json))

    def ask(self, method: str, path: str, body: str | None = None) -> httpx.Response:
        """Make a call that Airflow's API does not have; `path` is encoded. Raises what the SDK's calls raise."""
        return _response(method, self._proxy.call(method, path, "", body))

    def _reply(self, method: str, url: str, query: str, content: Any, value: object) -> Reply:
        """Make the call, unless the control plane would refuse it: then answer as it would, before anything is accepted."""
        try:
            body: str | None = content if value is None else _json_text(method, url, value)
            # A final state passes: a refused one is the gateway's to turn into a failure with the task's retries.
            if not url.endswith("/state"):
                task_calls.check(method, url, body)
        except Violation as violation:
            detail = {"reason": "refused_write", "message": str(violation)}
            return Reply(id=0, status=422, body=jsonlib.dumps({"detail": detail}))
        return self._proxy.call(method, quote(url.lstrip("/"), safe=_PLAIN), query, body)


def _response(method: str, reply: Reply) -> httpx.Response:
    """Return a reply as the SDK's client would have received it. Raises `httpx.HTTPStatusError`."""
    headers = {"content-type": "application/json", **reply.headers}
    text = reply.body if reply.body or reply.status < 400 else _NO_DETAIL
    response = httpx.Response(reply.status, headers=headers, content=(text or "").encode())
    if not response.is_success:
        response.request = httpx.Request(method, "http://proxy/")
        raise_on_4xx_5xx(response)
    return response


def _json_text(method: str, path: str, value: object) -> str:
    try:
        return jsonlib.dumps(value, allow_nan=False)
    except (TypeError, ValueError) as error:
        place = Place(task_calls.describe(method, path))
        raise Violation(place, f"a value that is not JSON ({error})", "JSON, with finite numbers") from None
