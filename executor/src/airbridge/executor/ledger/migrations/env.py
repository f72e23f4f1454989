"""Alembic's entry: runs the ledger's migrations over Airflow's own connection, under a version table of its own."""

from __future__ import annotations

from alembic import context

from airbridge.executor.ledger._airflow import airflow_engine, airflow_url
from airbridge.executor.ledger.identity import models as _identity  # noqa: F401 - tables of the same metadata
from airbridge.executor.ledger.models import metadata

VERSION_TABLE = "airbridge_alembic_version"


def run_offline() -> None:
    """Write the SQL instead of running it."""
    context.configure(
        url=airflow_url(), target_metadata=metadata, literal_binds=True, version_table=VERSION_TABLE
    )
    with context.begin_transaction():
        context.run_migrations()


def run_online() -> None:
    """Run the migrations."""
    with airflow_engine().connect() as connection:
        context.configure(
            connection=connection,
            target_metadata=metadata,
            version_table=VERSION_TABLE,
            render_as_batch=True,
            transaction_per_migration=True,
        )
        with context.begin_transaction():
            context.run_migrations()


if context.is_offline_mode():
    run_offline()
else:
    run_online()
