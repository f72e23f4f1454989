"""Hands the ledger's migrations to ``airflow db``: name it in ``[database] external_db_managers``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from airbridge.executor._airflow import airflow_option
from airbridge.executor.ledger._airflow import BaseDBManager, airflow_engine
from airbridge.executor.ledger.access import roles
from airbridge.executor.ledger.identity import models as _identity  # noqa: F401 - tables of the same metadata
from airbridge.executor.ledger.models import metadata
from airbridge.executor.service_secrets import Choices

_HERE = Path(__file__).parent


class LedgerDBManager(BaseDBManager):  # type: ignore[misc]  # Airflow publishes no types
    """Creates, upgrades, downgrades and drops the ledger's tables."""

    metadata = metadata
    version_table_name = "airbridge_alembic_version"
    migration_dir = str(_HERE / "migrations")
    alembic_file = str(_HERE / "alembic.ini")
    supports_table_dropping = True

    def create_db_from_orm(self) -> None:
        """Create the tables by migration, so that a new database and an upgraded one are the same."""
        self.upgradedb()

    def upgradedb(
        self, to_revision: str | None = None, from_revision: str | None = None, show_sql_only: bool = False
    ) -> Any:
        """Migrate, then give each service's role the rights that it needs: a migration may have made tables."""
        super().upgradedb(to_revision, from_revision, show_sql_only)
        if not show_sql_only:
            grant()

    def downgrade(
        self, to_version: str = "base", from_version: str | None = None, show_sql_only: bool = False
    ) -> Any:
        """Take the schema back to a revision, or to nothing (``base``)."""
        from alembic import command

        revision = f"{from_version}:{to_version}" if show_sql_only and from_version else to_version
        command.downgrade(self.get_alembic_config(), revision=revision, sql=show_sql_only)


def grant() -> None:
    """Grant its rights to each service's role, on Postgres. SQLite has no roles."""
    engine = airflow_engine()
    if engine.dialect.name != "postgresql":
        return
    with engine.begin() as connection:

        def execute(statement: str) -> list[Any]:
            result = connection.exec_driver_sql(statement)
            return list(result) if result.returns_rows else []

        roles.apply(
            execute,
            Choices(
                parse_variables=airflow_option("airbridge", "parse_variables") or "",
                parse_connections=airflow_option("airbridge", "parse_connections") or "",
            ),
        )
