"""An OpenID Connect issuer under the name that the environment file gives, and a person who signs in to the UI through it."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import httpx
from tests.boot.network import Network
from tests.support.oidc_issuer import Issuer, issuing

from airbridge.control_plane.local.exceptions import PlatformUnreachable
from airbridge.control_plane.local.services.airflow_rest import AirflowRest

ISSUER = "10.77.0.4"


class Person(AirflowRest):
    """A person who signed in, with the REST API."""

    def __init__(self, url: str, token: str) -> None:
        super().__init__(url)
        self._client.headers["Authorization"] = f"Bearer {token}"

    def _request(self, method: str, path: str, body: Any = None) -> httpx.Response:
        """Send a request; a read that this machine was too busy to answer is sent once more."""
        try:
            return super()._request(method, path, body)
        except PlatformUnreachable:
            if method != "GET":
                raise
        return super()._request(method, path, body)

    def __enter__(self) -> Person:
        return self


@dataclass(frozen=True)
class Provider:
    """The issuer, and where this machine reaches it."""

    issuer: Issuer
    loopback: str


@contextmanager
def provider(network: Network, url: str, secret: str) -> Iterator[Provider]:
    """The issuer, for the length of a block."""
    host = str(urlsplit(url).hostname)
    with issuing(secret=secret, groups=["owners"]) as made:
        loopback, made.url = made.url, url
        network.add_address(ISSUER, host)
        port = int(loopback.rpartition(":")[2])
        network.forward(ISSUER, 443, ("127.0.0.1", port), network.server_context(host))
        yield Provider(made, loopback)


def sign_in(ui_url: str, trusted: ssl.SSLContext, provider: Provider) -> str:
    """Walk through the sign-in as a browser does; return the token of the session."""
    with httpx.Client(base_url=ui_url, timeout=60, verify=trusted, trust_env=False) as browser:
        sent = browser.get("/auth/login", params={"next": "/dags"})
        if sent.status_code != 303:
            raise RuntimeError(f"the UI does not send to the issuer: {sent.status_code} {sent.text[:300]}")
        asked = urlsplit(sent.headers["location"])
        answer = httpx.get(f"{provider.loopback}{asked.path}?{asked.query}", trust_env=False)
        back = urlsplit(answer.headers["location"])
        done = browser.get(f"{back.path}?{back.query}")
        token = browser.cookies.get("_token")
    if not token:
        raise RuntimeError(f"the sign-in brought no token: {done.status_code} {done.text[:300]}")
    return token
