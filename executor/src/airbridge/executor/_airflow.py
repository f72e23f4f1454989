"""What the executor uses of Airflow's internals (pinned to 3.0.4; tests/contract/test_airflow_internals.py)."""

from __future__ import annotations


def airflow_option(section: str, name: str) -> str | None:
    """Return the text of an option of Airflow's configuration; None where it is not set."""
    from airflow.configuration import conf

    value: str | None = conf.get(section, name, fallback=None)
    return value
