"""Airflow 3.0.4 internals that the executor and the ledger depend on; each test fails if its internal changes."""

from __future__ import annotations

import inspect
import json
from collections import deque
from importlib.resources import files
from pathlib import Path
from typing import Any

from tests.support.airflow_home import Metadata
from tests.support.scheduler import Hand, Scheduler, flat_dag, start_run, store_dag

from airbridge.executor.ledger.manager import LedgerDBManager
from airbridge.executor.provider import get_provider_info


class RecordingExecutor:
    """Made in a function: importing Airflow's executors takes seconds."""

    @staticmethod
    def make() -> Any:
        from airflow.executors.base_executor import BaseExecutor

        class Recording(BaseExecutor):  # type: ignore[misc]  # Airflow publishes no types
            def start(self) -> None:
                self.taken: list[Any] = []

            def queue_workload(self, workload: Any, session: Any) -> None:
                self.queued_tasks[workload.ti.key] = workload

            def _process_workloads(self, workloads: list[Any]) -> None:
                self.taken.extend(workloads)
                for workload in workloads:
                    self.running.add(workload.ti.key)
                    del self.queued_tasks[workload.ti.key]

            def end(self) -> None:
                """Nothing to stop."""

        return Recording(parallelism=10)


def started(metadata: Metadata, **arguments: Any) -> Scheduler:
    scheduler = Scheduler(metadata, RecordingExecutor.make())
    scheduler.executor.start()
    dag = flat_dag(**arguments)
    store_dag(metadata, dag)
    start_run(metadata, dag)
    scheduler.loop(2)
    return scheduler


def test_workload_carries_executor_config(sqlite_metadata: Metadata) -> None:
    """`executor_config` is on the workload, and left out when it is serialised."""
    scheduler = started(
        sqlite_metadata, executor_config={"airbridge": {"warm": False}}, pool_slots=2, queue="q"
    )
    [workload] = scheduler.executor.taken
    assert workload.ti.executor_config == {"airbridge": {"warm": False}}
    assert "executor_config" not in workload.ti.model_dump(mode="json")
    assert (workload.ti.pool_slots, workload.ti.queue) == (2, "q")
    assert workload.bundle_info.name == "dags-folder"
    assert str(workload.dag_rel_path) == "flat.py"
    assert workload.log_path.endswith("attempt=1.log")


def test_running_tasks_failure_is_handled(sqlite_metadata: Metadata) -> None:
    """An executor's event about a task that Airflow has running fails it, on the scheduler's own path."""
    scheduler, hand = started(sqlite_metadata), Hand(sqlite_metadata)
    hand.set_task("t0", state="running")
    scheduler.executor.fail(scheduler.executor.taken[0].ti.key, info="gone")
    scheduler.loop(1)
    assert hand.task_states() == {"t0": "failed"}


def test_low_max_tries_forbids_retry(sqlite_metadata: Metadata) -> None:
    """`forbid_retry`: the try that fails is the last, though the task has retries."""
    scheduler, hand = started(sqlite_metadata, retries=5), Hand(sqlite_metadata)
    hand.set_task("t0", state="running", max_tries=0)
    scheduler.executor.fail(scheduler.executor.taken[0].ti.key)
    scheduler.loop(1)
    assert hand.task_states() == {"t0": "failed"}


def test_stale_success_fails_rescheduled_task(sqlite_metadata: Metadata) -> None:
    """Reason why `EdgeExecutor` passes on final states only: a deferred task may be scheduled again before
    its event is read.
    """
    scheduler, hand = started(sqlite_metadata), Hand(sqlite_metadata)
    hand.set_task("t0", state="scheduled")
    scheduler.executor.success(scheduler.executor.taken[0].ti.key)
    from airflow.utils.session import create_session

    with create_session() as session:
        scheduler.runner._process_executor_events(executor=scheduler.executor, session=session)
    assert hand.task_states() == {"t0": "failed"}


def test_cleared_task_stays_restarting(sqlite_metadata: Metadata) -> None:
    """Reason why the reconciler restarts cleared tasks: Airflow 3.0.4 never does, whatever the executor
    reports.
    """
    from airflow.models.taskinstance import TaskInstance, clear_task_instances
    from sqlalchemy import select

    scheduler, hand = started(sqlite_metadata), Hand(sqlite_metadata)
    hand.set_task("t0", state="running")
    before = hand.tasks()["t0"].id
    with sqlite_metadata.session() as session:
        clear_task_instances(session.scalars(select(TaskInstance)).unique().all(), session)
        session.commit()
    assert hand.tasks()["t0"].id != before
    scheduler.executor.fail(scheduler.executor.taken[0].ti.key)
    scheduler.loop(3)
    assert hand.task_states() == {"t0": "restarting"}


def test_unreferenced_audit_entries_are_empty(sqlite_metadata: Metadata) -> None:
    """Reason why `EdgeExecutor.log_task_event` keeps its entries: without, the row that is written has no
    event.
    """
    from airflow.models.log import Log

    scheduler, hand = started(sqlite_metadata), Hand(sqlite_metadata)
    with sqlite_metadata.session() as session:
        scheduler.runner._process_task_event_logs(deque([Log(event="lost", extra="x")]), session)
        kept = Log(event="kept", extra="y")
        scheduler.runner._process_task_event_logs(deque([kept]), session)
        session.commit()
    assert [event for event, _ in hand.audit()][-2:] == [None, "kept"]


def test_has_task_reads_running_set(sqlite_metadata: Metadata) -> None:
    """The scheduler calls the executor's `has_task` before it fails a task."""
    scheduler = started(sqlite_metadata)
    [workload] = scheduler.executor.taken
    assert scheduler.executor.has_task(workload.ti)
    scheduler.executor.running.discard(workload.ti.key)
    assert not scheduler.executor.has_task(workload.ti)


def test_revoke_task_handles_stuck_tasks() -> None:
    """Airflow calls `revoke_task` with the task instance by keyword."""
    from airflow.executors.base_executor import BaseExecutor

    assert list(inspect.signature(BaseExecutor.revoke_task).parameters) == ["self", "ti"]
    assert not hasattr(BaseExecutor, "cleanup_stuck_queued_tasks"), "replaced by revoke_task in 3.0"


def test_ledger_shares_task_id_type() -> None:
    """Joins of the ledger with task instances compare ids without a cast."""
    from airflow.models.taskinstance import TaskInstance
    from sqlalchemy.dialects import postgresql, sqlite

    from airbridge.executor.ledger.models import WorkItemRow

    for dialect in (postgresql.dialect(), sqlite.dialect()):
        theirs = TaskInstance.__table__.c.id.type.compile(dialect)
        assert WorkItemRow.__table__.c.ti_id.type.compile(dialect) == theirs


def test_the_manager_fits_airflows_runner() -> None:
    """The manager meets the requirements of `[database] external_db_managers`."""
    from airflow.utils.db_manager import BaseDBManager, RunDBManager

    assert issubclass(LedgerDBManager, BaseDBManager)
    RunDBManager._validate(LedgerDBManager)
    assert Path(LedgerDBManager.migration_dir, "env.py").read_text().count("version_table=VERSION_TABLE") == 2


def test_the_provider_description_fits_airflows_schema() -> None:
    """Airflow drops a provider whose description does not fit its schema."""
    import jsonschema  # type: ignore[import-untyped]  # its stubs are a package of their own

    schema = json.loads(files("airflow").joinpath("provider_info.schema.json").read_text())
    jsonschema.validate(get_provider_info(), schema)
    for option in get_provider_info()["config"]["airbridge"]["options"].values():
        assert option["default"] is None or isinstance(option["default"], str)
