"""An Airflow of the tests' own: a home in a temporary directory, and metadata databases with the ledger in them."""

from __future__ import annotations

import atexit
import gc
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.postgres import Postgres

LEDGER_MANAGER = "airbridge.executor.ledger.manager.LedgerDBManager"
URL_VARIABLE = "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"
POSTGRES_TEMPLATE_VARIABLE = "AIRBRIDGE_TEST_POSTGRES_TEMPLATE"
"""Name of a migrated database on the server that `AIRBRIDGE_TEST_POSTGRES` names."""
SQLITE_TEMPLATE_VARIABLE = "AIRBRIDGE_TEST_SQLITE_TEMPLATE"
"""Path of a migrated SQLite file."""


def environment(home: Path, url: str | None = None) -> dict[str, str]:
    """Variables that give a process an Airflow home, and the metadata database at `url`."""
    return {
        "AIRFLOW_HOME": str(home),
        URL_VARIABLE: url or f"sqlite:///{home}/airflow.db",
        "AIRFLOW__DATABASE__EXTERNAL_DB_MANAGERS": LEDGER_MANAGER,
        "AIRFLOW__DATABASE__LOAD_DEFAULT_CONNECTIONS": "False",
        # Among the recommended settings: a thread of the gateway that gets no connection waits 30 s for one.
        "AIRFLOW__DATABASE__SQL_ALCHEMY_POOL_SIZE": "20",
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__CORE__DAGS_FOLDER": str(home / "dags"),
        "AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_ALL_ADMINS": "True",
        # Among the recommended settings: without it Airflow 3.0.4 cannot sign a token.
        "AIRFLOW__API_AUTH__JWT_ISSUER": "airbridge",
        "AIRFLOW__API_AUTH__JWT_SECRET": secrets.token_hex(32),
        "AIRFLOW__LOGGING__BASE_LOG_FOLDER": str(home / "logs"),
        "AIRFLOW__LOGGING__LOGGING_LEVEL": "WARNING",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
    }


def isolate() -> Path:
    """Give this process a home of its own. Call it before anything imports Airflow, which reads it then."""
    home = Path(tempfile.mkdtemp(prefix="airbridge-airflow-"))
    os.environ.update(environment(home))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


@dataclass(frozen=True)
class Metadata:
    """A metadata database, with Airflow's tables and the ledger's, that this process's Airflow is pointed at."""

    url: str

    @property
    def engine(self) -> Any:
        """Airflow's engine."""
        from airflow import settings

        return settings.engine

    def session(self) -> Any:
        """A new session of its own: a context manager, closed (not committed) at the end of the block."""
        from airflow import settings

        assert settings.NonScopedSession is not None
        return settings.NonScopedSession()


@contextmanager
def pointed_at(url: str) -> Iterator[Metadata]:
    """Point this process's Airflow at the database at `url`."""
    from airflow import settings

    before = os.environ.get(URL_VARIABLE)
    os.environ[URL_VARIABLE] = url
    settings.configure_vars()
    settings.reconfigure_orm()
    try:
        yield Metadata(url)
    finally:
        settings.dispose_orm(do_log=False)
        if before is not None:
            os.environ[URL_VARIABLE] = before
            settings.configure_vars()
            settings.configure_orm()


def migrate(url: str) -> None:
    """Create Airflow's tables and the ledger's in an empty database."""
    from airflow.utils.db import initdb

    with pointed_at(url):
        initdb()
        gc.collect()  # it leaves a connection checked out, for the collector to return


@pytest.fixture(scope="session")
def postgres_template(postgres: Postgres) -> str:
    """The name of a migrated Postgres database, to copy."""
    made_already = os.environ.get(POSTGRES_TEMPLATE_VARIABLE)
    if made_already:
        return made_already
    name = postgres.create()
    migrate(postgres.url(name))
    return name


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file, to copy."""
    made_already = os.environ.get(SQLITE_TEMPLATE_VARIABLE)
    if made_already:
        return Path(made_already)
    path = tmp_path_factory.mktemp("metadata") / "airflow.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def postgres_metadata(postgres: Postgres, postgres_template: str) -> Iterator[Metadata]:
    """A fresh metadata database on Postgres."""
    name = postgres.create(postgres_template)
    with pointed_at(postgres.url(name)) as metadata:
        yield metadata
    postgres.drop(name)


@pytest.fixture
def sqlite_metadata(sqlite_template: Path, tmp_path: Path) -> Iterator[Metadata]:
    """A fresh metadata database on SQLite."""
    path = tmp_path / "airflow.db"
    shutil.copy(sqlite_template, path)
    with pointed_at(f"sqlite:///{path}") as metadata:
        yield metadata


@pytest.fixture(params=["sqlite", "postgres"])
def metadata(request: pytest.FixtureRequest) -> Metadata:
    """A fresh metadata database, once on SQLite and once on Postgres."""
    found: Metadata = request.getfixturevalue(f"{request.param}_metadata")
    return found
