"""The ledger's tables come, go and stay in step with the models."""

from __future__ import annotations

from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import inspect
from tests.support.airflow_home import Metadata

from airbridge.executor.ledger.identity import models as _identity  # noqa: F401 - tables of the same metadata
from airbridge.executor.ledger.manager import LedgerDBManager
from airbridge.executor.ledger.models import metadata as ledger_metadata


def tables(metadata: Metadata) -> set[str]:
    return {name for name in inspect(metadata.engine).get_table_names() if name.startswith("airbridge_")}


LEDGER_TABLES = {*ledger_metadata.tables, "airbridge_alembic_version"}


# The audit trail's indexes by token, which `tests/integration/executor/test_audit.py` shows in use.
@pytest.mark.filterwarnings("ignore:Skipped unsupported reflection of expression-based index")
def test_migrated_database_equals_the_models(metadata: Metadata) -> None:
    """Migrations give exactly the tables, columns and indexes that the models describe."""
    with metadata.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "include_object": lambda _o, name, kind, *_: kind != "table" or name in ledger_metadata.tables
            },
        )
        assert compare_metadata(context, ledger_metadata) == []
    assert tables(metadata) == LEDGER_TABLES


def test_downgrade_and_upgrade(metadata: Metadata) -> None:
    """A downgrade to nothing drops the tables, the next upgrade brings them back."""
    with metadata.session() as session:
        manager = LedgerDBManager(session)
        assert manager.check_migration()
        session.commit()

        manager.downgrade("base")
        # alembic keeps its own table, empty
        assert {"airbridge_alembic_version"} == tables(metadata)
        assert not manager.check_migration()
        session.commit()

        manager.upgradedb()
        assert manager.check_migration()
    assert tables(metadata) == LEDGER_TABLES


def test_airflow_db_commands_include_the_ledger(metadata: Metadata) -> None:
    """Airflow's own check, upgrade and reset act on the ledger as on its own tables."""
    from airflow.utils import db

    db.check_migrations(1)
    db.upgradedb()
    db.resetdb(skip_init=True)
    assert set() == tables(metadata)
    db.initdb()
    assert tables(metadata) == LEDGER_TABLES
    db.check_migrations(1)


def test_check_fails_on_old_ledger(metadata: Metadata) -> None:
    """A database whose ledger is not migrated is refused by Airflow's check."""
    from airflow.utils import db

    with metadata.session() as session:
        LedgerDBManager(session).downgrade("base")
    with pytest.raises(TimeoutError, match="unapplied migrations"):
        db.check_migrations(1)


def test_migrations_can_be_written_as_sql(
    sqlite_metadata: Metadata, capsys: pytest.CaptureFixture[str]
) -> None:
    """`show_sql_only` prints statements and changes nothing."""
    with sqlite_metadata.session() as session:
        LedgerDBManager(session).upgradedb(show_sql_only=True)
    assert "CREATE TABLE airbridge_work_item" in capsys.readouterr().out


def test_migration_directory_ships_with_the_package() -> None:
    """The files that the manager names are on disk."""
    assert Path(LedgerDBManager.alembic_file).is_file()
    assert (Path(LedgerDBManager.migration_dir) / "env.py").is_file()
