"""Tasks of Airflow, with the task instance of each try."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from airbridge.control_plane import _airflow


@dataclass(frozen=True, slots=True)
class TaskView:
    """Task of a run, with its tries; the last one is current."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    tries: tuple[_airflow.Try, ...]

    @property
    def current(self) -> _airflow.Try:
        """Current try."""
        return self.tries[-1]

    @property
    def name(self) -> str:
        """Display name: DAG, run, task and map index."""
        index = "" if self.map_index < 0 else f"[{self.map_index}]"
        return f"{self.dag_id} / {self.run_id} / {self.task_id}{index}"


def find(session: Any, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> TaskView | None:
    """Return a task; None if Airflow does not have it."""
    tries = _airflow.tries(session, dag_id, run_id, task_id, map_index)
    return TaskView(dag_id, run_id, task_id, map_index, tuple(tries)) if tries else None


def missing(session: Any, dag_id: str, run_id: str | None, task_id: str) -> str:
    """Return why `find` has found nothing, and what would be found."""
    where = f"run {run_id or '(none)'!r} of DAG {dag_id!r}"
    indexes = _airflow.map_indexes(session, dag_id, run_id or "", task_id)
    if not indexes:
        return f"there is no task {task_id!r} in {where}"
    if indexes == [-1]:
        return f"task {task_id!r} in {where} is not mapped: leave the map index out"
    return f"task {task_id!r} in {where} is mapped: give a map index from {indexes[0]} to {indexes[-1]}"


def of_instance(session: Any, ti_id: str) -> TaskView | None:
    """Return the task of a current or earlier task instance."""
    names = _airflow.task_of(session, ti_id)
    return find(session, *names) if names else None


def latest_run(session: Any, dag_id: str) -> str | None:
    """Return the id of a DAG's newest run."""
    return _airflow.latest_run(session, dag_id)


def scheduler_seen_at(session: Any) -> datetime | None:
    """Return the time of the last heartbeat of a running scheduler."""
    return _airflow.scheduler_seen_at(session)
