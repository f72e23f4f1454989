"""A place to run tests against one fault at a time: a copy of the tree, a Postgres server and a fork server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Any

from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from tests.mutation.fork_server import Order, Run
from tests.mutation.tree import Tree
from tests.support.airflow_home import POSTGRES_TEMPLATE_VARIABLE, SQLITE_TEMPLATE_VARIABLE
from tests.support.postgres import SERVER_VARIABLE, Postgres, serve

TEMPLATE = "template_migrated"
UNSAFE_BUT_FAST = ("fsync", "synchronous_commit", "full_page_writes")
"""Settings that protect against a crash of the machine, which no test here is about."""
WITHOUT_DATABASE = "tests/unit/"
MEMORY = Path("/dev/shm")


@dataclass(frozen=True, slots=True)
class Bench:
    """A copy of the tree in which tests can be run."""

    tree: Tree
    directory: Path
    _postgres: Postgres
    _server: subprocess.Popen[str]
    _numbers: Iterator[int] = field(default_factory=count)

    def run(self, tests: list[str], timeout_seconds: float, test_timeout_seconds: float, **more: Any) -> Run:
        """Run tests in a fresh process. Raises `RuntimeError` if the fork server has ended."""
        log = self.directory / "logs" / f"{next(self._numbers)}.log"
        order = Order(tests, timeout_seconds, test_timeout_seconds, str(log), **more)
        run = self._ask(asdict(order))
        if run.exit_code < 0:
            self._drop_leftovers()
        return run

    def prepare(self, tests: list[str]) -> None:
        """Make the migrated databases that all runs copy, if they are not there and these tests need them.

        Call it while there is no fault in the tree.
        """
        log = self.directory / "logs" / "migrate.log"
        if log.exists() or all(test.startswith(WITHOUT_DATABASE) for test in tests):
            return
        run = self._ask({**asdict(Order([], 180, 180, str(log))), "migrate": True})
        if run.exit_code != 0:
            raise RuntimeError(f"the databases could not be migrated:\n{log.read_text()[-4000:]}")

    def log(self, number: int = -1) -> str:
        """Return the end of the last run's log."""
        logs = sorted((self.directory / "logs").glob("[0-9]*.log"), key=lambda path: int(path.stem))
        return logs[number].read_text(errors="replace")[-6000:] if logs else ""

    def _ask(self, order: dict[str, Any]) -> Run:
        requests, answers = _pipes(self._server)
        requests.write(json.dumps(order) + "\n")
        requests.flush()
        line = answers.readline()
        if not line:
            raise RuntimeError("the fork server has ended; see its messages above")
        return Run(**json.loads(line))

    def _drop_leftovers(self) -> None:
        """Drop the databases of a run that was killed."""
        engine = create_engine(self._postgres.url(), poolclass=NullPool, future=True)
        with engine.connect() as connection:
            names = connection.scalars(text("SELECT datname FROM pg_database WHERE datname LIKE 'test\\_%'"))
            leftovers = [*names]
        for name in leftovers:
            self._postgres.drop(name)


def _pipes(server: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert server.stdin is not None
    assert server.stdout is not None
    return server.stdin, server.stdout


def directory_for_benches() -> tempfile.TemporaryDirectory[str]:
    """Return a new temporary directory, in memory where the system has that."""
    return tempfile.TemporaryDirectory(prefix="abm-", dir=MEMORY if MEMORY.is_dir() else None)


@contextmanager
def open_bench(repository: Path, directory: Path) -> Iterator[Bench]:
    """Set up a bench in an empty directory, and end its processes with the block."""
    tree = Tree.copy(repository, directory / "tree")
    (directory / "logs").mkdir()
    with serve(directory / "postgres") as postgres:
        for setting in UNSAFE_BUT_FAST:
            postgres.execute(f"ALTER SYSTEM SET {setting} = off")
        postgres.execute("SELECT pg_reload_conf()")
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.mutation.fork_server"],
            cwd=tree.root,
            env=_environment(tree, postgres, directory),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Bench(tree, directory, postgres, server)
        finally:
            requests, _ = _pipes(server)
            requests.close()
            _end(server)


def _end(server: subprocess.Popen[str]) -> None:
    """Wait for the end of a fork server; kill it if it still imports, as it does where there was nothing to try."""
    try:
        server.wait(timeout=30)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _environment(tree: Tree, postgres: Postgres, directory: Path) -> dict[str, str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {
        **inherited,
        "PYTHONPATH": tree.python_path,
        SERVER_VARIABLE: str(postgres.socket_dir),
        POSTGRES_TEMPLATE_VARIABLE: TEMPLATE,
        SQLITE_TEMPLATE_VARIABLE: str(directory / "migrated.db"),
    }
