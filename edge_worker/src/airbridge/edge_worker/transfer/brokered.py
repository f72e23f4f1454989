"""AWS credentials that the gateway hands out, as boto3 takes them: held in memory, renewed before they expire.

They are renewed when they are used, so an idle worker has none. While the gateway is unreachable, those that there are stay in
use until a minute before they expire; after that a call of AWS fails as if AWS itself were unreachable, and is repeated.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Protocol

import structlog

from airbridge.core.wire.brokering import AwsCredentials, AwsCredentialsRequest
from airbridge.edge_worker.clock import SystemClock
from airbridge.edge_worker.exceptions import GatewayError
from airbridge.edge_worker.transfer.client import Answer

log = structlog.get_logger(__name__)

#: Seconds before the end from which a use renews them; URLs that are signed with them live for five minutes.
RENEW_BEFORE: Final = 480
#: Seconds before the end from which they are not used any more.
UNUSED_BEFORE: Final = 60
#: Seconds between two requests while the gateway is unreachable or refuses.
PAUSE_SECONDS: Final = 5.0
METHOD: Final = "airbridge-gateway"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


class Asks(Protocol):
    """The part of `Transfers` that gets credentials."""

    def ask(
        self, what: str, request: AwsCredentialsRequest, answer: type[Answer], *, wait_seconds: float = 0.0
    ) -> Answer:
        """Send a request; return its answer."""


class BrokeredSession:
    """The boto3 session whose only source of credentials is the gateway. Safe between threads.

    `elapsed` measures their age: neither a wrong clock nor a suspended host makes expired ones look valid.
    """

    def __init__(self, transfers: Asks, elapsed: Callable[[], float] | None = None) -> None:
        self._transfers = transfers
        self._elapsed = elapsed or SystemClock().elapsed
        self._session: Any = None
        self._lock = threading.Lock()
        self._failed_at = float("-inf")
        self._failure = ""

    def get(self) -> Any:
        """Return the session. Nothing is sent before a client of it is used."""
        with self._lock:
            if self._session is None:
                self._session = self._make()
            return self._session

    def _make(self) -> Any:
        # Slow to import, and most workers have credentials of their own or none.
        import boto3
        import botocore.session
        from botocore.credentials import CredentialProvider, CredentialResolver, RefreshableCredentials

        credentials = RefreshableCredentials(
            # None, and expired: the first use gets the first ones.
            **dict.fromkeys(("access_key", "secret_key", "token"), ""),
            expiry_time=_EPOCH,
            refresh_using=self._fetch,
            method=METHOD,
            time_fetcher=self._now,
            advisory_timeout=RENEW_BEFORE,
            mandatory_timeout=UNUSED_BEFORE,
        )

        class Provider(CredentialProvider):  # type: ignore[misc]  # botocore has no types
            """The only one: no variable, file or metadata service of the host takes its place."""

            METHOD = CANONICAL_NAME = METHOD
            load = staticmethod(lambda: credentials)

        core = botocore.session.Session()
        core.register_component("credential_provider", CredentialResolver([Provider()]))
        return boto3.session.Session(botocore_session=core)

    def _now(self) -> datetime:
        return _EPOCH + timedelta(days=1, seconds=self._elapsed())

    def _fetch(self) -> dict[str, str]:
        if self._elapsed() - self._failed_at < PAUSE_SECONDS:
            raise _unavailable(self._failure)
        began = self._now()
        try:
            given = self._transfers.ask("credentials", AwsCredentialsRequest(), AwsCredentials)
        except GatewayError as error:
            self._failed_at, self._failure = self._elapsed(), str(error)
            log.warning("credentials.not_renewed", detail=str(error))
            raise _unavailable(str(error)) from error
        log.info("credentials.renewed", access_key_id=given.access_key_id, seconds=round(given.expires_in))
        return {
            "access_key": given.access_key_id,
            "secret_key": given.secret_access_key,
            "token": given.session_token,
            "expiry_time": (began + timedelta(seconds=given.expires_in)).isoformat(),
        }


def _unavailable(why: str) -> Exception:
    """Return an error that counts as transient, as an unreachable AWS does."""
    from botocore.exceptions import ConnectionError as Unreachable

    error: Exception = Unreachable(error=f"no AWS credentials from the gateway: {why}")
    return error
