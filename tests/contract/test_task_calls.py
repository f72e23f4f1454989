"""`TaskCalls` beside Airflow's own routes: the same calls, made both ways on the same rows, give the same answers and the same rows."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final
from uuid import uuid4

import pytest
from sqlalchemy import event, select, text
from tests.integration.gateway import seeding
from tests.support.airflow_home import Metadata

from airbridge.control_plane._airflow import Answer, ExecutionApp, ExecutionAppError
from airbridge.control_plane.gateway.auth.task_permissions import Call
from airbridge.control_plane.gateway.database import Unit, unit

TABLES: Final = (
    *("task_instance", "task_instance_history", "rendered_task_instance_fields", "xcom"),
    *("task_reschedule", "asset_event", "dag_run", "trigger"),
)
START: Final = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)

# Method, path with the names of the task, and body.
Made = tuple[str, str, Any]


class _Undo(Exception):  # noqa: N818 - ends a transaction
    pass


@pytest.fixture(scope="module")
def app() -> ExecutionApp:
    return ExecutionApp()


@pytest.fixture
def task(postgres_metadata: Metadata) -> Iterator[Any]:
    with postgres_metadata.session() as session:
        [ti] = seeding.queued_tasks(session)
        yield ti


def start(**changes: Any) -> Made:
    body = {"state": "running", "hostname": "w", "unixname": "u", "pid": 1, "start_date": START.isoformat()}
    return "PATCH", "task-instances/{id}/run", {**body, **changes}


def end(state: str = "success", **changes: Any) -> Made:
    body = {"state": state, "end_date": (START + timedelta(seconds=3.25)).isoformat(), **changes}
    return "PATCH", "task-instances/{id}/state", body


def rendered(fields: Any) -> Made:
    return "PUT", "task-instances/{id}/rtif", fields


def xcom(key: str = "k") -> Made:
    return "POST", "xcoms/{dag_id}/{run_id}/{task_id}/" + key, "value"


def changed(**columns: Any) -> Callable[[Any, Any], None]:
    def change(session: Any, ti: Any) -> None:
        sets = ", ".join(f"{name} = :{name}" for name in columns)
        session.execute(text(f"UPDATE task_instance SET {sets} WHERE id = :id"), {"id": ti.id, **columns})

    return change


def run_changed(**columns: Any) -> Callable[[Any, Any], None]:
    def change(session: Any, ti: Any) -> None:
        sets = ", ".join(f"{name} = :{name}" for name in columns)
        query = text(f"UPDATE dag_run SET {sets} WHERE dag_id = :dag_id AND run_id = :of_run")
        session.execute(query, {"dag_id": ti.dag_id, "of_run": ti.run_id, **columns})

    return change


def rescheduled(session: Any, ti: Any) -> None:
    from airflow.models.taskreschedule import TaskReschedule

    session.add(TaskReschedule(ti.id, START, START, START))
    session.flush()


def consumed_event(session: Any, ti: Any) -> None:
    from airflow.models.asset import AssetActive, AssetEvent, AssetModel
    from airflow.models.dagrun import DagRun

    asset = AssetModel(id=1_000_000, name=f"a-{ti.dag_id}", uri=f"s3://{ti.dag_id}")
    session.add(asset)
    session.flush()
    session.add(AssetActive.for_asset(asset))
    run = session.scalars(select(DagRun).where(DagRun.dag_id == ti.dag_id)).one()
    run.consumed_asset_events.append(AssetEvent(id=1_000_000, asset_id=asset.id, timestamp=START))
    session.flush()


def of_older_version(session: Any, ti: Any) -> None:
    """Deploy a version of the DAG in which there is another task alone; the run keeps the version before."""
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.providers.standard.operators.empty import EmptyOperator
    from airflow.sdk import DAG

    run_changed(bundle_version="before")(session, ti)
    with DAG(ti.dag_id, schedule=None) as dag:
        EmptyOperator(task_id="other")
    SerializedDagModel.write_dag(dag, seeding.BUNDLE.name, "after", session=session)
    session.flush()


def no_serialised_dag(session: Any, ti: Any) -> None:
    session.execute(text("DELETE FROM serialized_dag WHERE dag_id = :dag"), {"dag": ti.dag_id})


def untouched(session: Any, ti: Any) -> None:
    pass


CASES: Final[Mapping[str, tuple[Callable[[Any, Any], None], Sequence[Made]]]] = {
    "start": (untouched, [start()]),
    "start with retries": (changed(max_tries=2), [start()]),
    "last try": (changed(max_tries=2, try_number=3), [start()]),
    "start with a configuration": (run_changed(conf='{"a": [1, {"b": null}]}'), [start()]),
    "start without a data interval": (
        run_changed(data_interval_start=None, data_interval_end=None, logical_date=None),
        [start()],
    ),
    "run of a schedule": (run_changed(run_type="scheduled", clear_number=3), [start()]),
    "run without a start": (run_changed(start_date=None), [start()]),
    "run of no known type": (run_changed(run_type="odd"), [start()]),
    "start twice": (untouched, [start(), start()]),
    "start by two": (untouched, [start(), start(pid=2)]),
    "start after a try that pushed": (untouched, [start(), xcom("a"), xcom("b"), end("failed")]),
    "start with xcoms": (untouched, [xcom("a"), xcom("b"), start()]),
    "start of a mapped task with xcoms": (
        changed(map_index=3),
        [xcom("a"), ("POST", "xcoms/{dag_id}/{run_id}/{task_id}/b?map_index=3", "v"), start()],
    ),
    "start after reschedules": (rescheduled, [start()]),
    "start of a resumed task": (
        changed(next_method="go", next_kwargs='{"__type": "dict", "__var": {"a": 1}}'),
        [start()],
    ),
    "start with empty kwargs": (changed(next_kwargs="null"), [start()]),
    "start by an asset event": (consumed_event, [start()]),
    "start of a task that restarts": (changed(state="restarting"), [start()]),
    "start of a task without a DAG": (no_serialised_dag, [start()]),
    "start of a task that its DAG has no more": (changed(task_id="gone"), [start()]),
    "start of a task that its DAG has no more, in an older run": (of_older_version, [start()]),
    "start of a task that has ended": (changed(state="success"), [start()]),
    "start with an unknown field": (untouched, [start(color="red")]),
    "start without a process": (untouched, [start(pid=None)]),
    "start without a time zone": (untouched, [start(start_date="2026-01-02T03:04:05")]),
    "start in another time zone": (untouched, [start(start_date="2026-01-02T03:04:05+05:30")]),
    "start with a NUL": (untouched, [start(hostname="a\0b")]),
    "success": (untouched, [start(), end()]),
    "success with empty lists": (untouched, [start(), end(task_outlets=[], outlet_events=[])]),
    "success with a name": (untouched, [start(), end(rendered_map_index="third")]),
    "success without a name": (
        changed(rendered_map_index="old"),
        [start(), end(rendered_map_index=None)],
    ),
    "success that keeps a name": (changed(rendered_map_index="old"), [start(), end()]),
    "success before the start": (untouched, [start(), end(end_date="2025-01-01T00:00:00Z")]),
    "success twice": (untouched, [start(), end(), end()]),
    "success of a task not started": (untouched, [end()]),
    "success without a time zone": (untouched, [start(), end(end_date="2026-01-02T03:04:05")]),
    "success with an outlet": (
        untouched,
        [start(), end(task_outlets=[{"name": "x", "uri": "s3://x", "type": "Asset"}], outlet_events=[])],
    ),
    "success with an unknown field": (untouched, [start(), end(color="red")]),
    "failure": (untouched, [start(), end("failed")]),
    "retry": (changed(max_tries=2), [start(), end("up_for_retry")]),
    "rendered fields": (untouched, [start(), rendered({"env": {"password": "x"}, "n": [1, None, "é"]})]),
    "rendered fields twice": (untouched, [rendered({"a": "1"}), rendered({"b": {"api_key": "2"}})]),
    "rendered fields of a mapped task": (changed(map_index=3), [rendered({"a": "1"})]),
    "rendered fields with a NUL": (untouched, [rendered({"a": "x\0y"})]),
    "rendered fields that are no object": (untouched, [rendered([1])]),
}


def made_both_ways(
    app: ExecutionApp, ti: Any, prepare: Callable[[Any, Any], None], calls: Sequence[Made]
) -> list[Any]:
    """Return for each way the answers, or the error, and the rows of all tables before it is undone."""
    ours = app._task_calls.answer
    found: list[Any] = []
    for answer in (ours, lambda *_: None):
        app._task_calls.answer = answer  # type: ignore[method-assign]
        try:
            found.append(_made(app, ti, prepare, calls))
        finally:
            app._task_calls.answer = ours  # type: ignore[method-assign]
    return found


def _made(app: ExecutionApp, ti: Any, prepare: Callable[[Any, Any], None], calls: Sequence[Made]) -> Any:
    answers: list[Any] = []
    rows: dict[str, Any] = {}

    def make() -> None:
        with unit() as work:
            prepare(work.session, ti)
            work.session.flush()
            answers.extend(_plain(work.call(app, _call(ti, *made))) for made in calls)
            rows.update({name: _rows(work, name) for name in TABLES})
            raise _Undo

    with pytest.raises(Exception) as raised:  # noqa: PT011 - which one is part of what is compared
        make()
    return answers, rows, type(raised.value), type(raised.value.__cause__)


def _call(ti: Any, method: str, path: str, body: Any) -> Call:
    names = {"id": ti.id, "dag_id": ti.dag_id, "run_id": ti.run_id, "task_id": ti.task_id}
    path, _, query = path.format(**names).partition("?")
    return Call(method, path, query, json.dumps(body), ends=False)


def _plain(answer: Answer) -> Any:
    return answer.status, dict(answer.headers), json.loads(answer.body) if answer.body else None


def _rows(work: Unit, table: str) -> list[dict[str, Any]]:
    rows = [dict(row) for row in work.session.execute(text(f"SELECT * FROM {table}")).mappings()]
    return sorted(({name: _comparable(name, value) for name, value in row.items()} for row in rows), key=repr)


def _comparable(column: str, value: Any) -> Any:
    """Return a value without what differs from one call to the next: the present moment, and new ids."""
    if column in {"id", "task_instance_id"}:
        return None
    if isinstance(value, datetime) and datetime.now(UTC) - value < timedelta(minutes=2):
        return "now"
    if column == "duration" and value is not None and value > 1e6:
        return "until now"
    return value


@pytest.mark.parametrize("case", CASES)
def test_answers_and_rows_are_those_of_airflow(app: ExecutionApp, task: Any, case: str) -> None:
    """What a task and the scheduler find is what Airflow's routes would have left."""
    prepare, calls = CASES[case]
    ours, airflows = made_both_ways(app, task, prepare, calls)
    assert ours == airflows


def test_unknown_task_is_answered_by_airflow(app: ExecutionApp, task: Any) -> None:
    """A task instance that there is not gets Airflow's own refusals."""
    for method, path, body in (start(), end(), rendered({"a": "1"})):
        absent = path.replace("{id}", "00000000-0000-0000-0000-000000000001")
        ours, airflows = made_both_ways(app, task, untouched, [(method, absent, body)])
        assert ours == airflows
        assert ours[0][0][0] == 404


def test_plain_task_takes_few_statements(app: ExecutionApp, postgres_metadata: Metadata, task: Any) -> None:
    """A start is two statements, a success one, rendered fields three, and two for a second task of the run."""
    counts: list[int] = []

    def count(*_: Any) -> None:
        counts[-1] += 1

    with unit() as work:
        # The DAG is read once.
        work.call(app, _call(task, *start()))
        work.session.execute(
            text("UPDATE task_instance SET state = 'queued' WHERE id = :id"), {"id": task.id}
        )
        event.listen(work.connection, "before_cursor_execute", count)
        for made in (start(), rendered({"a": "1"}), rendered({"a": "2"}), end()):
            counts.append(0)
            work.call(app, _call(task, *made))
    assert counts == [2, 3, 2, 1]


def test_old_rendered_fields_are_pruned(
    app: ExecutionApp, postgres_metadata: Metadata, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with Airflow, those of the newest runs stay, by logical date, with all map indexes of each."""
    monkeypatch.setattr(app._task_calls._sql, "most_rendered", 3)
    with unit() as work:
        _copy_run(work.session, task, 5)
        runs = work.session.execute(
            text("SELECT id, run_id FROM task_instance WHERE dag_id = :dag ORDER BY run_id"),
            {"dag": task.dag_id},
        ).all()
        for ti_id, _ in runs:
            path = f"task-instances/{ti_id}/rtif"
            assert work.call(app, Call("PUT", path, "", '{"a": "1"}', ends=False)).status == 201
        kept = work.session.scalars(
            text("SELECT run_id FROM rendered_task_instance_fields WHERE dag_id = :dag ORDER BY run_id"),
            {"dag": task.dag_id},
        ).all()
    newest = sorted(run for _, run in runs)[-3:]
    assert kept == newest


def _copy_run(session: Any, task: Any, count: int) -> None:
    from airflow.models.dagrun import DagRun
    from airflow.models.taskinstance import TaskInstance

    for model in (DagRun, TaskInstance):
        table = model.__table__
        where = (table.c.dag_id == task.dag_id) & (table.c.run_id == task.run_id)
        row = dict(session.execute(select(table).where(where)).mappings().one())
        for number in range(count):
            copy = {**row, "run_id": f"zz-{number}"}
            copy["id"] = str(uuid4()) if model is TaskInstance else 1_000_000 + number
            if model is DagRun:
                moment = row["logical_date"] + timedelta(days=1 + number)
                copy |= {"logical_date": moment, "run_after": moment}
            session.execute(table.insert().values(copy))
    session.flush()


@pytest.mark.parametrize(
    "made", [start(), end(), rendered({"a": "1"})], ids=["start", "end", "rendered fields"]
)
def test_broken_database_is_an_error(
    app: ExecutionApp, postgres_metadata: Metadata, task: Any, made: Made
) -> None:
    """An error of the database is raised, with its cause, and no route is called on the void transaction."""

    def break_and_call() -> None:
        with unit() as work:
            work.session.execute(text("ALTER TABLE task_instance RENAME TO gone"))
            work.call(app, _call(task, *made))

    with pytest.raises(ExecutionAppError) as failed:
        break_and_call()
    assert type(failed.value.__cause__).__name__ == "ProgrammingError"
