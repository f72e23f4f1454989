"""Uses of Airflow's internals by the ledger (pinned to 3.0.4; tests/contract/test_airflow_internals.py)."""

from __future__ import annotations

from typing import Any

from airflow.utils.db_manager import BaseDBManager
from airflow.utils.sqlalchemy import UtcDateTime

__all__ = ["BaseDBManager", "UtcDateTime", "airflow_engine", "airflow_url"]


def airflow_engine() -> Any:
    """Return the engine of Airflow's metadata database; Airflow replaces it while it migrates."""
    from airflow import settings

    return settings.engine


def airflow_url() -> str:
    """Return the URL of Airflow's metadata database."""
    from airflow import settings

    return str(settings.SQL_ALCHEMY_CONN)
