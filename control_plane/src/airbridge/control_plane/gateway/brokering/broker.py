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
from airbridge.control_plane.gateway.brokering.sts import Grant, Session, Sts
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.identity.spiffe import WorkerName
from airbridge.core.catalogue import Catalogue
from airbridge.core.protocol import RefusalReason
from airbridge.core.regions import Region
from airbridge.core.wire.brokering import AwsCredentials
from airbridge.executor.ledger import audit

#: A worker that asks again so soon gets the same credentials: STS limits the calls of an account.
REUSED_SECONDS: Final = 60.0
EVENT: Final = "credentials.brokered"
#: The shortest that STS grants.
WORKERS_SECONDS: Final = 900
#: The longest that STS grants a role that assumes another: tasks go on through a cut.
TASKS_SECONDS: Final = 3600


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
        #: By certificate, and whether they are for tasks: a worker's earlier identity and a copy of it do not share.
        self._kept: dict[tuple[str, bool], _Kept] = {}

    def require(self, name: WorkerName, *, for_tasks: bool) -> tuple[Region, Grant]:
        """Return a worker's region, and what there is for it or for its tasks. Raises `Refused` if that is nothing."""
        region = self._catalogue.region(name.region)
        pool = region.pool(name.pool) if region else None
        if for_tasks:
            if region is None or pool is None or pool.task_role_arn is None:
                raise Refused(
                    403,
                    RefusalReason.FORBIDDEN,
                    f"tasks of pool {name.pool}@{name.region} get no AWS credentials from the gateway: the pool has no task_role_arn in "
                    "the catalogue",
                    rule=f"task_role_arn of {name.pool}@{name.region}",
                )
            return region, Grant(pool.task_role_arn, TASKS_SECONDS)
        if region is None or pool is None or region.credentials_of(pool) != "brokered":
            raise Refused(
                403,
                RefusalReason.FORBIDDEN,
                f"pool {name.pool}@{name.region} gets no AWS credentials from the gateway: its credentials in the catalogue are not "
                "'brokered'",
                rule=f"credentials of {name.pool}@{name.region}",
            )
        assert pool.role_arn is not None  # noqa: S101 - the catalogue requires it of such a pool
        return region, Grant(pool.role_arn, WORKERS_SECONDS, session_policy(region, pool))

    def credentials(self, caller: Caller, *, for_tasks: bool = False) -> AwsCredentials:
        """Return credentials for an authenticated worker, or for its tasks. Raises `Refused` or `Unavailable`."""
        region, grant = self.require(caller.name, for_tasks=for_tasks)
        caller.require("work:claim", queue=caller.name.queue)
        caller.require("code:read", region=caller.name.region)
        caller.require("logs:write", worker=caller.name.worker)
        with unit() as work:
            check_revocation(work.session, caller)
        key = (caller.certificate.thumbprint, for_tasks)
        kept = self._recent(key)
        if kept is None:
            # In no transaction: STS may take seconds.
            session = self._sts.assume(region, grant, caller.name.worker)
            kept = _Kept(session, self._monotonic())
            with unit() as work:
                _record(work.session, caller, grant, session, of="tasks" if for_tasks else "worker")
            with self._lock:
                self._kept[key] = kept
        return AwsCredentials(
            access_key_id=kept.session.access_key_id,
            secret_access_key=kept.session.secret_access_key,
            session_token=kept.session.session_token,
            expires_in=grant.seconds - (self._monotonic() - kept.at),
            expires_at=kept.session.expires_at,
        )

    def _recent(self, key: tuple[str, bool]) -> _Kept | None:
        oldest = self._monotonic() - REUSED_SECONDS
        with self._lock:
            self._kept = {each: kept for each, kept in self._kept.items() if kept.at > oldest}
            return self._kept.get(key)


def _record(session: Any, caller: Caller, grant: Grant, given: Session, *, of: str) -> None:
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
        role=grant.role_arn,
        of=of,
        access_key_id=given.access_key_id,
        expires_at=given.expires_at.isoformat(),
    )
