"""Fixtures every suite may use. They start nothing until a test requests them."""

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

# `pytest --retries N` with pytest's own fixture for the tests of that plugin, and `pytest --slow`.
pytest_plugins = ["pytester", "tests.support.retries", "tests.support.slow"]

# Airflow reads its home when it is imported, so this cannot wait for a fixture.
airflow_home.isolate()
