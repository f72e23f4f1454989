"""Client of an issuer's device authorization grant (RFC 8628): the person signs in with a browser, anywhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Self

import httpx

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.local.exceptions import PlatformUnreachable
from airbridge.control_plane.sign_in.key_set import DISCOVERY, secure_url
from airbridge.control_plane.sign_in.verification_keys import BadKeys
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import RefusalReason

GRANT: Final = "urn:ietf:params:oauth:grant-type:device_code"
# RFC 8628, 3.5: seconds that are added on each slow_down.
SLOWER: Final = 5.0
LONGEST_WAIT: Final = 900.0


@dataclass(frozen=True, slots=True)
class Prompt:
    """Code that the person enters at an address, or confirms at one that contains it."""

    uri: str
    code: str
    complete: str | None
    device_code: str
    interval: float
    expires_in: float


class DeviceGrant:
    """One sign-in at an issuer; a context manager.

    Raises `ConfigurationError` if the issuer has no device grant, `Refused` if it denies, `PlatformUnreachable` otherwise.
    """

    def __init__(
        self,
        issuer: str,
        client_id: str,
        scope: str,
        *,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuer, self._client_id, self._scope = issuer, client_id, scope
        self._sleep, self._monotonic = sleep, monotonic
        self._client = httpx.Client(timeout=15.0, follow_redirects=False)
        self._endpoints: dict[str, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def begin(self, nonce: str) -> Prompt:
        """Request a code. The nonce is repeated in the ID token by issuers that know it for this grant."""
        self._endpoints = self._discover()
        form = {"client_id": self._client_id, "scope": self._scope, "nonce": nonce}
        status, found = self._post("device_authorization_endpoint", form)
        if status != 200:
            raise _denied(found)
        try:
            return Prompt(
                uri=str(found["verification_uri"]),
                code=str(found["user_code"]),
                complete=found.get("verification_uri_complete"),
                device_code=str(found["device_code"]),
                interval=max(0.0, float(found.get("interval", 5.0))),
                expires_in=min(float(found.get("expires_in", 600.0)), LONGEST_WAIT),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise PlatformUnreachable(f"{self._issuer} answers without a {error}") from error

    def wait(self, prompt: Prompt) -> str:
        """Return the ID token, once the person has signed in."""
        interval, until = prompt.interval, self._monotonic() + prompt.expires_in
        form = {"grant_type": GRANT, "device_code": prompt.device_code, "client_id": self._client_id}
        while self._monotonic() < until:
            self._sleep(interval)
            status, found = self._post("token_endpoint", form)
            if status == 200:
                return _id_token(found)
            if found.get("error") == "slow_down":
                interval += SLOWER
            elif found.get("error") != "authorization_pending":
                raise _denied(found)
        raise _denied({"error": "expired_token"})

    def _discover(self) -> dict[str, Any]:
        found = self._answer("GET", self._issuer.rstrip("/") + DISCOVERY)[1]
        if found.get("issuer") != self._issuer:
            raise ConfigurationError(
                f"{self._issuer} describes itself as {str(found.get('issuer'))[:200]!r}; "
                "issuer of oidc_file must be written as the issuer writes it"
            )
        return found

    def _post(self, endpoint: str, form: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
        try:
            url = secure_url(self._endpoints.get(endpoint))
        except BadKeys as error:
            raise ConfigurationError(
                f"{self._issuer} offers no {endpoint}; give an ID token with --id-token-file"
            ) from error
        return self._answer("POST", url, data=dict(form))

    def _answer(self, method: str, url: str, **more: Any) -> tuple[int, dict[str, Any]]:
        try:
            answer = self._client.request(method, url, headers={"Accept": "application/json"}, **more)
            found = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise PlatformUnreachable(f"{url} does not answer in JSON: {error}") from error
        if not isinstance(found, dict) or answer.status_code >= 500:
            raise PlatformUnreachable(f"{url} answers {answer.status_code}")
        return answer.status_code, found


def _id_token(found: Mapping[str, Any]) -> str:
    token = found.get("id_token")
    if not isinstance(token, str):
        raise ConfigurationError(
            "the issuer gives no ID token; scope of oidc_file must contain openid, and the client must be allowed to have one"
        )
    return token


def _denied(found: Mapping[str, Any]) -> Refused:
    why = found.get("error_description") or found.get("error") or "no reason given"
    return Refused(403, RefusalReason.FORBIDDEN, f"the issuer denies the sign-in: {str(why)[:300]}")
