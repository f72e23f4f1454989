"""Calls of STS AssumeRole, with the gateway's own credentials."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import structlog

from airbridge.control_plane.exceptions import Unavailable
from airbridge.core.regions import Region

log = structlog.get_logger()

_TIMEOUT_SECONDS: Final = 5.0
# Time after which a worker repeats a request that a missing permission refused.
_MISCONFIGURED_SECONDS: Final = 30.0
_SHORTEST_SESSION_NAME: Final = 2


@dataclass(frozen=True, slots=True)
class Grant:
    """Role to assume, for how long, and the session policy; without one the session has what the role has."""

    role_arn: str
    seconds: int
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class Session:
    """Credentials of one session of a role."""

    access_key_id: str
    secret_access_key: str
    session_token: str
    expires_at: datetime

    def __repr__(self) -> str:
        """Return the id alone: the rest are secrets."""
        return f"Session({self.access_key_id!r}, expires_at={self.expires_at})"


ClientMaker = Callable[[Region], Any]


def sts_client(region: Region) -> Any:
    """Return a client of the STS beside a region's queues. Slow to make: keep it."""
    import boto3
    from botocore.config import Config

    config = Config(
        connect_timeout=_TIMEOUT_SECONDS,
        read_timeout=_TIMEOUT_SECONDS,
        retries={"total_max_attempts": 2, "mode": "standard"},
    )
    session = boto3.session.Session(region_name=region.aws)
    return session.client("sts", endpoint_url=region.endpoint_url, config=config)


class Sts:
    """Assumes the roles of pools. Safe between threads; calls block."""

    def __init__(self, make: ClientMaker = sts_client) -> None:
        self._make = make
        self._clients: dict[str, Any] = {}
        self._lock = threading.Lock()

    def assume(self, region: Region, grant: Grant, worker: str) -> Session:
        """Return a session of a role for a worker. Raises `Unavailable`."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            given = self._client(region).assume_role(
                RoleArn=grant.role_arn,
                # CloudTrail shows it: whose credentials they were.
                RoleSessionName=worker.ljust(_SHORTEST_SESSION_NAME, "="),
                DurationSeconds=grant.seconds,
                **({} if grant.policy is None else {"Policy": grant.policy}),
            )["Credentials"]
        except ClientError as error:
            log.error(  # noqa: TRY400 - a setting is wrong, and STS names it
                "credentials.refused_by_sts",
                role=grant.role_arn,
                detail=str(error)[:500],
                remedy="allow the gateway's role sts:AssumeRole on it, and name the gateway's role in its trust policy",
            )
            raise Unavailable(
                f"STS does not give the gateway credentials of {grant.role_arn}", _MISCONFIGURED_SECONDS
            ) from error
        except BotoCoreError as error:
            log.warning("credentials.sts_unreachable", region=region.aws, detail=str(error)[:500])
            raise Unavailable("STS cannot be reached", retry_after=2.0) from error
        return Session(
            given["AccessKeyId"], given["SecretAccessKey"], given["SessionToken"], given["Expiration"]
        )

    def _client(self, region: Region) -> Any:
        with self._lock:
            if region.name not in self._clients:
                self._clients[region.name] = self._make(region)
            return self._clients[region.name]
