"""EdgeExecutor: Airflow's side of AirBridge. It writes the ledger and reads it; it never calls AWS."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog
from airflow.executors.base_executor import BaseExecutor
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import State, TaskInstanceState

from airbridge.executor import _airflow, fork_safety, param_patterns, plain_tracebacks
from airbridge.executor.connection_pings import ping_idle_only
from airbridge.executor.placement.faults import of_database, unexpected
from airbridge.executor.scheduling import _airflow as _airflow_loop

if TYPE_CHECKING:
    from airbridge.executor.dispatch.outbox import Outbox
    from airbridge.executor.dispatch.scaling import Scaling
    from airbridge.executor.ledger.backlogs import PoolRef
    from airbridge.executor.ledger.models import WorkItemRow
    from airbridge.executor.placement.workloads import Refused, Workloads
    from airbridge.executor.scheduling.listener import NotificationListener
    from airbridge.executor.scheduling.reconciler import Reconciler
    from airbridge.executor.scheduling.throttle import Throttle

log = structlog.get_logger(__name__)

# A failure that Airflow has not acted on (another transaction held the task) is reported again after this
# long.
REPEAT_FAILURE_SECONDS = 5.0
# How often the executor looks whether another scheduler has adopted its tasks.
OWNED_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Components:
    """Collaborators of a started executor."""

    workloads: Workloads
    outbox: Outbox
    reconciler: Reconciler
    scaling: Scaling
    listener: NotificationListener
    throttle: Throttle
    #: Age of the last heartbeat beyond which a worker is not considered in placing.
    worker_alive_seconds: float


class EdgeExecutor(BaseExecutor):  # type: ignore[misc]  # Airflow publishes no types
    """Executor that passes task instances to remote workers through the ledger and the regions' queues.

    Not the class of the same name in Airflow's edge3 provider.
    """

    is_local = False
    is_production = True
    serve_logs = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._components: Components | None = None
        self._assets = _airflow.DeclaredAssets()
        self._reported_at: dict[str, float] = {}
        self._owned_at = 0.0
        self._to_adopt: set[str] = set()
        self._event_logs: deque[Any] = deque(maxlen=1000)
        self._changes = ExitStack()

    # --- Life -------------------------------------------------------------------------------------

    def start(self) -> None:
        """Read settings, catalogue and keys, and start the outbox, the reconciler and the listener. Raises `ConfigurationError`."""
        from airbridge.executor.components import build
        from airbridge.executor.ledger._airflow import airflow_engine

        plain_tracebacks.install()
        param_patterns.install()
        self._components = build(self._job_id)
        self._changes.callback(ping_idle_only(airflow_engine()))
        fork_safety.install(_airflow.pool_locks)
        self._components.outbox.start()
        self._components.reconciler.start()
        self._components.scaling.start()
        self._components.listener.start()
        # After the listener, whose sleep the pacing shortens.
        for change in (_airflow_loop.examine_runs_without_tasks, _airflow_loop.pace_timed_steps):
            self._changes.callback(change())
        log.info("executor.started", owner_job_id=self._job_id, parallelism=self.parallelism)

    def end(self) -> None:
        """Stop. Work on its way goes on without this scheduler and is adopted by the next."""
        if self._components is not None:
            self._changes.close()
            self._components.outbox.stop()
            self._components.reconciler.stop()
            self._components.scaling.stop()
            self._components.listener.stop()
            self._components = None
            log.info("executor.stopped", owner_job_id=self._job_id)

    def terminate(self) -> None:
        """Stop, as `end`."""
        self.end()

    @property
    def _job_id(self) -> int | None:
        return None if self.job_id is None else int(self.job_id)

    @property
    def _started(self) -> Components:
        if self._components is None:
            raise RuntimeError("EdgeExecutor has not been started; call start()")
        return self._components

    # --- Work in ----------------------------------------------------------------------------------

    def queue_workload(self, workload: Any, session: Any) -> None:  # noqa: ARG002 - Airflow's signature
        """Keep a workload until the next `trigger_tasks`."""
        from airflow.executors import workloads

        if not isinstance(workload, workloads.ExecuteTask):
            raise ValueError(
                f"EdgeExecutor runs tasks; it cannot take a workload of kind {type(workload).__name__}"
            )
        self.queued_tasks[workload.ti.key] = workload

    def _process_workloads(self, workloads: Sequence[Any]) -> None:
        """Write workloads to the ledger. What the database does not take stays queued for the next heartbeat."""
        places = self._place_or_halve(workloads)
        self._started.throttle.placed(places)
        for region in {region for region, _pool in places}:
            self._started.outbox.wake(region)
            self._started.scaling.wake(region)

    def _place_or_halve(self, workloads: Sequence[Any]) -> list[PoolRef]:
        """Place workloads in one transaction; where one of them is the fault, in halves, so that it keeps no other back."""
        try:
            places = self._place(workloads)
        except Exception as error:  # noqa: BLE001 - logged when the workload is found
            if of_database(error):
                log.warning("executor.place_failed", count=len(workloads), error=str(error))
                return []
            if len(workloads) > 1:
                middle = len(workloads) // 2
                halves = (workloads[:middle], workloads[middle:])
                return [place for half in halves for place in self._place_or_halve(half)]
            self._refuse_alone(workloads[0], error)
            return []
        for workload in workloads:
            self._hand_over(workload)
        return places

    def _hand_over(self, workload: Any) -> None:
        self.running.add(workload.ti.key)
        self.queued_tasks.pop(workload.ti.key, None)

    def _place(self, workloads: Sequence[Any]) -> list[PoolRef]:
        """Place what can be placed and close the rest; return where each item was placed."""
        from airbridge.executor.ledger import backlogs, items

        with _airflow.new_session() as session:
            versions = _airflow.bundle_versions(session, {each.bundle_info.name for each in workloads})
            load = backlogs.backlog(session, alive_seconds=self._started.worker_alive_seconds)
            placed, refused = self._started.workloads.read(
                workloads, load, versions, self._assets.reader(session)
            )
            items.place(session, placed, self._job_id)
            self._refuse(session, refused)
        return [(item.region, item.pool) for item in placed]

    def _refuse(self, session: Any, refused: Sequence[Refused]) -> None:
        from airbridge.executor.ledger import items

        for each in refused:
            items.refuse(session, each.item, self._job_id, each.reason)
            _airflow.forbid_retry(session, each.item.ti_id)
            log.warning("item.unplaceable", ti_id=each.item.ti_id, queue=each.item.queue, reason=each.reason)

    def _refuse_alone(self, workload: Any, error: Exception) -> None:
        """Refuse a task that the ledger does not take; fail it without a work item if it does not take that either."""
        ti_id = str(workload.ti.id)
        log.error("workload.not_taken", ti_id=ti_id, exc_info=error)
        reason = unexpected(error)
        try:
            with _airflow.new_session() as session:
                self._refuse(session, [self._started.workloads.refusal(workload, reason)])
        except Exception as again:
            if of_database(again):
                log.warning("executor.place_failed", count=1, error=str(again))
                return
            log.exception("workload.not_refused", ti_id=ti_id)
            self._hand_over(workload)
            self.fail(workload.ti.key, info=reason)
            return
        self._hand_over(workload)

    # --- Outcomes back ----------------------------------------------------------------------------

    def sync(self) -> None:
        """Report outcomes from the ledger to the scheduler, after a rest if workers have enough to do."""
        from sqlalchemy.exc import SQLAlchemyError

        self._started.throttle.rest()
        if not self._started.listener.has_news():
            return
        try:
            self._sync()
        except SQLAlchemyError as error:
            log.warning("executor.sync_failed", error=str(error))
        except Exception:
            log.exception("executor.sync_failed")

    def _sync(self) -> None:
        from airbridge.executor.ledger import items

        with _airflow.new_session() as session:
            self._finish_adoption(session)
            self._drop_taken_over(session)
            rows = items.unacknowledged(session, self._job_id)
            if not rows:
                return
            ti_ids = [row.ti_id for row in rows]
            views = _airflow.task_views(session, ti_ids)
            opened = items.opened(session, ti_ids)
            reported = [
                row
                for row in rows
                if self._close_reopened(row, opened) or self._report_safely(row, views.get(row.ti_id))
            ]
            items.acknowledge(session, [row.id for row in reported])
        for region in {row.region for row in rows}:
            self._started.outbox.wake(region)

    def _close_reopened(self, row: WorkItemRow, opened: Mapping[str, int | None]) -> bool:
        """Return whether the task has another open row by now, and there is nothing to report.

        Of a row that another scheduler has placed, the task is no longer this one's: it would not take it a second time.
        """
        if row.ti_id not in opened:
            return False
        if opened[row.ti_id] != self._job_id:
            self.running.discard(_key(row))
        return True

    def _report_safely(self, row: WorkItemRow, view: _airflow.TaskView | None) -> bool:
        """Report one outcome as `_report` does; one that fails is logged, and keeps no other back."""
        from sqlalchemy.exc import SQLAlchemyError

        try:
            return self._report(row, view)
        except SQLAlchemyError:
            raise
        except Exception:
            log.exception("executor.report_failed", item_id=row.id, ti_id=row.ti_id)
            return False

    def _report(self, row: WorkItemRow, view: _airflow.TaskView | None) -> bool:
        """Report one outcome; False if it must be reported again until Airflow has acted on it.

        A success adds nothing, because the worker's report has set the state already. Only final states are reported: a
        deferred task may be queued again by now, and the scheduler would take the event for the end of the new attempt.
        """
        key = _key(row)
        if view is not None and _is_live(view, row) and self._is_failure(row, key):
            self._report_failure(row, key, view)
            return False
        self._reported_at.pop(row.id, None)
        self.running.discard(key)
        if view is not None and view.try_number == row.try_number and view.state in State.finished:
            self.change_state(key, _final(view.state))
        return True

    def _is_failure(self, row: WorkItemRow, key: TaskInstanceKey) -> bool:
        """Return whether no worker runs a task any more that Airflow still has queued or running."""
        from airbridge.executor.ledger.items import FAILURES
        from airbridge.executor.ledger.models import Outcome

        cancelled = row.outcome == Outcome.CANCELLED and key not in self.queued_tasks
        return cancelled or row.outcome in FAILURES

    def _report_failure(self, row: WorkItemRow, key: TaskInstanceKey, view: _airflow.TaskView) -> None:
        self.running.discard(key)
        if view.queued_by_job_id not in {None, self._job_id}:
            row.owner_job_id = view.queued_by_job_id  # that scheduler reports it
            return
        now = time.monotonic()
        reported_at = self._reported_at.get(row.id)
        if reported_at is None:
            self.log_task_event(event=f"airbridge {row.outcome}", extra=row.detail or "", ti_key=key)
        if reported_at is None or now - reported_at >= REPEAT_FAILURE_SECONDS:
            self._reported_at[row.id] = now
            self.fail(key, info=row.detail)

    def log_task_event(self, *, event: str, extra: str, ti_key: TaskInstanceKey) -> None:
        """Add an event to Airflow's audit log.

        The entry is also kept here: Airflow 3.0.4 saves entries from a generator, and one without another
        reference is collected before it is written, as an empty row.
        """
        super().log_task_event(event=event, extra=extra, ti_key=ti_key)
        self._event_logs.append(self._task_event_logs[-1])

    def send_callback(self, request: Any) -> None:
        """Send a callback to the dag-processor, which runs it with the code of the task's run."""
        super().send_callback(_airflow_loop.with_code_of_run(request))

    # --- Adoption and revocation ------------------------------------------------------------------

    def try_adopt_task_instances(self, tis: Sequence[Any]) -> Sequence[Any]:
        """Take over task instances of a scheduler that is gone; return those that the ledger does not know."""
        from airbridge.executor.ledger import items

        if not tis:
            return []
        # The scheduler's own session: it holds the task instances, and SQLite has one writer only.
        session = _airflow.session_of(tis[0])
        ids = {str(ti.id) for ti in tis}
        known = items.adopt(session, ids, self._job_id)
        self._to_adopt |= known
        for ti in tis:
            if str(ti.id) in known:
                self.running.add(ti.key)
        log.info("executor.adopted", adopted=len(known), unknown=len(ids - known))
        return [ti for ti in tis if str(ti.id) not in known]

    def _finish_adoption(self, session: Any) -> None:
        """Adopt what another transaction held before; what one still holds is adopted next time."""
        from airbridge.executor.ledger import items

        if self._to_adopt:
            items.adopt(session, self._to_adopt, self._job_id)
            self._to_adopt = items.owned_by_others(session, self._to_adopt, self._job_id)

    def _drop_taken_over(self, session: Any) -> None:
        """Drop the tasks that another scheduler has adopted, because it took this one for dead: their outcomes go to that one.

        Here each would occupy a slot for good.
        """
        from airbridge.executor.ledger import items

        now = time.monotonic()
        if self._to_adopt or not self.running or now < self._owned_at + OWNED_SECONDS:
            return
        self._owned_at = now
        gone = self.running - {_key(row) for row in items.owned(session, self._job_id)}
        self.running -= gone
        if gone:
            log.warning("executor.taken_over", count=len(gone), owner_job_id=self._job_id)

    def revoke_task(self, *, ti: Any) -> None:
        """Drop a task that is stuck in queued, and cancel its unclaimed work item. Raises nothing."""
        from airbridge.executor.ledger import items

        self.queued_tasks.pop(ti.key, None)
        self.running.discard(ti.key)
        try:
            with _airflow.nested(_airflow.session_of(ti)) as session:
                items.revoke(session, str(ti.id), "revoked: stuck in queued")
        except Exception:
            log.exception("executor.revoke_failed", ti_id=str(ti.id))

    # --- Command line -----------------------------------------------------------------------------

    @staticmethod
    def get_cli_commands() -> list[Any]:
        """Return ``airflow airbridge ...``."""
        from airbridge.executor.cli import commands

        return commands()


def _key(row: Any) -> TaskInstanceKey:
    return TaskInstanceKey(
        dag_id=row.dag_id,
        task_id=row.task_id,
        run_id=row.run_id,
        try_number=row.try_number,
        map_index=row.map_index,
    )


def _is_live(view: _airflow.TaskView, row: WorkItemRow) -> bool:
    return view.try_number == row.try_number and view.state in {
        TaskInstanceState.QUEUED,
        TaskInstanceState.RUNNING,
    }


def _final(state: str | None) -> TaskInstanceState:
    """Map a final task state to the two states that an executor reports."""
    failed = {TaskInstanceState.FAILED, TaskInstanceState.UPSTREAM_FAILED}
    return TaskInstanceState.FAILED if state in failed else TaskInstanceState.SUCCESS
