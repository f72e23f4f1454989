"""Airflow's records of where a run's code lies (Airflow 3.0.4; tests/integration/executor/test_moved_files.py).

Airflow 3.0.4 names a task's code by the version that its run is pinned to, but by the bundle and file that its DAG has in the newest
version (`ExecuteTask.make`). Once a DAG's file is renamed, or the DAG is in another bundle, the two do not go together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class DagFile:
    """File that defines a DAG, relative to its bundle."""

    bundle: str
    path: str


class DagFiles:
    """Files of DAGs in the versions that runs are pinned to. Each is looked up once; of those used last, `kept`."""

    def __init__(self, kept: int = 1000) -> None:
        self._kept = kept
        self._known: OrderedDict[tuple[str, str], DagFile | None] = OrderedDict()

    def of_workloads(self, session: Any, workloads: Sequence[Any]) -> list[Any]:
        """Return the workloads with the bundle and file of their runs' versions."""
        pinned = {each.ti.dag_id for each in workloads if each.bundle_info.version is not None}
        current = _current_versions(session, pinned) if pinned else {}
        return [self._of_workload(session, each, current) for each in workloads]

    def _of_workload(self, session: Any, workload: Any, current: Mapping[str, str | None]) -> Any:
        ti, bundle = workload.ti, workload.bundle_info
        if bundle.version is None or current.get(ti.dag_id) == bundle.version:
            return workload
        found = self._find(session, ti.dag_id, ti.run_id, bundle.version)
        if found is None:
            return workload
        moved = {
            "dag_rel_path": Path(found.path),
            "bundle_info": bundle.model_copy(update={"name": found.bundle}),
        }
        return workload.model_copy(update=moved)

    def of_callback(self, session: Any, request: Any) -> Any:
        """Return a callback request with the bundle, version and file of its run.

        A run that is not pinned gets the newest version of its DAG: without a version, the dag-processor would look for the file in a
        bundle that it has not initialised.
        """
        owner = getattr(request, "ti", request)
        run = _run(session, owner.dag_id, owner.run_id)
        if run is None or run.current is None:
            return request
        found: DagFile | None = DagFile(run.bundle, run.path)
        if run.pinned not in {None, run.current}:
            found = self._find(session, owner.dag_id, owner.run_id, run.pinned)
        if found is None:
            return request
        where = {
            "bundle_name": found.bundle,
            "bundle_version": run.pinned or run.current,
            "filepath": found.path,
        }
        return request.model_copy(update=where)

    def _find(self, session: Any, dag_id: str, run_id: str, version: str) -> DagFile | None:
        key = (dag_id, version)
        if key not in self._known:
            self._known[key] = _look_up(session, dag_id, run_id, version)
        self._known.move_to_end(key)
        while len(self._known) > self._kept:
            self._known.popitem(last=False)
        return self._known[key]


def _current_versions(session: Any, dag_ids: Collection[str]) -> Mapping[str, str | None]:
    """Return the bundle version that each DAG was parsed in last."""
    return dict(session.execute(_of_dags(), {"dag_ids": sorted(dag_ids)}).all())


@cache
def _of_dags() -> Any:
    from airflow.models.dag import DagModel
    from sqlalchemy import bindparam, select

    wanted = DagModel.dag_id.in_(bindparam("dag_ids", expanding=True))
    return select(DagModel.dag_id, DagModel.bundle_version).where(wanted)


def _run(session: Any, dag_id: str, run_id: str) -> Any:
    """Return the version that a run is pinned to, and version, bundle and file of its DAG as it was parsed last; None without the run."""
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from sqlalchemy import select

    query = (
        select(
            DagRun.bundle_version.label("pinned"),
            DagModel.bundle_version.label("current"),
            DagModel.bundle_name.label("bundle"),
            DagModel.relative_fileloc.label("path"),
        )
        .join(DagModel, DagModel.dag_id == DagRun.dag_id)
        .where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
    )
    return session.execute(query).first()


def _look_up(session: Any, dag_id: str, run_id: str, version: str) -> DagFile | None:
    """Return where a DAG is in the version of a run, from its serialised form; None if there is none.

    The file is part of a serialised DAG's hash, so that a DAG which only moved has one for each file.
    """
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagrun import DagRun
    from airflow.models.serialized_dag import SerializedDagModel
    from sqlalchemy import select

    query = (
        select(DagVersion.bundle_name, SerializedDagModel)
        .join(SerializedDagModel, SerializedDagModel.dag_version_id == DagVersion.id)
        .join(DagRun, DagVersion.id == dag_version_of_run(version))
        .where(DagRun.dag_id == dag_id, DagRun.run_id == run_id)
    )
    row = session.execute(query).first()
    if row is None:
        return None
    bundle, serialized = row
    path = (serialized.data or {}).get("dag", {}).get("relative_fileloc")
    return DagFile(bundle, path) if bundle and path else None


def dag_version_of_run(bundle_version: Any) -> Any:
    """Return a subquery, in one over `DagRun`, of the id of the run's DAG version. `bundle_version` is its bundle's: a value or a column.

    It is that of the bundle's version. One that left the DAG as it was has none: then it is the newest of those that the run was
    created with, or that there were when it was queued. Clearing a run moves both its bundle's version and that time.
    """
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagrun import DagRun
    from sqlalchemy import case, or_, select

    run, version = DagRun.__table__, DagVersion.__table__.alias()
    of_bundle = version.c.bundle_version == bundle_version
    before = or_(version.c.id == run.c.created_dag_version_id, version.c.created_at <= run.c.queued_at)
    return (
        select(version.c.id)
        .where(version.c.dag_id == run.c.dag_id, or_(of_bundle, before))
        .order_by(case((of_bundle, 0), else_=1), version.c.version_number.desc())
        .limit(1)
        .correlate(run)
        .scalar_subquery()
    )
