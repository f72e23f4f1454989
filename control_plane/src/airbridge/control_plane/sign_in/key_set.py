"""Cache of the issuer's keys. No request waits for the issuer in a thread, and callers cannot raise the rate of fetches."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import httpx
import structlog

from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.control_plane.sign_in import verification_keys
from airbridge.control_plane.sign_in.verification_keys import LARGEST, BadKeys, VerificationKey
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import RefusalReason

log = structlog.get_logger()

# Seconds. A key that the issuer withdrew is refused after this time.
FRESH_SECONDS: Final = 600.0
# While the issuer is away, known keys are used for so long.
STALE_SECONDS: Final = 3_600.0
# Between two fetches, whatever key ids callers make up.
PAUSE_SECONDS: Final = 30.0
FETCH_SECONDS: Final = 5.0
# Requests that wait for one answer of the issuer.
MOST_WAITING: Final = 64
DISCOVERY: Final = "/.well-known/openid-configuration"

Fetch = Callable[[str], Awaitable[bytes]]


class KeyIssuer(Protocol):
    """An issuer as a configuration file describes it."""

    @property
    def issuer(self) -> str:
        """Its URL, as its tokens name it."""

    @property
    def jwks_url(self) -> str | None:
        """URL of its keys; None: by its discovery document."""

    @property
    def ca_file(self) -> Path | None:
        """CAs of its server; None: the public ones."""

    @property
    def option(self) -> str:
        """Option of ``[airbridge]`` that names the file."""


class KeySet:
    """Keys of one issuer, fetched when they are needed. Used on the gateway's event loop alone."""

    def __init__(
        self,
        rules: KeyIssuer,
        fetch: Fetch | None = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._rules = rules
        self._fetch = fetch or Fetcher(trust(rules)).get
        self._monotonic = monotonic
        self._keys: dict[str, VerificationKey] = {}
        self._read_at = self._begun_at = float("-inf")
        self._refreshing: asyncio.Task[None] | None = None
        self._waiting = 0

    async def find(self, kid: str) -> VerificationKey:
        """Return the key of an id. Raises `Refused` (401) for an unknown one, `Unavailable` if the issuer's keys are not known."""
        wanted = self._is_wanted(kid)
        if wanted and self._refreshing is None and self._monotonic() - self._begun_at >= PAUSE_SECONDS:
            self._begun_at = self._monotonic()
            self._refreshing = asyncio.get_running_loop().create_task(self._refresh())
        if wanted and self._refreshing is not None:
            await self._wait(self._refreshing)
        keys = self._usable()
        if not keys:
            raise Unavailable("the issuer's keys cannot be read now", retry_after=PAUSE_SECONDS)
        if kid not in keys:
            raise Refused(
                401,
                RefusalReason.FORBIDDEN,
                f"the issuer has no key {kid[:64]!r}; a new key is known within {PAUSE_SECONDS:g} s",
                rule="sign-in key",
            )
        return keys[kid]

    async def close(self) -> None:
        """Cancel a fetch that is under way."""
        refreshing = self._refreshing
        if refreshing is not None:
            refreshing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await refreshing

    def _is_wanted(self, kid: str) -> bool:
        return kid not in self._keys or self._monotonic() - self._read_at >= FRESH_SECONDS

    def _usable(self) -> dict[str, VerificationKey]:
        return self._keys if self._monotonic() - self._read_at < STALE_SECONDS else {}

    async def _wait(self, refreshing: asyncio.Task[None]) -> None:
        if self._waiting >= MOST_WAITING:
            raise Unavailable("too many sign-ins wait for the issuer's keys", retry_after=FETCH_SECONDS)
        self._waiting += 1
        try:
            # One request that goes away must not end the fetch for the others.
            await asyncio.shield(refreshing)
        finally:
            self._waiting -= 1

    async def _refresh(self) -> None:
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                keys = await self._read()
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError) as error:
            log.warning(
                "sign_in.keys_unreadable",
                issuer=self._rules.issuer,
                why=f"{type(error).__name__}: {error}"[:300],
            )
        else:
            self._keys, self._read_at = keys, self._monotonic()
            log.info("sign_in.keys_read", issuer=self._rules.issuer, kids=sorted(keys))
        finally:
            self._refreshing = None

    async def _read(self) -> dict[str, VerificationKey]:
        url = self._rules.jwks_url or await self._discover()
        return verification_keys.parse(await self._fetch(url))

    async def _discover(self) -> str:
        content = await self._fetch(self._rules.issuer.rstrip("/") + DISCOVERY)
        found = verification_keys.document(content)
        if found.get("issuer") != self._rules.issuer:
            raise BadKeys(f"the discovery document is of issuer {str(found.get('issuer'))[:200]!r}")
        return secure_url(found.get("jwks_uri"))


class Fetcher:
    """Reads documents of the issuer, bounded in size; `KeySet` bounds the time."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context

    async def get(self, url: str) -> bytes:
        """Return a document. Raises `httpx.HTTPError` or `BadKeys`."""
        status, content = await self._request("GET", url)
        if status != 200:
            raise BadKeys(f"{url} answers {status}")
        return content

    async def post(
        self, url: str, form: Mapping[str, str], auth: tuple[str, str] | None
    ) -> tuple[int, bytes]:
        """Return status and body of the answer to a form. Raises `httpx.HTTPError` or `BadKeys`."""
        return await self._request("POST", url, data=dict(form), auth=auth)

    async def _request(self, method: str, url: str, **more: Any) -> tuple[int, bytes]:
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        async with (
            httpx.AsyncClient(
                verify=self._context, timeout=FETCH_SECONDS, follow_redirects=False, trust_env=False
            ) as client,
            client.stream(method, url, headers=headers, **more) as answer,
        ):
            # Compressed bodies are refused, since a small one can become a large one before it can be counted.
            if (coding := answer.headers.get("content-encoding", "identity")) != "identity":
                raise BadKeys(f"{url} answers {answer.status_code} {coding}")
            return answer.status_code, await _bounded(answer)


async def _bounded(answer: httpx.Response) -> bytes:
    content = bytearray()
    async for part in answer.aiter_raw():
        content += part
        if len(content) > LARGEST:
            raise BadKeys(f"{answer.url} has more than {LARGEST} bytes")
    return bytes(content)


def secure_url(url: Any) -> str:
    """Return a URL that the issuer's documents name. Raises `BadKeys` unless it is https, or http on loopback."""
    from pydantic import TypeAdapter, ValidationError

    from airbridge.control_plane.sign_in.rules import SecureUrl

    try:
        checked: str = TypeAdapter(SecureUrl).validate_python(url)
    except ValidationError as error:
        raise BadKeys(f"the discovery document names {str(url)[:200]!r}, which is no https URL") from error
    return checked


def trust(rules: KeyIssuer) -> ssl.SSLContext:
    """Return the TLS context for the issuer's server. Raises `ConfigurationError` for an unreadable `ca_file`."""
    try:
        return ssl.create_default_context(cafile=str(rules.ca_file) if rules.ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(
            f"ca_file {rules.ca_file} of {rules.option}: {error}; it must be a PEM file"
        ) from error
