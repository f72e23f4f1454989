"""Joins by a token of an issuer, on the gateway's event loop: finds the issuer and its key, for a thread to verify with."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Final

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.identity.oidc import join_token
from airbridge.control_plane.identity.oidc.issuers import JoinIssuer, JoinIssuers
from airbridge.control_plane.identity.oidc.join_token import ProvenToken, refuse
from airbridge.control_plane.sign_in.key_set import KeySet
from airbridge.control_plane.sign_in.verification_keys import LARGEST, BadKeys
from airbridge.core.protocol import EnrolRequest, JoinByKubernetes, JoinByOidc

TokenJoin = JoinByOidc | JoinByKubernetes
# Read in place of a URL.
_FILE: Final = "http://localhost/jwks_file"


class TokenJoins:
    """Verifications of the issuers' tokens. Used on one event loop."""

    def __init__(
        self,
        issuers: JoinIssuers,
        clock: Callable[[], datetime],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._issuers = issuers
        self._clock = clock
        self._keys = {each.name: _key_set(each, monotonic) for each in issuers.issuers}

    async def verification(self, request: EnrolRequest, join: TokenJoin) -> Callable[[], ProvenToken]:
        """Return the verification of a token, to be called in a thread: it returns the token's holder or raises `Refused`.

        Raises `Refused`, or `Unavailable` if the issuer's keys are not known.
        """
        claimed = join_token.read(join.token, join.method)
        issuer = self._issuers.find(join.method, claimed.issuer, request.region, request.pool)
        if issuer is None:
            raise refuse(
                join.method,
                f"no issuer of join method {join.method} is {claimed.issuer[:200]!r} and has a rule for pool "
                f"{request.pool}@{request.region} ([airbridge] join_issuers_file)",
            )
        try:
            key = await self._keys[issuer.name].find(claimed.header.kid)
        except Refused as error:
            raise refuse(join.method, error.detail) from error
        return partial(join_token.verify, join.token, claimed.header, key, issuer, request, now=self._clock())

    async def close(self) -> None:
        """Cancel fetches that are under way."""
        await asyncio.gather(*(keys.close() for keys in self._keys.values()))


def _key_set(issuer: JoinIssuer, monotonic: Callable[[], float]) -> KeySet:
    path = issuer.jwks_file
    if path is None:
        return KeySet(issuer, monotonic=monotonic)

    def content() -> bytes:
        with path.open("rb") as file:
            found = file.read(LARGEST + 1)
        if len(found) > LARGEST:
            raise BadKeys(f"jwks_file {path} has more than {LARGEST} bytes")
        return found

    async def read(_url: str) -> bytes:
        return await asyncio.to_thread(content)

    return KeySet(issuer.model_copy(update={"jwks_url": _FILE}), read, monotonic)
