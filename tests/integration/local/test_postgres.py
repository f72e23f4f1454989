"""Postgres in local mode: template, copy, password, and its end when its parent dies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import psutil
import pytest
from sqlalchemy import create_engine, text

from airbridge.control_plane.local import ports
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.platform import Platform, Watcher
from airbridge.control_plane.local.process import probes
from airbridge.control_plane.local.process.child import spawn
from airbridge.control_plane.local.process.component import Component
from airbridge.control_plane.local.process.privileges import child_setup, postgres_user
from airbridge.control_plane.local.process.supervisor import Supervisor
from airbridge.control_plane.local.services import postgres
from airbridge.control_plane.local.state import Phase


def make_table(server: postgres.Postgres) -> None:
    postgres.query(server, "CREATE TABLE made (at text)")


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return postgres.build_template(tmp_path_factory.mktemp("cache"), "key", make_table)


def component(server: postgres.Postgres, log: Path) -> Component:
    return Component(
        name="postgres",
        argv=server.argv(),
        env={"PATH": os.environ["PATH"]},
        log=log,
        ready=probes.database_answers(server, log.with_name("initial")),
        user=postgres_user(),
        # Postgres' "fast" shutdown; SIGQUIT, for a dead parent, is the immediate one.
        stop_signal=signal.SIGINT,
        death_signal=signal.SIGQUIT,
    )


def started(server: postgres.Postgres, log: Path) -> Supervisor:
    supervisor = Supervisor([component(server, log)], spawn, time)
    deadline = time.monotonic() + 30
    while not supervisor.ready and time.monotonic() < deadline:
        supervisor.tick()
        time.sleep(0.05)
    return supervisor


def test_template_copy_has_own_password(template: tuple[Path, str], tmp_path: Path) -> None:
    """psycopg2 and asyncpg get in with the copy's password and find the migrated table; the template's is refused."""
    data = tmp_path / "data"
    initial = tmp_path / "initial"
    postgres.restore(template[0], data, template[1], initial)
    assert postgres.is_current(data, "key")
    server = postgres.Postgres(data, ports.choose(["pg"], {})["pg"], "new-password")
    supervisor = started(server, tmp_path / "log")
    assert not initial.exists()
    try:
        engine = create_engine(server.url())
        with engine.connect() as connection:
            assert connection.execute(text("SELECT count(*) FROM made")).scalar() == 0
        engine.dispose()

        async def over_asyncpg() -> int:
            connection = await asyncpg.connect(server.url().replace("+psycopg2", ""))
            try:
                return int(await connection.fetchval("SELECT count(*) FROM made"))
            finally:
                await connection.close()

        assert asyncio.run(over_asyncpg()) == 0
        assert not postgres.Postgres(data, server.port, template[1]).accepts_queries()
    finally:
        supervisor.stop()
    assert [state.phase for state in supervisor.states()] == [Phase.STOPPED]
    assert not ports.is_open(server.port)


@pytest.fixture
def restored(template: tuple[Path, str], tmp_path: Path) -> postgres.Postgres:
    data = tmp_path / "state/postgres"
    data.parent.mkdir(mode=0o711)
    postgres.restore(template[0], data, template[1], tmp_path / "initial")
    return postgres.Postgres(data, ports.choose(["pg"], {})["pg"], "new-password")


# Each would keep a client from this server.
FOR_ANOTHER_SERVER = {
    "PGSSLMODE": "require",
    "PGHOSTADDR": "127.0.0.9",
    "PGSERVICE": "no-such-service",
    "PGOPTIONS": "-c no_such_setting=1",
    "PGCHANNELBINDING": "require",
    "PGREQUIREAUTH": "none",
}


def test_variables_for_another_server_are_ignored(
    restored: postgres.Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell that is configured for another PostgreSQL server reaches this one, and keeps its variables."""
    supervisor = started(restored, tmp_path / "log")
    try:
        for name, value in FOR_ANOTHER_SERVER.items():
            monkeypatch.setenv(name, value)
            assert restored.accepts_queries(), name
            assert value == os.environ[name]
            monkeypatch.delenv(name)
    finally:
        supervisor.stop()


def prepare_database(folder: Path) -> None:
    """Prepare the existing database of a state directory, as `airbridge up` does."""
    watcher = Watcher(note=lambda _text: None, changed=lambda _state: None, ready=lambda _state: None)
    options = Options(directory=folder)
    platform = Platform(options, environ={}, cache=folder, spawn=spawn, clock=time, watcher=watcher)
    platform._prepare_database()


def test_lock_of_a_killed_server_is_removed(restored: postgres.Postgres, tmp_path: Path) -> None:
    """After a power cut another process may have the server's process id: its lock does not block the next start."""
    user = postgres_user()
    other = subprocess.Popen(
        ["sleep", "60"],
        cwd="/",
        preexec_fn=child_setup(signal.SIGKILL, user),  # noqa: PLW1509 - it makes system calls only
    )
    lock = restored.data / "postmaster.pid"
    lock.write_text(
        f"{other.pid}\n{restored.data}\n1700000000\n{restored.port}\n\n127.0.0.1\n         0         0\n"
    )
    if user is not None:
        os.chown(lock, user.uid, user.gid)
    try:
        prepare_database(restored.data.parent)
        supervisor = started(restored, tmp_path / "log")
        try:
            assert supervisor.ready
        finally:
            supervisor.stop()
    finally:
        other.kill()
        other.wait()


def test_lock_of_a_running_server_stays(restored: postgres.Postgres, tmp_path: Path) -> None:
    """A server that still runs on the data directory keeps its lock."""
    supervisor = started(restored, tmp_path / "log")
    try:
        before = (restored.data / "postmaster.pid").read_text()
        prepare_database(restored.data.parent)
        assert before == (restored.data / "postmaster.pid").read_text()
    finally:
        supervisor.stop()


def test_the_template_is_made_once(template: tuple[Path, str]) -> None:
    """A second call returns the same template without a migration."""

    def never(_server: postgres.Postgres) -> None:
        raise AssertionError("migrated again")

    assert postgres.build_template(template[0].parent, "key", never) == template


def test_another_schema_is_not_current(template: tuple[Path, str]) -> None:
    """A data directory records the schema that it was migrated to."""
    assert postgres.is_current(template[0], "key")
    assert not postgres.is_current(template[0], "another")


def test_schema_key_follows_the_migrations(tmp_path: Path) -> None:
    """A new migration, or another Airflow, is another schema."""
    before = postgres.schema_key(tmp_path, {"airflow": "3.0.4"})
    assert postgres.schema_key(tmp_path, {"airflow": "3.0.4"}) == before
    assert postgres.schema_key(tmp_path, {"airflow": "3.0.5"}) != before
    (tmp_path / "0001.py").write_text("")
    assert postgres.schema_key(tmp_path, {"airflow": "3.0.4"}) != before


_PARENT = """
import sys, time
from pathlib import Path
from airbridge.control_plane.local.process.child import spawn
from airbridge.control_plane.local.process.component import Component
child = spawn(Component(name="c", argv=(sys.executable, "-c", "import time; time.sleep(60)"), env={}, log=Path(sys.argv[1])))
print(child.pid, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel ends children of a dead parent on Linux only")
def test_children_die_with_a_killed_supervisor(tmp_path: Path) -> None:
    """kill -9 of the parent ends the child; nothing is left behind."""
    parent = subprocess.Popen(
        [sys.executable, "-c", _PARENT, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    child = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    gone, _ = psutil.wait_procs([child], timeout=5)
    assert gone == [child]
