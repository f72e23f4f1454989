"""Calls of the Task Execution API that every task makes, in statements of our own on the tables of Airflow 3.0.4.

Airflow's routes load ORM entities and build each statement anew; that was two fifths of the gateway's Python time. Here a start is two
statements, a success one and rendered fields two or three, all built once. Only the plain case is answered: for anything else (a duplicate
start, a resumed task, asset events, a state that does not fit, an invalid body) `TaskCalls.answer` returns None and changes nothing, and the
route answers. tests/contract/test_task_calls.py makes the same calls both ways and compares answers and rows.
"""

from __future__ import annotations

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy import bindparam, delete, exists, extract, func, select, update
from sqlalchemy.dialects import postgresql

from airbridge.control_plane._airflow_dags import Dags, version_columns, version_of_run

_PATH: Final = re.compile(r"task-instances/([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12})/(run|state|rtif)\Z")
_STARTED, _STORED, _ENDED = 200, 201, 204
# Tasks of runs whose old rendered fields were pruned by this process.
_MOST_PRUNED: Final = 10_000

_NAMES: Final = ("dag_id", "task_id", "run_id", "map_index")
_OF_RUN: Final = (
    *("dag_id", "run_id", "logical_date", "data_interval_start", "data_interval_end", "run_after"),
    *("start_date", "end_date", "clear_number", "run_type", "conf"),
)
_RENDERED_ANSWER: Final = json.dumps({"message": "Rendered task instance fields successfully set"})

# Status and JSON text.
Answered = tuple[int, str | None]


class TaskCalls:
    """Answers plain starts, successes and rendered fields. Thread-safe."""

    def __init__(self, dags: Dags) -> None:
        self._dags = dags
        self._sql = _Statements()
        self._handlers: Mapping[tuple[str, str], Callable[[Any, str, str], Answered | None]] = {
            ("PATCH", "run"): self._start,
            ("PATCH", "state"): self._succeed,
            ("PUT", "rtif"): self._store_rendered,
        }
        self._pruned: OrderedDict[tuple[str, str, str], None] = OrderedDict()
        self._lock = threading.Lock()

    def answer(self, session: Any, method: str, path: str, query: str, body: str | None) -> Answered | None:
        """Make a call on `session`; None, with nothing changed, if Airflow's route must make it.

        Raises the errors of SQLAlchemy: the transaction is void then.
        """
        found = _PATH.match(path)
        if found is None or query or not body or session.get_bind().dialect.name != "postgresql":
            return None
        handler = self._handlers.get((method, found[2]))
        return handler(session, found[1], body) if handler else None

    def _start(self, session: Any, ti_id: str, body: str) -> Answered | None:
        from airflow.api_fastapi.execution_api.datamodels.taskinstance import TIEnterRunningPayload
        from airflow.utils import timezone

        try:
            payload = TIEnterRunningPayload.model_validate_json(body)
        except ValidationError:
            return None
        row = session.execute(self._sql.to_start, {"of": ti_id}).mappings().first()
        if (
            row is None
            or row["state"] != "queued"
            or row["next_method"]
            or row["has_next_kwargs"]
            or row["has_events"]
        ):
            return None
        context = self._context(session, row)
        if context is None:
            return None
        values = payload.model_dump(exclude_unset=True)
        session.execute(self._sql.start, {"of": ti_id, **values, "at": timezone.utcnow()})
        return _STARTED, context

    def _context(self, session: Any, row: Any) -> str | None:
        """Return the answer to a start as JSON; None where the route would raise."""
        from airflow.api_fastapi.execution_api.datamodels.taskinstance import TIRunContext
        from airflow.api_fastapi.execution_api.routes.task_instances import (
            _get_upstream_map_indexes,
            _is_eligible_to_retry,
        )
        from airflow.exceptions import AirflowException

        dag = self._dags.of_run(session, row, row["dag_id"], row["task_id"])
        try:
            upstream = (
                dict(
                    _get_upstream_map_indexes(
                        dag.get_task(row["task_id"]), row["map_index"], row["run_id"], session
                    )
                )
                if dag
                else None
            )
            context = TIRunContext(
                dag_run=SimpleNamespace(**{name: row[name] for name in _OF_RUN}, consumed_asset_events=[]),
                task_reschedule_count=row["reschedules"],
                max_tries=row["max_tries"],
                variables=[],
                connections=[],
                xcom_keys_to_clear=self._xcoms(session, row) if row["has_xcoms"] else [],
                should_retry=_is_eligible_to_retry(row["state"], row["try_number"], row["max_tries"]),
                upstream_map_indexes=upstream,
            )
        except (ValidationError, AirflowException):
            return None
        text: str = context.model_dump_json(exclude_unset=True)
        return text

    def _xcoms(self, session: Any, row: Any) -> list[str]:
        query = self._sql.xcoms if row["map_index"] < 0 else self._sql.xcoms_of_mapped
        return list(session.scalars(query, {name: row[name] for name in _NAMES}))

    def _succeed(self, session: Any, ti_id: str, body: str) -> Answered | None:
        from airflow.api_fastapi.execution_api.datamodels.taskinstance import TISuccessStatePayload

        try:
            payload = TISuccessStatePayload.model_validate_json(body)
        except ValidationError:
            return None
        if payload.task_outlets or payload.outlet_events:
            return None
        values = payload.model_dump(include={"end_date", "rendered_map_index"}, exclude_unset=True)
        statement = self._sql.succeed_named if "rendered_map_index" in values else self._sql.succeed
        changed = session.execute(statement, {"of": ti_id, **values})
        return (_ENDED, None) if changed.rowcount == 1 else None

    def _store_rendered(self, session: Any, ti_id: str, body: str) -> Answered | None:
        from airflow.sdk.execution_time.secrets_masker import redact

        fields = _json_object(body)
        # For empty ones, Airflow looks for fields of its own.
        if not fields:
            return None
        row = session.execute(self._sql.names, {"of": ti_id}).mappings().first()
        if row is None:
            return None
        redacted = {field: redact(value, field) for field, value in fields.items()}
        session.execute(self._sql.store_rendered, {**row, "rendered_fields": redacted})
        self._prune(session, row)
        return _STORED, _RENDERED_ANSWER

    def _prune(self, session: Any, row: Any) -> None:
        """Delete the rendered fields of old runs, as Airflow does at every write; here once for a task's run."""
        keep = self._sql.most_rendered
        key = (row["dag_id"], row["task_id"], row["run_id"])
        with self._lock:
            known = key in self._pruned
            self._pruned[key] = None
            while len(self._pruned) > _MOST_PRUNED:
                self._pruned.popitem(last=False)
        if keep > 0 and not known:
            of = {"of_dag": row["dag_id"], "of_task": row["task_id"], "keep": keep}
            session.execute(self._sql.prune_rendered, of)


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


class _Statements:
    """Statements on Airflow's tables, built once: SQLAlchemy keeps the key under which it caches a statement's SQL with the statement."""

    def __init__(self) -> None:
        from airflow.configuration import conf
        from airflow.models.taskinstance import TaskInstance

        self.most_rendered: int = conf.getint("core", "max_num_rendered_ti_fields_per_task", fallback=0)
        self._ti = TaskInstance.__table__
        self._of = self._ti.c.id == bindparam("of")
        self.to_start = self._to_start()
        self.start = self._update("hostname", "unixname", "pid", "state", "start_date").values(
            end_date=None, last_heartbeat_at=bindparam("at")
        )
        self.succeed = self._succeed()
        self.succeed_named = self.succeed.values(rendered_map_index=bindparam("rendered_map_index"))
        self.names = select(*(self._ti.c[name] for name in _NAMES)).where(self._of)
        self.xcoms, self.xcoms_of_mapped = self._xcoms()
        self.store_rendered = self._store_rendered()
        self.prune_rendered = self._prune_rendered()

    def _to_start(self) -> Any:
        from airflow.models.asset import association_table as events
        from airflow.models.dagrun import DagRun
        from airflow.models.taskreschedule import TaskReschedule
        from airflow.models.xcom import XComModel

        ti, run = self._ti, DagRun.__table__
        xcom, reschedule = XComModel.__table__, TaskReschedule.__table__
        same_run = (ti.c.dag_id == run.c.dag_id) & (ti.c.run_id == run.c.run_id)
        same_task = (xcom.c[name] == ti.c[name] for name in ("dag_id", "task_id", "run_id"))
        reschedules = select(func.count()).where(reschedule.c.ti_id == ti.c.id)
        return (
            select(
                *(
                    ti.c[name]
                    for name in ("state", "task_id", "map_index", "next_method", "try_number", "max_tries")
                ),
                ti.c.next_kwargs.is_not(None).label("has_next_kwargs"),
                *(run.c[name] for name in _OF_RUN),
                *version_columns(),
                exists().where(events.c.dag_run_id == run.c.id).label("has_events"),
                exists().where(*same_task).label("has_xcoms"),
                reschedules.scalar_subquery().label("reschedules"),
            )
            .select_from(ti.join(run, same_run).outerjoin(*version_of_run()))
            .where(self._of)
            .with_for_update(of=ti)
        )

    def _update(self, *names: str) -> Any:
        return update(self._ti).where(self._of).values({name: bindparam(name) for name in names})

    def _succeed(self) -> Any:
        seconds = extract(
            "EPOCH", bindparam("end_date", type_=self._ti.c.end_date.type) - self._ti.c.start_date
        )
        changes = self._update("end_date").values(duration=seconds, state="success")
        return changes.where(self._ti.c.state == "running")

    def _xcoms(self) -> tuple[Any, Any]:
        from airflow.models.xcom import XComModel

        xcom = XComModel.__table__
        same_task = [xcom.c[name] == bindparam(name) for name in ("dag_id", "task_id", "run_id")]
        of_task = select(xcom.c.key).where(*same_task)
        return of_task, of_task.where(xcom.c.map_index == bindparam("map_index"))

    def _store_rendered(self) -> Any:
        from airflow.models.renderedtifields import RenderedTaskInstanceFields

        table = RenderedTaskInstanceFields.__table__
        insert = postgresql.insert(table)
        insert = insert.values({name: bindparam(name) for name in (*_NAMES, "rendered_fields")})
        changed = {"rendered_fields": insert.excluded.rendered_fields}
        return insert.on_conflict_do_update(index_elements=list(table.primary_key), set_=changed)

    def _prune_rendered(self) -> Any:
        from airflow.models.dagrun import DagRun
        from airflow.models.renderedtifields import RenderedTaskInstanceFields

        table, run = RenderedTaskInstanceFields.__table__, DagRun.__table__
        of_task = (table.c.dag_id == bindparam("of_dag"), table.c.task_id == bindparam("of_task"))
        newest = (
            select(table.c.run_id, run.c.logical_date)
            .select_from(table.join(run, (table.c.dag_id == run.c.dag_id) & (table.c.run_id == run.c.run_id)))
            .where(*of_task)
            .distinct()
            .order_by(run.c.logical_date.desc())
            .limit(bindparam("keep"))
            .subquery()
        )
        return delete(table).where(*of_task, ~exists().where(newest.c.run_id == table.c.run_id))
