"""Serialised DAGs of Airflow 3.0.4 as the calls of tasks read them: of a task's own DAG, the version of its run.

Airflow's routes read the newest version. A deployment that removes or renames a task would fail it in the runs that are under way: their code is that of
their bundle's version, which is the one that they were created with, or, once they were cleared, the one of that time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import select

from airbridge.executor.placement._airflow import dag_version_of_run

# Versions of one DAG that are kept decoded.
_MOST_VERSIONS: Final = 4

# A version's id and the time of its last change: Airflow changes a version in place while it has no task instances.
_VersionKey = tuple[str, Any]


def version_columns() -> tuple[Any, ...]:
    """Return the columns of a run's version that `Dags.of_run` needs, of a statement that joins `version_of_run`."""
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagrun import DagRun

    run, version = DagRun.__table__.c, DagVersion.__table__.c
    return (
        run.bundle_version,
        version.id.label("version_id"),
        version.last_updated.label("version_updated_at"),
    )


def version_of_run() -> tuple[Any, Any]:
    """Return the table of versions, and the condition that joins a run's own to it, if there is one."""
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagrun import DagRun

    version = DagVersion.__table__
    return version, version.c.id == dag_version_of_run(DagRun.__table__.c.bundle_version)


class Dags:
    """Decoded DAGs. Thread-safe. `newest` is a DagBag of Airflow's that reads the newest version of each."""

    def __init__(self, newest: Any) -> None:
        self._newest = newest
        self._versions: dict[str, OrderedDict[_VersionKey, Any]] = {}
        # For the DagBag, too: its cache is not thread-safe.
        self._lock = threading.RLock()

    def get_dag(self, dag_id: str, session: Any = None) -> Any:
        """Return the newest version of a DAG; None if there is none."""
        with self._lock:
            if session is None:
                return self._newest.get_dag(dag_id)
            return self._newest.get_dag(dag_id, session)

    def of_run(self, session: Any, row: Mapping[str, Any], dag_id: str, task_id: str) -> Any:
        """Return the DAG of a task in the version of its run; the newest if the run has none, or the task is not in it.

        `row` has the `version_columns` of the run.
        """
        dag = None
        # Without a version of its bundle a run follows its DAG's newest version.
        if row["bundle_version"] and row["version_id"]:
            dag = self._version(session, dag_id, (str(row["version_id"]), row["version_updated_at"]))
        return dag if dag is not None and dag.has_task(task_id) else self.get_dag(dag_id, session)

    def of_task(self, session: Any, dag_id: str, run_id: str, task_id: str) -> Any:
        """Return the DAG of a task as `of_run` does."""
        from airflow.models.dagrun import DagRun

        run = DagRun.__table__
        query = (
            select(*version_columns())
            .select_from(run.outerjoin(*version_of_run()))
            .where(run.c.dag_id == dag_id, run.c.run_id == run_id)
        )
        row = session.execute(query).mappings().first()
        return self.get_dag(dag_id, session) if row is None else self.of_run(session, row, dag_id, task_id)

    def _version(self, session: Any, dag_id: str, key: _VersionKey) -> Any:
        from airflow.models.dag_version import DagVersion

        with self._lock:
            known = self._versions.setdefault(dag_id, OrderedDict())
            if key in known:
                known.move_to_end(key)
                return known[key]
            version = session.get(DagVersion, key[0])
            serialized = version.serialized_dag if version is not None else None
            if serialized is None:
                return None
            serialized.load_op_links = False
            dag = known[key] = serialized.dag
            while len(known) > _MOST_VERSIONS:
                known.popitem(last=False)
            return dag


@dataclass(frozen=True, slots=True)
class CallersDags:
    """DagBag of one call of a route: the DAG of the calling task in the version of its run, every other in its newest."""

    dags: Dags
    session: Any
    #: Task instance in the call's path.
    ti_id: str | None

    def get_dag(self, dag_id: str, session: Any = None) -> Any:
        """Return a DAG; None if there is none."""
        from airflow.models.taskinstance import TaskInstance

        session = session or self.session
        task = TaskInstance.__table__.c
        query = select(task.dag_id, task.run_id, task.task_id).where(task.id == self.ti_id)
        caller = session.execute(query).first() if self.ti_id else None
        if caller is None or caller.dag_id != dag_id:
            return self.dags.get_dag(dag_id, session)
        return self.dags.of_task(session, *caller)
