"""The Timeline button on a task's page in Airflow's UI."""

from __future__ import annotations

from typing import Any

from airflow.sdk.bases.operatorlink import BaseOperatorLink

from airbridge.control_plane.dashboard import _airflow, addresses


class TimelineLink(BaseOperatorLink):  # type: ignore[misc] # Airflow is untyped here
    """Link from a task instance to its timeline, relative to the host that Airflow is reached by."""

    name = "Timeline"

    def get_link(self, operator: Any, *, ti_key: Any) -> str:  # noqa: ARG002 - Airflow names it
        """Return the timeline's address."""
        page = addresses.timeline(ti_key.dag_id, ti_key.run_id, ti_key.task_id, ti_key.map_index)
        return f"{_airflow.base_path()}{page}"
