"""Fixtures every suite may use. They start nothing until a test requests them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import structlog
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

from airbridge.executor import plain_tracebacks

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


@pytest.fixture(autouse=True)
def _plain_tracebacks() -> Iterator[None]:
    """Log tracebacks without local variables, whatever earlier tests left: a test's frames take rich minutes to print."""
    configured = structlog.is_configured()
    plain_tracebacks.install()
    yield
    if not configured:
        structlog.reset_defaults()


# Airflow reads its home when it is imported, so this cannot wait for a fixture.
airflow_home.isolate()
