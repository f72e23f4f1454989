"""Uses of Airflow's internals by the executor (pinned to 3.0.4; tests/contract/test_airflow_internals.py).

Imports of Airflow are inside the functions: reading one option must not load the ORM.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cache
from typing import Any, Final

REFUSED = " (not published)"


# Sources of values that nobody has set, in `conf.as_dict`.
_DEFAULTS: Final = frozenset({"default", "provider-fallback-defaults"})


def airflow_option(section: str, name: str) -> str | None:
    """Return the text of an option of Airflow's configuration; None where it is not set."""
    from airflow.configuration import conf

    value: str | None = conf.get(section, name, fallback=None)
    return value


def options_set(sections: Collection[str], withheld: Collection[tuple[str, str]]) -> dict[str, str]:
    """Return the options that are set in `sections`, as environment variables; no sensitive one, none by a command."""
    from airflow.configuration import conf

    found = conf.as_dict(
        display_source=True, display_sensitive=True, raw=True, include_cmds=False, include_secret=False
    )
    sensitive = {*conf.sensitive_config_values, *withheld}
    return {
        f"AIRFLOW__{section.upper()}__{name.upper()}": str(value)
        for section in sections
        for name, (value, source) in found.get(section, {}).items()
        if source != "default" and (section, name) not in sensitive and not name.endswith(("_cmd", "_secret"))
    }


def options_given(wanted: Callable[[str, str], bool]) -> dict[str, dict[str, str]]:
    """Return the wanted options that airflow.cfg or the environment sets, by section, as `conf.get` returns them."""
    from airflow.configuration import conf

    found = conf.as_dict(
        display_source=True, display_sensitive=True, raw=True, include_cmds=False, include_secret=False
    )
    return {
        section: {
            name: str(conf.get(section, name))
            for name, (_, source) in options.items()
            if source not in _DEFAULTS and wanted(section, name)
        }
        for section, options in found.items()
    }


def sensitive_options() -> frozenset[tuple[str, str]]:
    """Return section and name of every option that Airflow or a provider describes as sensitive."""
    from airflow.configuration import conf

    return frozenset(conf.sensitive_config_values)


def load_models() -> None:
    """Import and connect Airflow's models, which the first query would do otherwise."""
    from airflow.models import import_all_models
    from sqlalchemy.orm import configure_mappers

    import_all_models()
    configure_mappers()


def pool_locks() -> list[Any]:
    """Return the locks of the database's connection pool; none where the pool has none."""
    from airflow import settings

    pool = getattr(settings.engine, "pool", None)
    queue = getattr(pool, "_pool", None)
    found = (getattr(queue, "mutex", None), getattr(pool, "_overflow_lock", None))
    return [lock for lock in found if lock is not None]


def airflow_home() -> str:
    """Return AIRFLOW_HOME as Airflow takes it."""
    from airflow.configuration import AIRFLOW_HOME

    return str(AIRFLOW_HOME)


def new_session() -> AbstractContextManager[Any]:
    """Return a block with a session of its own, committed at its end and rolled back on an error.

    Not scoped: a scoped session is the thread's only one, so closing it would detach what an Airflow function that calls this
    code has loaded and is yet to change.
    """
    from airflow.utils.session import create_session

    session: AbstractContextManager[Any] = create_session(scoped=False)
    return session


def session_of(ti: Any) -> Any:
    """Return the session that a task instance belongs to; None if it belongs to none."""
    from sqlalchemy.orm import object_session

    return object_session(ti)


@contextmanager
def nested(session: Any) -> Iterator[Any]:
    """Return a block within the transaction of `session`, undone alone if it fails; a new one if there is none."""
    if session is None:
        with new_session() as own:
            yield own
    else:
        with session.begin_nested():
            yield session


def utcnow() -> datetime:
    """Return the clock that Airflow's scheduler compares task heartbeats with."""
    from airflow.utils import timezone

    now: datetime = timezone.utcnow()
    return now


# --- Task instances -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TaskView:
    """State of a task instance in Airflow's database."""

    state: str | None
    try_number: int
    queued_by_job_id: int | None


def task_views(session: Any, ti_ids: Collection[str]) -> dict[str, TaskView]:
    """Return task instances by id; one that has been cleared or retried has another id, and is left out."""
    found = session.execute(_task_views(), {"ids": sorted(ti_ids)})
    return {str(ti_id): TaskView(state, tries, job_id) for ti_id, state, tries, job_id in found}


@cache
def _task_views() -> Any:
    """Return the statement, built once: SQLAlchemy takes longer to analyse a new one than to run a known one."""
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import bindparam, select

    task = TaskInstance
    return select(task.id, task.state, task.try_number, task.queued_by_job_id).where(
        task.id.in_(bindparam("ids", expanding=True))
    )


def bundle_versions(session: Any, names: Collection[str]) -> Mapping[str, str | None]:
    """Return the current version of DAG bundles."""
    return dict(session.execute(_bundle_versions(), {"names": sorted(names)}).all())


@cache
def _bundle_versions() -> Any:
    from airflow.models.dagbundle import DagBundleModel
    from sqlalchemy import bindparam, select

    of_these = DagBundleModel.name.in_(bindparam("names", expanding=True))
    return select(DagBundleModel.name, DagBundleModel.version).where(of_these)


class DeclaredAssets:
    """Assets that tasks declare, from the serialised DAGs. Each version of a DAG is read once; of the DAGs used last, `kept`."""

    def __init__(self, kept: int = 1000) -> None:
        self._kept = kept
        self._by_dag: OrderedDict[str, tuple[str, dict[str, tuple[str, ...]]]] = OrderedDict()

    def reader(self, session: Any) -> Callable[[str, str], Sequence[str]]:
        """Return a finder of the URIs of a task's inlets, then its outlets, by DAG and task. It looks at each DAG once."""
        seen: dict[str, dict[str, tuple[str, ...]]] = {}

        def find(dag_id: str, task_id: str) -> Sequence[str]:
            if dag_id not in seen:
                seen[dag_id] = self._tasks(session, dag_id)
            return seen[dag_id].get(task_id, ())

        return find

    def _tasks(self, session: Any, dag_id: str) -> dict[str, tuple[str, ...]]:
        from airflow.models.serialized_dag import SerializedDagModel

        version = SerializedDagModel.get_latest_version_hash(dag_id, session=session)
        if version is None:
            return {}
        known = self._by_dag.get(dag_id)
        if known is None or known[0] != version:
            model = SerializedDagModel.get(dag_id, session=session)
            known = (version, _assets_by_task(model.data if model else None))
            self._by_dag[dag_id] = known
        self._by_dag.move_to_end(dag_id)
        while len(self._by_dag) > self._kept:
            self._by_dag.popitem(last=False)
        return known[1]


def _assets_by_task(data: Mapping[str, Any] | None) -> dict[str, tuple[str, ...]]:
    """Return the URIs of each task that has any. Of a mapped task they are among the arguments that its runs share."""
    found = {}
    for entry in (data or {}).get("dag", {}).get("tasks", ()):
        task = entry["__var"]
        declared = {**(task.get("partial_kwargs") or {}), **task}
        uris = [uri for side in ("inlets", "outlets") for uri in _uris(declared.get(side))]
        if uris:
            found[str(task["task_id"])] = tuple(dict.fromkeys(uris))
    return found


def _uris(declared: Any) -> Iterator[str]:
    """Yield the URIs among the inlets or outlets of a task. These may be anything: text, lineage objects, one thing without a list."""
    if isinstance(declared, Mapping):
        kind, value = declared.get("__type"), declared.get("__var")
        if kind in ("tuple", "set"):
            yield from _uris(value)
        elif kind in ("asset", "asset_ref") and isinstance(value, Mapping) and "uri" in value:
            yield str(value["uri"])
    elif isinstance(declared, list):
        for each in declared:
            yield from _uris(each)


def recorded_versions(bundle: str) -> tuple[str | None, list[str]]:
    """Return the version of a bundle that Airflow refreshed last, and those that its DAG versions name."""
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagbundle import DagBundleModel
    from sqlalchemy import select

    with new_session() as session:
        current = session.scalar(select(DagBundleModel.version).where(DagBundleModel.name == bundle))
        named = select(DagVersion.bundle_version).where(DagVersion.bundle_name == bundle).distinct()
        return current, [version for version in session.scalars(named) if version]


def forbid_retry(session: Any, ti_id: str) -> None:
    """Let this be the last try of a task instance, whatever retries are left.

    Airflow then fails it by its own path, with its failure callbacks and e-mails. Clearing the task
    gives it its retries back, as it does for any task.
    """
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy import update

    session.execute(
        update(TaskInstance)
        .where(TaskInstance.id == ti_id)
        .values(max_tries=TaskInstance.try_number - 1)
        .execution_options(synchronize_session=False)
    )


def abandoned(session: Any, limit: int, ids: Collection[str] | None = None) -> list[str]:
    """Return the ids of open work items whose task instance Airflow no longer has queued or running, or deferred on their trigger.

    Those that their workers are stopping are left out while their leases last.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import and_, false, func, or_, select

    from airbridge.core.protocol import ItemKind
    from airbridge.executor.ledger import clock
    from airbridge.executor.ledger.models import ItemState, WorkItemRow

    of_task = and_(
        WorkItemRow.kind == ItemKind.TASK,
        TaskInstance.state.in_((TaskInstanceState.QUEUED, TaskInstanceState.RUNNING)),
    )
    of_trigger = and_(
        TaskInstance.state == TaskInstanceState.DEFERRED, TaskInstance.trigger_id == WorkItemRow.trigger_id
    )
    wanted = (
        select(TaskInstance.id).where(TaskInstance.id == WorkItemRow.ti_id, or_(of_task, of_trigger)).exists()
    )
    lasts = func.coalesce(WorkItemRow.lease_until > clock.now(session), false())
    being_stopped = and_(WorkItemRow.outcome.is_not(None), lasts)
    query = (
        select(WorkItemRow.id)
        .where(WorkItemRow.state != ItemState.SETTLED, ~wanted, ~being_stopped)
        .limit(limit)
    )
    if ids is not None:
        query = query.where(WorkItemRow.id.in_(list(ids)))
    return [str(item_id) for item_id in session.scalars(query)]


def touch_heartbeats(
    session: Any, owner_job_id: int | None, alive_at: datetime, stale_before: datetime
) -> int:
    """Give leased, running tasks of one scheduler a fresh `last_heartbeat_at`; return how many were stale."""
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import select, update

    from airbridge.executor.ledger import clock
    from airbridge.executor.ledger.models import ItemState, WorkItemRow

    leased = select(WorkItemRow.ti_id).where(
        WorkItemRow.state == ItemState.CLAIMED,
        WorkItemRow.owner_job_id == owner_job_id,
        WorkItemRow.lost_at > clock.now(session),
    )
    result = session.execute(
        update(TaskInstance)
        .where(
            TaskInstance.id.in_(leased),
            TaskInstance.state == TaskInstanceState.RUNNING,
            TaskInstance.last_heartbeat_at < stale_before,
        )
        .values(last_heartbeat_at=alive_at)
        .execution_options(synchronize_session=False)
    )
    return int(result.rowcount)


def restart_cleared(session: Any, owner_job_id: int | None) -> list[str]:
    """Queue cleared tasks anew whose attempt the ledger has closed; return their task ids.

    Clearing a running task leaves it ``restarting`` under a new id until its old attempt is stopped.
    Airflow 3.0.4 never moves it on from there. Its retries are restored, as clearing does for a task
    that does not run.
    """
    from airflow.models.taskinstance import TaskInstance
    from airflow.utils.state import TaskInstanceState
    from sqlalchemy import select

    from airbridge.core.protocol import ItemKind
    from airbridge.executor.ledger.models import ItemState, WorkItemRow

    same_task = (
        WorkItemRow.dag_id == TaskInstance.dag_id,
        WorkItemRow.run_id == TaskInstance.run_id,
        WorkItemRow.task_id == TaskInstance.task_id,
        WorkItemRow.map_index == TaskInstance.map_index,
    )
    is_open = (WorkItemRow.state != ItemState.SETTLED, WorkItemRow.kind == ItemKind.TASK)
    still_held = select(WorkItemRow.id).where(*same_task, *is_open).exists()
    was_ours = select(WorkItemRow.id).where(*same_task, WorkItemRow.state == ItemState.SETTLED).exists()
    query = (
        select(TaskInstance)
        .where(
            TaskInstance.state == TaskInstanceState.RESTARTING,
            TaskInstance.queued_by_job_id == owner_job_id,
            was_ours,
            ~still_held,
        )
        .with_for_update(of=TaskInstance, skip_locked=True)
    )
    return [_restart(session, ti) for ti in session.scalars(query)]


def _restart(session: Any, ti: Any) -> str:
    retries = _retries(session, ti)
    ti.max_tries = max(ti.max_tries, ti.try_number) if retries is None else ti.try_number + retries
    ti.external_executor_id = None
    ti.clear_next_method_args()
    ti.set_state(None, session=session)
    return str(ti.task_id)


def _retries(session: Any, ti: Any) -> int | None:
    """Return the retries of a task as its DAG has them; None if the DAG cannot be read."""
    from airflow.jobs.scheduler_job_runner import SchedulerDagBag

    dag = SchedulerDagBag().get_dag(dag_run=ti.dag_run, session=session)
    if dag is None or not dag.has_task(ti.task_id):
        return None
    return int(dag.get_task(ti.task_id).retries or 0)


# Host name of the job row that stands for the triggers on workers. Gateways find the row by it.
EDGE_TRIGGERER: Final = "airbridge-workers"

# The row's heartbeat lies this far ahead: triggers must not fall to Airflow's own triggerers because the control plane
# was down. It is renewed at half of it.
_TRIGGERER_AHEAD: Final = timedelta(days=3650)


def edge_triggerer_id(session: Any) -> int | None:
    """Return the id of the job that edge triggers are assigned to; None if no scheduler has made it yet."""
    from airflow.jobs.job import Job
    from sqlalchemy import func, select

    query = select(func.min(Job.id)).where(
        Job.job_type == "TriggererJob", Job.hostname == EDGE_TRIGGERER, Job.end_date.is_(None)
    )
    found: int | None = session.scalar(query)
    return found


def keep_edge_triggerer(session: Any) -> None:
    """Make the job that edge triggers are assigned to, and renew its heartbeat.

    `Trigger.assign_unassigned` leaves alone the triggers of a TriggererJob without an end whose heartbeat is fresh. The
    row's state is not ``running``, so that the health of Airflow's triggerer is that of the real ones.
    """
    from airflow.jobs.job import Job
    from sqlalchemy import insert, update

    now = utcnow()
    found = edge_triggerer_id(session)
    if found is None:
        row = {
            "job_type": "TriggererJob",
            "state": "edge",
            "hostname": EDGE_TRIGGERER,
            "unixname": "airbridge",
            "start_date": now,
            "latest_heartbeat": now + _TRIGGERER_AHEAD,
        }
        session.execute(insert(Job).values(row))
        return
    session.execute(
        update(Job)
        .where(Job.id == found, Job.latest_heartbeat < now + _TRIGGERER_AHEAD / 2)
        .values(latest_heartbeat=now + _TRIGGERER_AHEAD)
        .execution_options(synchronize_session=False)
    )


# --- DAG bundles ----------------------------------------------------------------------------------


def dags_of_other_bundles(bundle: str, dag_ids: Collection[str]) -> dict[str, str]:
    """Return which of these DAGs another bundle defines, each with that bundle and its file, as words for an error."""
    with new_session() as session:
        return taken_dag_ids(session, bundle, dag_ids)


def taken_dag_ids(session: Any, bundle: str, dag_ids: Collection[str]) -> dict[str, str]:
    """See `dags_of_other_bundles`. A bundle that is no longer configured, and a DAG that is gone, take no id."""
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel
    from sqlalchemy import false, select, true

    query = (
        select(DagModel.dag_id, DagModel.bundle_name, DagModel.relative_fileloc)
        .join(DagBundleModel, DagBundleModel.name == DagModel.bundle_name)
        .where(
            DagModel.dag_id.in_(list(dag_ids)),
            DagModel.bundle_name != bundle,
            DagModel.is_stale == false(),
            DagBundleModel.active == true(),
        )
    )
    return {
        dag_id: f"bundle {other!r}" + (f" ({file})" if file else "")
        for dag_id, other, file in session.execute(query)
    }


def report_import_errors(bundle: str, errors: Mapping[str, str]) -> None:
    """Show the errors of a bundle's refused snapshot in the UI, by file, in place of those of the one refused before.

    The names end in `REFUSED`, so that they never meet the names under which Airflow itself keeps import errors
    of the snapshot that is current: parsing one does not clear the other.
    """
    from airflow.models.errors import ParseImportError
    from airflow.utils import timezone

    with new_session() as session:
        session.query(ParseImportError).filter(
            ParseImportError.bundle_name == bundle,
            ParseImportError.filename.endswith(REFUSED, autoescape=True),
        ).delete(synchronize_session=False)
        for file, error in errors.items():
            row = ParseImportError(
                bundle_name=bundle,
                filename=file[: 1024 - len(REFUSED)] + REFUSED,
                timestamp=timezone.utcnow(),
                stacktrace=error,
            )
            session.add(row)
