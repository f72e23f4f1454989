"""Signatures of snapshots: what an earlier publishing key signed is signed anew, so that the earlier key can be retired."""

from __future__ import annotations

import asyncio
import os
import socket
from datetime import timedelta
from typing import Any, Final

import structlog
from sqlalchemy import exc as sql
from sqlalchemy import func, select

from airbridge.control_plane.exceptions import SecretsError
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.identity import secrets
from airbridge.control_plane.identity.keyring import Keyring
from airbridge.core.code.signature import PUBLISH_KEY, SnapshotVerifier
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import WorkerState
from airbridge.executor.bundles import registry, versions
from airbridge.executor.ledger import audit, clock
from airbridge.executor.ledger.models import WorkerRow

log = structlog.get_logger()


EVERY_SECONDS: Final = 5.0


class SnapshotSignatures:
    """Signs snapshots with the publishing key of a keyring's directory. Several gateways may do so at the same time.

    Only what the directory's keys verify is signed anew, and nothing while a worker that was heard of within `alive_seconds` does not
    have the trust bundle that names the key.
    """

    def __init__(self, keyring: Keyring, alive_seconds: float) -> None:
        self._keyring = keyring
        self._alive = timedelta(seconds=alive_seconds)

    async def run(self) -> None:
        """Sign every `EVERY_SECONDS`, until cancelled."""
        while True:
            await asyncio.sleep(EVERY_SECONDS)
            try:
                await asyncio.to_thread(self.turn)
            except (SecretsError, ConfigurationError, OSError, sql.SQLAlchemyError) as error:
                log.warning("snapshots.not_signed_anew", why=str(error))

    def turn(self) -> int:
        """Sign what is due, and return how many snapshots. Raises `ConfigurationError`, `SecretsError`, or SQLAlchemy's errors."""
        directory = self._keyring.directory
        if not (directory / PUBLISH_KEY).exists():
            return 0
        signer = registry.read_signer(directory / PUBLISH_KEY)
        keys = secrets.load_publish_keys(directory)
        if signer.verify_key not in keys:
            return 0
        key = signer.verify_key.kid
        with unit() as work:
            if not versions.signed_otherwise(work.session, key) or self._is_awaited(work.session):
                return 0
            renewed = versions.renew_signatures(work.session, signer, SnapshotVerifier(keys))
            if renewed:
                audit.record(
                    work.session,
                    "snapshots.signed_anew",
                    "changed",
                    f"gateway:{socket.gethostname()}:{os.getpid()}",
                    rule="secrets_dir",
                    key=key,
                    snapshots=renewed,
                )
        if renewed:
            log.info("snapshots.signed_anew", key=key, snapshots=renewed)
        return renewed

    def _is_awaited(self, session: Any) -> bool:
        """Return whether a live worker has yet to receive the trust bundle, which its next heartbeat brings."""
        row = WorkerRow
        lacking = select(row.id).where(
            row.last_heartbeat_at > clock.now(session) - self._alive,
            row.wanted != "revoked",
            row.state != WorkerState.STOPPING,
            func.coalesce(row.trust_version, "") != self._keyring.keys.trust.version,
        )
        return session.execute(lacking.limit(1)).first() is not None
