"""The broker: decides which workers get AWS credentials, keeps them for a minute, and records each session."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.auth.authentication import Caller, check_revocation
from airbridge.control_plane.gateway.brokering.session_policy import session_policy
from airbridge.control_plane.gateway.brokering.sts import LIFETIME_SECONDS, Session, Sts
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.core.protocol import RefusalReason
from airbridge.core.regions import Catalogue, Pool, Region
from airbridge.core.wire.brokering import AwsCredentials
from airbridge.executor.ledger import audit

#: A worker that asks again so soon gets the same credentials: STS limits the calls of an account.
REUSED_SECONDS: Final = 60.0
EVENT: Final = "credentials.brokered"


@dataclass(frozen=True, slots=True)
class _Kept:
    session: Session
    at: float


class Broker:
    """Hands a pool's credentials to its workers. Calls block: they go to the database and to STS."""

    def __init__(
        self, catalogue: Catalogue, sts: Sts | None = None, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._catalogue = catalogue
        self._sts = sts or Sts()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        #: By certificate: a worker's earlier identity and a copy of it do not share.
        self._kept: dict[str, _Kept] = {}

    def require(self, name: WorkerName) -> tuple[Region, Pool]:
        """Return a worker's region and pool. Raises `Refused` unless its credentials are brokered."""
        region = self._catalogue.region(name.region)
        pool = region.pool(name.pool) if region else None
        if region is None or pool is None or region.credentials_of(pool) != "brokered":
            raise Refused(
                403,
                RefusalReason.FORBIDDEN,
                f"pool {name.pool}@{name.region} gets no AWS credentials from the gateway: its credentials in the catalogue are not "
                "'brokered'",
                rule=f"credentials of {name.pool}@{name.region}",
            )
        return region, pool

    def credentials(self, caller: Caller) -> AwsCredentials:
        """Return credentials for an authenticated worker. Raises `Refused` or `Unavailable`."""
        region, pool = self.require(caller.name)
        caller.require("work:claim", queue=caller.name.queue)
        caller.require("code:read", region=caller.name.region)
        caller.require("logs:write", worker=caller.name.worker)
        with unit() as work:
            check_revocation(work.session, caller)
        kept = self._recent(caller)
        if kept is None:
            # In no transaction: STS may take seconds.
            session = self._sts.assume(region, pool, caller.name.worker, session_policy(region, pool))
            kept = _Kept(session, self._monotonic())
            with unit() as work:
                _record(work.session, caller, pool, session)
            with self._lock:
                self._kept[caller.certificate.thumbprint] = kept
        return AwsCredentials(
            access_key_id=kept.session.access_key_id,
            secret_access_key=kept.session.secret_access_key,
            session_token=kept.session.session_token,
            expires_in=LIFETIME_SECONDS - (self._monotonic() - kept.at),
            expires_at=kept.session.expires_at,
        )

    def _recent(self, caller: Caller) -> _Kept | None:
        oldest = self._monotonic() - REUSED_SECONDS
        with self._lock:
            self._kept = {key: kept for key, kept in self._kept.items() if kept.at > oldest}
            return self._kept.get(caller.certificate.thumbprint)


def _record(session: Any, caller: Caller, pool: Pool, given: Session) -> None:
    """Record a session before its credentials leave the gateway. Its key id is in CloudTrail, too."""
    audit.record(
        session,
        EVENT,
        "granted",
        caller.name.uri,
        address=caller.address,
        rule=f"credentials of {caller.name.pool}@{caller.name.region}",
        region=caller.name.region,
        worker_id=caller.name.worker,
        role=pool.role_arn,
        access_key_id=given.access_key_id,
        expires_at=given.expires_at.isoformat(),
    )
