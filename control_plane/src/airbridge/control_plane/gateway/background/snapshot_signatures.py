"""Signatures of snapshots: what an earlier publishing key signed is signed anew, so that the earlier key can be retired."""

from __future__ import annotations

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
from sqlalchemy import func, select

from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.identity import secrets
from airbridge.core.code.signature import PUBLISH_KEY, SnapshotVerifier
from airbridge.core.protocol import WorkerState
from airbridge.executor.bundles import registry, versions
from airbridge.executor.ledger import audit, clock
from airbridge.executor.ledger.backlogs import WORKER_ALIVE_SECONDS
from airbridge.executor.ledger.models import WorkerRow

log = structlog.get_logger()


def renew(directory: Path, trust_version: str) -> int:
    """Sign the ledger's snapshots with the publishing key of a secrets directory; return how many were signed now.

    Only what the directory's keys verify is signed, and nothing while a live worker does not have `trust_version`, the trust bundle
    that names the key. Several gateways may do so at the same time. Raises `ConfigurationError`, `SecretsError`, or SQLAlchemy's errors.
    """
    if not (directory / PUBLISH_KEY).exists():
        return 0
    signer = registry.read_signer(directory / PUBLISH_KEY)
    keys = secrets.load_publish_keys(directory)
    if signer.verify_key not in keys:
        return 0
    key = signer.verify_key.kid
    with unit() as work:
        if not versions.signed_otherwise(work.session, key) or _is_awaited(work.session, trust_version):
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


def _is_awaited(session: Any, trust_version: str) -> bool:
    """Return whether a live worker has yet to receive this trust bundle, which its next heartbeat brings."""
    row = WorkerRow
    alive = clock.now(session) - timedelta(seconds=WORKER_ALIVE_SECONDS)
    lacking = select(row.id).where(
        row.last_heartbeat_at > alive,
        row.wanted != "revoked",
        row.state != WorkerState.STOPPING,
        func.coalesce(row.trust_version, "") != trust_version,
    )
    return session.execute(lacking.limit(1)).first() is not None
