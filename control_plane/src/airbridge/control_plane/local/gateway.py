"""Gateway process of local mode: registers the platform's own tokens, then serves.

The tokens are written to files before any process starts (`write_tokens`); their hashes can only be stored once there is a
database. The gateway is the first to need them: registering them here saves another process that would load Airflow.
"""

from __future__ import annotations

import argparse
import os
import secrets
from collections.abc import Iterable
from datetime import timedelta
from pathlib import Path
from typing import Any

from airbridge.control_plane.local.layout import StateDir

OPERATOR = "local"
OPERATOR_SCOPES = [
    "workers:*",
    "platform:read",
    "work:read",
    "tokens:*",
    "dags:*",
    "environments:*",
    "metrics:read",
    "audit:read",
    "revocations:*",
    "policy:read",
]
LIFETIME = timedelta(days=30)


def write_tokens(directory: StateDir, workers: Iterable[str]) -> None:
    """Write a new token for the operator and for each worker."""
    _write(directory.operator_token_file, "abo_" + secrets.token_urlsafe(32))
    for worker in workers:
        _write(directory.join_token_file(worker), "abj_" + secrets.token_urlsafe(32))


def register_tokens(session: Any, directory: StateDir, workers: dict[str, tuple[str, str]]) -> None:
    """Register the tokens of the operator and of each worker (name to region and pool) in the ledger."""
    _register(session, directory.operator_token_file, kind="access", scopes=OPERATOR_SCOPES)
    for name, (region, pool) in workers.items():
        scopes = {"region": region, "pool": pool}
        _register(session, directory.join_token_file(name), kind="join", scopes=scopes)


def _register(session: Any, path: Path, *, kind: Any, scopes: Any) -> None:
    from sqlalchemy import select

    from airbridge.executor.ledger.identity import tokens
    from airbridge.executor.ledger.identity.models import TokenRow

    secret = path.read_text()
    known = select(TokenRow.id).where(TokenRow.hash == tokens.hash_of(secret))
    if session.execute(known).first() is not None:  # registered already: the gateway was restarted
        return
    # Unlimited uses: a worker that the supervisor restarts joins again.
    tokens.create(
        session,
        kind=kind,
        secret=secret,
        owner=OPERATOR,
        scopes=scopes,
        ttl_seconds=LIFETIME.total_seconds(),
    )


def _write(path: Path, secret: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secret)


def _worker(word: str) -> tuple[str, tuple[str, str]]:
    name, _, place = word.partition("=")
    region, _, pool = place.partition("/")
    return name, (region, pool)


def main() -> None:
    """Register the tokens of the state directory, then serve until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("workers", nargs="*", help="name=region/pool")
    arguments = parser.parse_args()

    from airbridge.control_plane.dags import publisher
    from airbridge.control_plane.environments import receiver
    from airbridge.control_plane.gateway import server
    from airbridge.control_plane.gateway.database import unit
    from airbridge.executor import settings

    with unit() as work:
        register_tokens(work.session, StateDir(arguments.directory), dict(map(_worker, arguments.workers)))
    read = settings.load()
    server.run(read, publisher(read).steps, receiver(read))


if __name__ == "__main__":
    main()
