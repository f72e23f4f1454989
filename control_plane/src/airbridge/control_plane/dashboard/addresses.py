"""Paths of the dashboard and its pages below Airflow's base URL."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

PREFIX: Final = "/airbridge"


def timeline(dag_id: str, run_id: str, task_id: str, map_index: int) -> str:
    """Return the path and query of a task instance's Timeline page. `map_index` is -1 for one that is not mapped."""
    names = {"dag": dag_id, "run": run_id, "task": task_id}
    if map_index >= 0:
        names["map_index"] = str(map_index)
    return f"{PREFIX}/timeline?{urlencode(names)}"
