"""What the ledger uses of Airflow's internals (pinned to 3.0.4; tests/contract/test_airflow_internals.py)."""

from __future__ import annotations

from airflow.utils.sqlalchemy import UtcDateTime

__all__ = ["UtcDateTime"]
