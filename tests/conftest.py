"""Fixtures every suite may use. They start nothing until a test asks for them."""

from __future__ import annotations

from tests.support import airflow_home
from tests.support.airflow_home import (
    metadata,
    postgres_metadata,
    postgres_template,
    sqlite_metadata,
    sqlite_template,
)
from tests.support.moto import moto
from tests.support.postgres import postgres

__all__ = [
    "metadata",
    "moto",
    "postgres",
    "postgres_metadata",
    "postgres_template",
    "sqlite_metadata",
    "sqlite_template",
]

# Airflow reads its home when it is imported, so this cannot wait for a fixture.
airflow_home.isolate()
