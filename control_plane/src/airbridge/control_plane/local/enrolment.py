"""Mints what lets people and workers in: an operator's access token for the command line, a join token for each worker.

A process of its own, because the ledger's models need Airflow, and Airflow its configuration.
"""

from __future__ import annotations

import argparse
import os
from datetime import timedelta
from pathlib import Path
from typing import Any

from airbridge.control_plane.local.keys import Keys
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.postgres import Postgres

OPERATOR = "local"
OPERATOR_SCOPES = ("workers:*", "tokens:*", "dags:*")
LIFETIME = timedelta(days=30)


def mint(session: Any, directory: StateDir, workers: dict[str, tuple[str, str]]) -> None:
    """Write a new token for the operator and for each worker (name to region and pool)."""
    from airbridge.control_plane.identity import tokens

    operator = tokens.create_access(
        session, scopes=OPERATOR_SCOPES, owner=OPERATOR, actor=OPERATOR, ttl=LIFETIME
    )
    _write(directory.operator_token_file, operator.text)
    for name, (region, pool) in workers.items():
        # No use count: a worker that the supervisor starts again joins again.
        join = tokens.create_join(session, region=region, pool=pool, owner=OPERATOR, ttl=LIFETIME, uses=None)
        _write(directory.worker(name) / "join.token", join.text)


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
    """Mint for the state directory and the workers named on the command line."""
    from sqlalchemy import create_engine
    from sqlalchemy.orm import Session

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("workers", nargs="*", help="name=region/pool")
    arguments = parser.parse_args()
    directory = StateDir(arguments.directory)
    keys = Keys.model_validate_json(directory.keys_file.read_bytes())
    server = Postgres(directory.postgres, keys.ports["postgres"], keys.database_password)
    engine = create_engine(server.url())
    with Session(engine) as session, session.begin():
        mint(session, directory, dict(map(_worker, arguments.workers)))
    engine.dispose()


if __name__ == "__main__":
    main()
