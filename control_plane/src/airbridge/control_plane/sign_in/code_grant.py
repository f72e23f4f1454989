"""Authorization code flow with PKCE (OpenID Connect Core, 3.1; RFC 7636): sign-in to Airflow's UI in a browser."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final, Self
from urllib.parse import quote, urlencode

import httpx

from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.control_plane.sign_in import id_token, verification_keys
from airbridge.control_plane.sign_in.id_token import Identity
from airbridge.control_plane.sign_in.key_set import (
    DISCOVERY,
    FRESH_SECONDS,
    PAUSE_SECONDS,
    Fetcher,
    KeySet,
    secure_url,
    trust,
)
from airbridge.control_plane.sign_in.rules import UiRules
from airbridge.control_plane.sign_in.verification_keys import BadKeys
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import RefusalReason

_UNREADABLE: Final = (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Attempt:
    """One sign-in: what the issuer must give back, and the page to return to."""

    state: str
    nonce: str
    verifier: str
    page: str

    @classmethod
    def begin(cls, page: str) -> Self:
        """Return a new one."""
        return cls(secrets.token_urlsafe(32), secrets.token_urlsafe(32), secrets.token_urlsafe(48), page)

    @property
    def challenge(self) -> str:
        """Code challenge of RFC 7636 (S256)."""
        digest = hashlib.sha256(self.verifier.encode()).digest()
        return base64.urlsafe_b64encode(digest).rstrip(b"=").decode()


class CodeGrant:
    """Sign-ins at one issuer. Used on one event loop alone.

    Raises `Unavailable` if the issuer does not answer, `Refused` for whoever it or the rules refuse.
    """

    def __init__(
        self, rules: UiRules, callback: str, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._rules, self._callback, self._monotonic = rules, callback, monotonic
        self._secret = _client_secret(rules)
        self._fetcher = Fetcher(trust(rules))
        self._keys = KeySet(rules)
        self._endpoints: tuple[str, str] | None = None
        self._asked_at = float("-inf")
        self._asking = asyncio.Lock()

    async def address(self, attempt: Attempt) -> str:
        """Return the issuer's page on which the user signs in."""
        authorization, _ = await self._find_endpoints()
        asked = {
            "response_type": "code",
            "client_id": self._rules.audience,
            "redirect_uri": self._callback,
            "scope": self._rules.scope,
            "state": attempt.state,
            "nonce": attempt.nonce,
            "code_challenge": attempt.challenge,
            "code_challenge_method": "S256",
        }
        return f"{authorization}?{urlencode(asked)}"

    async def redeem(self, code: str, attempt: Attempt) -> Identity:
        """Return the user that the issuer names for a code."""
        token = await self._exchange(code, attempt)
        header = id_token.read_header(token)
        key = await self._keys.find(header.kid)
        return id_token.verify(token, header, key, self._rules, nonce=attempt.nonce, now=datetime.now(UTC))

    async def _exchange(self, code: str, attempt: Attempt) -> str:
        _, endpoint = await self._find_endpoints()
        form = {
            "grant_type": "authorization_code",
            "code": code,
            "redirect_uri": self._callback,
            "code_verifier": attempt.verifier,
            "client_id": self._rules.audience,
        }
        # RFC 6749, 2.3.1: both are encoded as in a form before they are joined.
        auth = (quote(self._rules.audience, safe=""), quote(self._secret, safe="")) if self._secret else None
        try:
            status, content = await self._fetcher.post(endpoint, form, auth)
            found = verification_keys.document(content)
        except _UNREADABLE as error:
            raise _away(error) from error
        if status != 200 or not isinstance(found.get("id_token"), str):
            why = found.get("error_description") or found.get("error") or f"it answers {status}"
            raise Refused(
                403,
                RefusalReason.FORBIDDEN,
                f"the issuer refuses the sign-in: {str(why)[:300]}",
                rule="sign-in",
            )
        return str(found["id_token"])

    async def _find_endpoints(self) -> tuple[str, str]:
        """Return the addresses of authorization and tokens, asked for every ten minutes, and twice a minute while they fail."""
        async with self._asking:
            age = self._monotonic() - self._asked_at
            if age >= (FRESH_SECONDS if self._endpoints else PAUSE_SECONDS):
                self._asked_at = self._monotonic()
                try:
                    self._endpoints = await self._discover()
                except _UNREADABLE as error:
                    if self._endpoints is None:
                        raise _away(error) from error
            if self._endpoints is None:
                raise Unavailable("the issuer did not answer a moment ago", retry_after=PAUSE_SECONDS)
            return self._endpoints

    async def _discover(self) -> tuple[str, str]:
        content = await self._fetcher.get(self._rules.issuer.rstrip("/") + DISCOVERY)
        found: dict[str, Any] = verification_keys.document(content)
        if found.get("issuer") != self._rules.issuer:
            raise BadKeys(f"the discovery document is of issuer {str(found.get('issuer'))[:200]!r}")
        return secure_url(found.get("authorization_endpoint")), secure_url(found.get("token_endpoint"))


def _client_secret(rules: UiRules) -> str:
    if rules.client_secret_file is None:
        return ""
    try:
        secret = rules.client_secret_file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"client_secret_file {rules.client_secret_file} of {rules.OPTION}: {error}; it must hold the client's secret"
        ) from error
    if not secret:
        raise ConfigurationError(
            f"client_secret_file {rules.client_secret_file} of {rules.OPTION} is empty; it must hold the client's secret"
        )
    return secret


def _away(error: Exception) -> Unavailable:
    why = f"{type(error).__name__}: {error}"[:300]
    return Unavailable(f"the issuer cannot be reached: {why}", retry_after=PAUSE_SECONDS)
