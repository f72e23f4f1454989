"""Tasks, as Airflow has them: the task instance of each try."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airbridge.control_plane import _airflow


@dataclass(frozen=True, slots=True)
class TaskView:
    """One task of one run, and its tries so far; `tries` ends with the current one."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    tries: tuple[_airflow.Try, ...]

    @property
    def current(self) -> _airflow.Try:
        """The try that Airflow has now."""
        return self.tries[-1]

    @property
    def name(self) -> str:
        """The task as a person writes it."""
        index = "" if self.map_index < 0 else f"[{self.map_index}]"
        return f"{self.dag_id} / {self.run_id} / {self.task_id}{index}"


def find(session: Any, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> TaskView | None:
    """Return a task by its names; None if Airflow does not have it."""
    tries = _airflow.tries(session, dag_id, run_id, task_id, map_index)
    return TaskView(dag_id, run_id, task_id, map_index, tuple(tries)) if tries else None


def of_instance(session: Any, ti_id: str) -> TaskView | None:
    """Return the task that a task instance is or was a try of."""
    names = _airflow.task_of(session, ti_id)
    return find(session, *names) if names else None


def latest_run(session: Any, dag_id: str) -> str | None:
    """Return the id of a DAG's newest run."""
    return _airflow.latest_run(session, dag_id)


def scheduler_seen_at(session: Any) -> datetime | None:
    """Return when a scheduler last wrote its sign of life."""
    return _airflow.scheduler_seen_at(session)
