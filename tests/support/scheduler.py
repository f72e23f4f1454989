"""Airflow's own scheduler, one loop at a time, over DAGs that need no file; and a worker's part played by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

from tests.support.airflow_home import Metadata

from airbridge.executor.ledger import leases
from airbridge.executor.ledger.models import Outcome, WorkItemRow

BUNDLE = "dags-folder"
VERSION = "sha256:" + "a" * 64


def store_dag(
    metadata: Metadata, dag: Any, *, version: str | None = VERSION, bundle_name: str = BUNDLE
) -> None:
    """Write a DAG to the database as the dag-processor does, under a bundle at `version`."""
    from airflow.models.dag import DAG
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.serialization.serialized_objects import LazyDeserializedDAG, SerializedDAG

    parsed = LazyDeserializedDAG(data=SerializedDAG.to_dict(dag))
    with metadata.session() as session:
        bundle = session.get(DagBundleModel, bundle_name) or DagBundleModel(name=bundle_name)
        bundle.version = version
        session.add(bundle)
        session.flush()
        DAG.bulk_write_to_db(bundle_name, version, [parsed], session=session)
        SerializedDagModel.write_dag(parsed, bundle_name=bundle_name, bundle_version=version, session=session)
        session.commit()


def start_run(metadata: Metadata, dag: Any, state: str = "running") -> str:
    """Create a DAG run, running unless `state` is ``queued``; its id is returned."""
    from airflow.models.dag import DagModel
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.utils import timezone
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    run_id = f"manual__{uuid4().hex[:8]}"
    with metadata.session() as session:
        session.get(DagModel, dag.dag_id).is_paused = False
        serialized = SerializedDagModel.get(dag.dag_id, session=session).dag
        serialized.create_dagrun(
            run_id=run_id,
            run_after=timezone.utcnow() - timedelta(minutes=1),  # SQLite's now() has whole seconds
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState(state),
            start_date=timezone.utcnow() if state == DagRunState.RUNNING else None,
            session=session,
        )
        session.commit()
    return run_id


def flat_dag(dag_id: str = "flat", tasks: int = 1, schedule: Any = None, **arguments: Any) -> Any:
    """A DAG of independent tasks `t0`, `t1`, ..., all with the same arguments."""
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG
    from airflow.utils import timezone

    arguments.setdefault("on_success_callback", lambda context: None)  # else Airflow skips empty operators
    with DAG(
        dag_id, schedule=schedule, start_date=timezone.datetime(2026, 1, 1), max_active_tasks=1000
    ) as dag:
        for number in range(tasks):
            EmptyOperator(task_id=f"t{number}", **arguments)
    dag.relative_fileloc = f"{dag_id}.py"
    return dag


class Scheduler:
    """A scheduler job with one executor; `loop` is one turn of Airflow's own loop."""

    def __init__(self, metadata: Metadata, executor: Any) -> None:
        from airflow.jobs.job import Job
        from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
        from airflow.utils import timezone
        from airflow.utils.state import JobState

        self._metadata = metadata
        self.executor = executor
        self.job = Job(job_type="SchedulerJob", executor=executor)
        self.job.state = JobState.RUNNING
        self.job.latest_heartbeat = timezone.utcnow()
        self.runner = SchedulerJobRunner(job=self.job)
        with metadata.session() as session:
            session.add(self.job)
            session.commit()
            session.expunge(self.job)
        executor.name = ExecutorNameStub()
        executor.job_id = self.job.id
        executor.callback_sink = CallbackSink()

    def loop(self, times: int = 1) -> None:
        """Schedule, heartbeat the executor, take its events: as `_run_scheduler_loop`."""
        from airflow.utils.session import create_session

        for _ in range(times):
            with create_session() as session:
                self.runner._do_scheduling(session)
                session.expunge_all()
            self.executor.heartbeat()
            with create_session() as session:
                self.runner._process_executor_events(executor=self.executor, session=session)
            with create_session() as session:
                self.runner._process_task_event_logs(self.executor._task_event_logs, session)

    def adopt(self) -> None:
        """Adopt orphaned tasks, as a scheduler does when it starts, and every few minutes."""
        self.runner.adopt_or_reset_orphaned_tasks()

    def die(self) -> None:
        """End, and be found dead by other schedulers."""
        self.executor.end()
        self.mark_dead()

    def mark_dead(self) -> None:
        """Mark the job as no longer running, as other schedulers find that of a dead one."""
        from airflow.jobs.job import Job
        from airflow.utils.state import JobState

        with self._metadata.session() as session:
            session.get(Job, self.job.id).state = JobState.FAILED
            session.commit()


@dataclass(frozen=True)
class ExecutorNameStub:
    """The name the scheduler routes tasks by."""

    alias: str | None = None
    module_path: str = "airbridge.executor.executor.EdgeExecutor"
    team_id: str | None = None

    @property
    def connector_source(self) -> str:
        """Part of Airflow's interface."""
        return "custom"

    def __repr__(self) -> str:
        return self.module_path


@dataclass
class CallbackSink:
    """Keeps the callback requests that the scheduler sends to the dag-processor."""

    sent: list[Any] = field(default_factory=list)

    def send(self, callback: Any) -> None:
        """Keep a request."""
        self.sent.append(callback)


@dataclass(frozen=True)
class Hand:
    """Plays gateway and worker on the database: what they do to the ledger and to Airflow's rows, in one transaction."""

    metadata: Metadata
    worker: str = "worker-1"
    lease_seconds: float = 60.0

    def rows(self, *states: str) -> list[WorkItemRow]:
        """Work items, oldest first; of these states only, if any are given."""
        from sqlalchemy import select

        with self.metadata.session() as session:
            query = select(WorkItemRow).order_by(WorkItemRow.placed_at, WorkItemRow.id)
            return list(session.scalars(query.where(WorkItemRow.state.in_(states)) if states else query))

    def claim(self, rows: Sequence[WorkItemRow], lost_after: float | None = None) -> None:
        """Grant the rows and start their task instances."""
        from airflow.utils import timezone

        def start(session: Any, row: WorkItemRow, ti: Any) -> None:
            patience = row.disconnect["lost_after"] if lost_after is None else lost_after
            leases.claim(session, row, self.worker, self.lease_seconds, patience, {})
            ti.state = "running"
            ti.start_date = ti.last_heartbeat_at = timezone.utcnow()

        self._each(rows, start)

    def claim_only(self, rows: Sequence[WorkItemRow]) -> None:
        """Grant rows that have no task instance behind them."""
        with self.metadata.session() as session:
            for row in leases.lock(session, [row.id for row in rows]).values():
                leases.claim(session, row, self.worker, self.lease_seconds, 600.0, {})
            session.commit()

    def finish(
        self, rows: Sequence[WorkItemRow], state: str = "success", outcome: Outcome = Outcome.SUCCESS
    ) -> None:
        """Report a state and settle."""
        from airflow.utils import timezone

        def end(session: Any, row: WorkItemRow, ti: Any) -> None:
            ti.state = state
            ti.end_date = timezone.utcnow()
            leases.settle(session, row, outcome)

        self._each(rows, end)

    def _each(self, rows: Sequence[WorkItemRow], act: Callable[[Any, WorkItemRow, Any], None]) -> None:
        from airflow.models.taskinstance import TaskInstance

        with self.metadata.session() as session:
            for row in leases.lock(session, [row.id for row in rows]).values():
                act(session, row, session.get(TaskInstance, row.ti_id))
            session.commit()

    def task_states(self) -> dict[str, str | None]:
        """The state of every task instance, by task id (and map index)."""
        return {name: ti.state for name, ti in self.tasks().items()}

    def tasks(self) -> dict[str, Any]:
        """Every task instance, by task id (and map index)."""
        from airflow.models.taskinstance import TaskInstance
        from sqlalchemy import select

        with self.metadata.session() as session:
            found = session.scalars(select(TaskInstance).order_by(TaskInstance.task_id)).unique().all()
            session.expunge_all()
        return {ti.task_id if ti.map_index < 0 else f"{ti.task_id}[{ti.map_index}]": ti for ti in found}

    def set_task(self, task_id: str, **values: Any) -> None:
        """Change a task instance directly, as a user does in the UI."""
        from airflow.models.taskinstance import TaskInstance
        from sqlalchemy import update

        with self.metadata.session() as session:
            session.execute(update(TaskInstance).where(TaskInstance.task_id == task_id).values(**values))
            session.commit()

    def audit(self) -> list[tuple[str, str]]:
        """Airflow's audit log: event and extra."""
        from airflow.models.log import Log
        from sqlalchemy import select

        with self.metadata.session() as session:
            return [(log.event, log.extra or "") for log in session.scalars(select(Log).order_by(Log.id))]
