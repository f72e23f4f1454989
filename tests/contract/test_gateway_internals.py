"""Internals that `airbridge.control_plane._airflow` depends on. A failure here means that a pinned dependency has changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import anyio.to_thread
import pytest
from fastapi.dependencies import utils
from sqlalchemy import text
from starlette.concurrency import run_in_threadpool
from tests.integration.gateway import seeding
from tests.support.airflow_home import Metadata

from airbridge.control_plane import _airflow
from airbridge.control_plane._airflow import ExecutionApp, ExecutionAppError
from airbridge.control_plane.gateway.auth import task_permissions
from airbridge.control_plane.gateway.auth.task_permissions import Call
from airbridge.control_plane.gateway.database import RolledBack, unit


@pytest.fixture(scope="module")
def app() -> ExecutionApp:
    return ExecutionApp()


@pytest.fixture
def task(postgres_metadata: Metadata) -> Iterator[Any]:
    with postgres_metadata.session() as session:
        [ti] = seeding.queued_tasks(session)
        yield ti


def start(pid: int = 1) -> str:
    now = datetime.now(UTC).isoformat()
    return json.dumps({"state": "running", "hostname": "w", "unixname": "u", "pid": pid, "start_date": now})


def call(method: str, path: str, body: str | None = None, query: str = "") -> Call:
    return Call(method, path, query, body, ends=False)


def state_of(metadata: Metadata, ti: Any) -> str:
    with metadata.session() as session:
        query = text("SELECT state FROM task_instance WHERE id = :id")
        found: str = session.execute(query, {"id": ti.id}).scalar_one()
        return found


def test_thread_pool_hop_runs_inline() -> None:
    """`run_inline` needs no event loop, and what frameworks send to worker threads stays in this one."""

    async def hops() -> list[int]:
        return [await run_in_threadpool(lambda: 1), await anyio.to_thread.run_sync(lambda: 2)]

    ExecutionApp()
    assert _airflow.run_inline(hops()) == [1, 2]


def test_waiting_coroutine_raises() -> None:
    """A coroutine that suspends cannot run inline, and raises an error."""
    import asyncio

    async def waits() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waited for an event loop"):
        _airflow.run_inline(waits())


def test_permitted_routes_exist_in_airflow(app: ExecutionApp) -> None:
    """Each row of the table names a route of the Execution API; each route is in the table, or left out on purpose."""
    left_out = {"/task-instances/{task_instance_id}/run", "/task-instances/{task_instance_id}/heartbeat"}
    samples = {"task_instance_id": "00000000-0000-0000-0000-000000000001", "offset": "1"}
    missing = set()
    for route in app._app.router.versioned_routers[app.api_version].routes:
        path = getattr(route, "path", "")
        if path.startswith("/health") or path == "/openapi.json":
            continue
        concrete = path.format(**{name: samples.get(name, name) for name in route.param_convertors}).lstrip(
            "/"
        )
        if any(task_permissions._find(method, concrete) is None for method in route.methods):
            missing.add(path)
    assert missing == left_out


def test_a_call_joins_the_callers_transaction(
    app: ExecutionApp, postgres_metadata: Metadata, task: Any
) -> None:
    """Writes of Airflow's routes, also through sessions and after commits of their own, are undone by the caller's rollback."""
    xcom = f"xcoms/{task.dag_id}/{task.run_id}/{task.task_id}/key"

    def call_and_give_up() -> None:
        with unit() as work:
            for made, status in (
                (call("PATCH", f"task-instances/{task.id}/run", start()), 200),
                (call("POST", xcom, '"1"'), 201),
                (call("DELETE", xcom), 200),  # commits its session
                (call("PUT", "variables/undone", '{"val": "x"}'), 201),  # on a session of its own
                (call("GET", "variables/undone"), 200),
                (call("GET", "connections/none"), 404),
            ):
                assert work.call(app, made).status == status, made
            assert work.root.is_active
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        call_and_give_up()
    assert state_of(postgres_metadata, task) == "queued"
    with unit() as work:
        assert work.call(app, call("GET", "variables/undone")).status == 404


def test_start_is_idempotent_per_process(app: ExecutionApp, postgres_metadata: Metadata, task: Any) -> None:
    """The same (hostname, unixname, pid) may start again; another gets 409. Claims rely on both."""
    path = f"task-instances/{task.id}/run"
    with unit() as work:
        assert [work.call(app, call("PATCH", path, start(pid))).status for pid in (1, 1, 2)] == [
            200,
            200,
            409,
        ]


def test_app_5xx_raises_with_cause(app: ExecutionApp, postgres_metadata: Metadata, task: Any) -> None:
    """A broken database raises an error that is distinct from a response."""

    def break_and_call() -> None:
        with unit() as work:
            work.session.execute(text("ALTER TABLE xcom RENAME TO gone"))
            work.call(app, call("PATCH", f"task-instances/{task.id}/run", start()))

    with pytest.raises(ExecutionAppError) as failed:
        break_and_call()
    assert type(failed.value.__cause__).__name__ == "ProgrammingError"
    assert state_of(postgres_metadata, task) == "queued"


def test_rollback_in_app_is_detected(app: ExecutionApp, postgres_metadata: Metadata, task: Any) -> None:
    """If Airflow's code undoes the transaction, nothing after it can be committed by mistake."""

    def roll_back_between_calls() -> None:
        with unit() as work:
            work.call(app, call("PATCH", f"task-instances/{task.id}/run", start()))
            with _airflow.session_on(work.connection) as session:
                session.execute(text("SELECT 1"))
                session.rollback()
            work.call(app, call("GET", "variables/none"))

    with pytest.raises(RolledBack):
        roll_back_between_calls()
    assert state_of(postgres_metadata, task) == "queued"


def test_dependency_analysis_is_cached(
    app: ExecutionApp, postgres_metadata: Metadata, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FastAPI looks at the signatures of a route's dependencies when it is first called, and not again."""
    analysed: list[Any] = []
    look = utils.get_typed_signature

    def count(call: Any) -> Any:
        analysed.append(call)
        return look(call)

    monkeypatch.setattr(utils, "get_typed_signature", count)
    path = f"task-instances/{task.id}/run"
    with unit() as work:
        # The first start is answered without the route, and one like it by the route.
        for _ in range(2):
            assert work.call(app, call("PATCH", path, start())).status == 200
        analysed.clear()
        assert work.call(app, call("PATCH", path, start())).status == 200
    assert analysed == []


def test_rendered_fields_are_upserted(app: ExecutionApp, postgres_metadata: Metadata, task: Any) -> None:
    """One row a task instance, its secrets masked as Airflow masks them, and none for a task that there is not."""
    path = f"task-instances/{task.id}/rtif"
    for fields in ({"first": "1"}, {"env": {"password": "hunter2"}, "n": [1, None]}):
        with unit() as work:
            assert work.call(app, call("PUT", path, json.dumps(fields))).status == 201
    with postgres_metadata.session() as session:
        query = text("SELECT rendered_fields FROM rendered_task_instance_fields WHERE run_id = :run")
        [found] = session.execute(query, {"run": task.run_id}).scalars()
        assert found == {"env": {"password": "***"}, "n": [1, None]}
    missing = "task-instances/00000000-0000-0000-0000-000000000001/rtif"
    with unit() as work:
        assert work.call(app, call("PUT", missing, "{}")).status == 404


def test_threads_find_database_connections(postgres_metadata: Metadata) -> None:
    """With the recommended settings no thread of the gateway waits for a connection."""
    from dataclasses import fields

    from airbridge.control_plane import _airflow
    from airbridge.control_plane.gateway.threads import ThreadPools
    from airbridge.executor.settings import Settings

    threads = ThreadPools.of(
        next(each.default for each in fields(Settings) if each.name == "gateway_threads"), connections=1
    )
    try:
        available = _airflow.most_connections()
        assert available is not None
        assert available >= threads.database_connections
    finally:
        threads.close()
