"""Signatures of snapshots: what an earlier publishing key signed is signed anew, so that the earlier key can be retired."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import structlog

from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.identity import secrets
from airbridge.core.code.signature import PUBLISH_KEY, SnapshotVerifier
from airbridge.executor.bundles import registry, versions
from airbridge.executor.ledger import audit

log = structlog.get_logger()


def renew(directory: Path) -> int:
    """Sign the ledger's snapshots with the publishing key of a secrets directory; return how many it had to sign.

    Only what the directory's keys verify is signed; nothing is while workers are not given the key that signs. Several gateways may
    do so at the same time. Raises `ConfigurationError`, `SecretsError`, or SQLAlchemy's errors.
    """
    if not (directory / PUBLISH_KEY).exists():
        return 0
    signer = registry.read_signer(directory / PUBLISH_KEY)
    keys = secrets.load_publish_keys(directory)
    if signer.verify_key not in keys:
        return 0
    key = signer.verify_key.kid
    with unit() as work:
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
