"""Airflow internals (3.0.4) that the control plane uses, and those of the frameworks that Airflow pins.

The Task Execution API is Airflow's own FastAPI app. Hosted as Airflow hosts it in process, each call
hops between an event loop and a thread pool several times. Here a call runs to its end in the thread
that makes it, and on a database transaction that the caller owns: `ExecutionApp.call`.
tests/contract/test_gateway_internals.py fails if anything here no longer holds.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import cache
from typing import Any, cast

import sniffio
from anyio._core._eventloop import loaded_backends
from anyio.abc import AsyncBackend
from sqlalchemy import bindparam, func, select
from sqlalchemy.exc import SQLAlchemyError
from starlette.exceptions import HTTPException as StarletteHTTPException
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.requests import Request

from airbridge.control_plane._airflow_dags import CallersDags, Dags
from airbridge.control_plane._airflow_tasks import TaskCalls
from airbridge.control_plane.policy.decisions import AssetRef

JSON_TYPE = b"application/json"
_INLINE = "airbridge-inline"


class ExecutionAppError(Exception):
    """Airflow's app answered 5xx; `__cause__` is the exception behind it, where there was one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Response of Airflow's app: status, headers (lower-case names) and JSON text."""

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: str | None = None


# --- The database ---------------------------------------------------------------------------------


def engine() -> Any:
    """Return Airflow's SQLAlchemy engine, configured by ``[database]``."""
    from airflow import settings

    return settings.engine


def most_connections() -> int | None:
    """Return how many connections the engine opens at once; None if it has no bound."""
    from sqlalchemy.pool import QueuePool

    pool = engine().pool
    if not isinstance(pool, QueuePool) or pool._max_overflow == -1:  # noqa: SLF001  # it has no public name
        return None
    return int(pool.size() + pool._max_overflow)  # noqa: SLF001


def session_on(connection: Any) -> Any:
    """Return a session of Airflow's own kind whose commit does not commit the connection's transaction."""
    from airflow import settings

    return settings.NonScopedSession(bind=connection)


@contextmanager
def thread_session(session: Any) -> Iterator[None]:
    """Make Airflow's ``provide_session`` and ``create_session`` return `session` in this thread."""
    from airflow import settings

    # provide_session and create_session both read scoped_session's registry.
    registry = settings.Session.registry
    registry.set(session)
    try:
        yield
    finally:
        registry.clear()


def task_instance_model() -> Any:
    """Return Airflow's TaskInstance model."""
    from airflow.models.taskinstance import TaskInstance

    return TaskInstance


# --- The Task Execution API -----------------------------------------------------------------------


class _Inline(AsyncBackend):
    """anyio backend without a loop: a call for a worker thread runs at once in this thread."""

    @classmethod
    async def run_sync_in_worker_thread(
        cls,
        func: Callable[..., Any],
        args: Sequence[Any],
        abandon_on_cancel: bool = False,
        limiter: Any = None,
    ) -> Any:
        return func(*args)


def run_inline(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never waits for anything to its end, in this thread and without an event loop."""
    context = contextvars.copy_context()
    # anyio asks sniffio for the backend: with this name set it finds `_Inline` and starts no thread.
    context.run(sniffio.current_async_library_cvar.set, _INLINE)
    try:
        context.run(coroutine.send, None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise RuntimeError("a coroutine that should run inline waited for an event loop")


class ExecutionApp:
    """Airflow's Task Execution API app, called directly."""

    def __init__(self) -> None:
        from airflow.sdk.api.datamodels._generated import API_VERSION

        # anyio looks backends up by name; only run_inline sets this one.
        loaded_backends[_INLINE] = cast("type[AsyncBackend]", _Inline)
        _analyse_dependencies_once()
        self.api_version = API_VERSION
        self._app = _create_app()
        self._task_calls = TaskCalls(self._app.state.dag_bag)
        self._version_var = self._app.router.api_version_var
        routes = self._app.router.versioned_routers[API_VERSION].routes
        self._entry = _entry(self._app.router, routes, self._app.exception_handlers)

    def call(self, session: Any, method: str, path: str, query: str, body: str | None) -> Answer:
        """Make one call on `session`. `path` is decoded and relative to the API's root.

        Raises `ExecutionAppError` for a 5xx, and whatever a route raises that is no HTTP answer.
        """
        plain = self._plain(session, method, path, query, body)
        if plain is not None:
            return plain
        token = _session.set(session)
        version = self._version_var.set(self.api_version)
        try:
            answer: Answer = run_inline(self._call(method, path, query, body))
            return answer
        finally:
            self._version_var.reset(version)
            _session.reset(token)

    def _plain(self, session: Any, method: str, path: str, query: str, body: str | None) -> Answer | None:
        """Make a call that `TaskCalls` can make; None if Airflow's route must."""
        try:
            answered = self._task_calls.answer(session, method, path, query, body)
        except SQLAlchemyError as error:
            raise ExecutionAppError("Database error occurred") from error
        if answered is None:
            return None
        return Answer(answered[0], {"content-type": "application/json"}, answered[1])

    def declared_assets(self, session: Any, dag_id: str, run_id: str, task_id: str) -> frozenset[AssetRef]:
        """Return the assets, references and aliases that the DAG of a run declares as inlets or outlets of a task."""
        dag = self._app.state.dag_bag.of_task(session, dag_id, run_id, task_id)
        task = dag.task_dict.get(task_id) if dag is not None else None
        declared = (*(getattr(task, "inlets", None) or ()), *(getattr(task, "outlets", None) or ()))
        return frozenset(_asset_ref(each) for each in declared)

    async def _call(self, method: str, path: str, query: str, body: str | None) -> Answer:
        content = (body or "").encode()
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "scheme": "https",
            "method": method,
            "path": f"/{path}",
            "raw_path": f"/{path}".encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [
                (b"content-type", JSON_TYPE),
                (b"content-length", str(len(content)).encode()),
                (b"airflow-api-version", self.api_version.encode()),
            ],
            "client": None,
            "server": None,
            "state": {},
            "app": self._app,
        }
        started: dict[str, Any] = {}
        chunks: list[bytes] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            if message["type"] == "http.response.start":
                started.update(message)
            else:
                chunks.append(message.get("body", b""))

        await self._entry(scope, receive, send)
        headers = {
            name.decode("latin-1").lower(): value.decode("latin-1") for name, value in started["headers"]
        }
        # The body is forwarded as text, and its length may change on the way.
        headers.pop("content-length", None)
        text = b"".join(chunks).decode()
        return Answer(int(started["status"]), headers, text or None)


_session: contextvars.ContextVar[Any] = contextvars.ContextVar("airbridge_execution_session")


def _create_app() -> Any:
    from airflow.api_fastapi.common.dagbag import create_dag_bag, dag_bag_from_app
    from airflow.api_fastapi.common.db.common import _get_session
    from airflow.api_fastapi.execution_api.app import create_task_execution_api_app
    from airflow.api_fastapi.execution_api.deps import JWTBearerDep, JWTBearerTIPathDep, JWTRefresherDep
    from airflow.api_fastapi.execution_api.routes.connections import has_connection_access
    from airflow.api_fastapi.execution_api.routes.variables import has_variable_access
    from airflow.api_fastapi.execution_api.routes.xcoms import has_xcom_access

    app = create_task_execution_api_app()
    dags = Dags(create_dag_bag())

    async def allowed() -> None:
        """Allow: the gateway has already checked identity, ownership, scopes and policy."""

    async def current_session() -> Any:
        return _session.get()

    async def current_dag_bag(request: Request) -> Any:
        return CallersDags(dags, _session.get(), request.path_params.get("task_instance_id"))

    for dependency in (
        JWTBearerDep.dependency,
        JWTBearerTIPathDep.dependency,
        JWTRefresherDep.dependency,
        has_connection_access,
        has_variable_access,
        has_xcom_access,
    ):
        app.dependency_overrides[dependency] = allowed
    app.dependency_overrides[_get_session] = current_session
    app.dependency_overrides[dag_bag_from_app] = current_dag_bag
    app.state.dag_bag = dags
    # The versioned routes are generated at the first request otherwise.
    app._cadwyn_initialize()  # noqa: SLF001 - an internal; see the module's docstring
    return app


def _analyse_dependencies_once() -> None:
    """Have FastAPI analyse the signature of a dependency at the first call that needs it.

    FastAPI analyses every dependency at every call once an app overrides any of them. Building an app or a route
    still gets an analysis of its own: only calls in an `ExecutionApp` share the cached one.
    """
    from fastapi.dependencies import utils

    analyse = utils.get_dependant
    if getattr(analyse, "airbridge_once", False):
        return
    known: dict[tuple[Any, ...], Any] = {}

    def get_dependant(**of: Any) -> Any:
        # No session is set: this is not a call of ours, but FastAPI building a route.
        if _session.get(None) is None:
            return analyse(**of)
        key = (of["path"], of["call"], of.get("name"), tuple(of.get("security_scopes") or ()))
        if key not in known:
            known[key] = analyse(**of)
        return known[key]

    get_dependant.airbridge_once = True  # type: ignore[attr-defined] # a mark, so that it is done once
    utils.get_dependant = get_dependant


def _asset_ref(declared: Any) -> AssetRef:
    name, uri = getattr(declared, "name", None), getattr(declared, "uri", None)
    return AssetRef(name, str(uri) if uri else None, alias=type(declared).__name__ == "AssetAlias")


def _entry(router: Any, routes: Any, handlers: Mapping[Any, Any]) -> Any:
    async def route(scope: Any, receive: Any, send: Any) -> None:
        await router.process_request(scope=scope, receive=receive, send=send, routes=routes)

    # Airflow's handler of Exception would hide the cause: it is raised to the caller instead.
    mine = {kind: handler for kind, handler in handlers.items() if kind is not Exception}
    answer_http = mine[StarletteHTTPException]

    async def refuse_5xx(request: Any, error: Any) -> Any:
        if error.status_code >= 500:
            raise ExecutionAppError(str(error.detail)) from (error.__cause__ or error.__context__)
        return await answer_http(request, error)

    mine[StarletteHTTPException] = refuse_5xx
    return ExceptionMiddleware(route, handlers=mine)


# --- Tasks, for the read model --------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Try:
    """One try of a task. `state` is Airflow's; an earlier try has a task instance id of its own."""

    ti_id: str
    try_number: int
    state: str | None
    queue: str | None
    executor: str | None
    scheduled_at: datetime | None
    queued_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    max_tries: int


def tries(session: Any, dag_id: str, run_id: str, task_id: str, map_index: int) -> list[Try]:
    """Return the tries of a task, the current one last."""
    from airflow.models.taskinstancehistory import TaskInstanceHistory

    task = task_instance_model()
    names = (dag_id, run_id, task_id, map_index)
    before = _tries(session, TaskInstanceHistory, TaskInstanceHistory.task_instance_id, names)
    return [*before, *_tries(session, task, task.id, names)]


def _tries(session: Any, model: Any, ti_id: Any, names: tuple[str, str, str, int]) -> list[Try]:
    columns = (
        *(ti_id, model.try_number, model.state, model.queue, model.executor, model.scheduled_dttm),
        *(model.queued_dttm, model.start_date, model.end_date, model.max_tries),
    )
    keys = (model.dag_id, model.run_id, model.task_id, model.map_index)
    query = select(*columns).where(*(key == name for key, name in zip(keys, names, strict=True)))
    return [Try(str(row[0]), *row[1:]) for row in session.execute(query.order_by(model.try_number))]


def map_indexes(session: Any, dag_id: str, run_id: str, task_id: str) -> list[int]:
    """Return the map indexes of a task's instances in order; -1 alone if it is not mapped, none if there is no such task."""
    task = task_instance_model()
    same = (task.dag_id == dag_id, task.run_id == run_id, task.task_id == task_id)
    return list(session.scalars(select(task.map_index).where(*same).order_by(task.map_index)))


def task_of(session: Any, ti_id: str) -> tuple[str, str, str, int] | None:
    """Return the DAG, run, task and map index of a task instance, current or past."""
    from airflow.models.taskinstancehistory import TaskInstanceHistory

    task = task_instance_model()
    for model, key in ((task, task.id), (TaskInstanceHistory, TaskInstanceHistory.task_instance_id)):
        query = select(model.dag_id, model.run_id, model.task_id, model.map_index).where(key == ti_id)
        found = session.execute(query).first()
        if found is not None:
            return tuple(found)
    return None


def first_bundles(session: Any, dag_ids: Collection[str]) -> dict[str, str]:
    """Return which bundle defined each of these DAGs first, of the versions that Airflow has kept."""
    return dict(session.execute(_first_bundles(), {"dag_ids": sorted(dag_ids)}).all())


@cache
def _first_bundles() -> Any:
    """Return the query of `first_bundles`, built once: it is part of every claim."""
    from airflow.models.dag_version import DagVersion

    version = DagVersion.__table__.c
    number = func.min(version.version_number).label("number")
    wanted = version.dag_id.in_(bindparam("dag_ids", expanding=True)) & version.bundle_name.is_not(None)
    first = select(version.dag_id, number).where(wanted).group_by(version.dag_id).subquery()
    return select(version.dag_id, version.bundle_name).join(
        first, (version.dag_id == first.c.dag_id) & (version.version_number == first.c.number)
    )


def latest_run(session: Any, dag_id: str) -> str | None:
    """Return the id of a DAG's newest run."""
    from airflow.models.dagrun import DagRun

    query = select(DagRun.run_id).where(DagRun.dag_id == dag_id).order_by(DagRun.run_after.desc()).limit(1)
    found: str | None = session.scalars(query).first()
    return found


def scheduler_seen_at(session: Any) -> datetime | None:
    """Return when a running scheduler last wrote its heartbeat."""
    from airflow.jobs.job import Job

    query = select(Job.latest_heartbeat).where(Job.job_type == "SchedulerJob", Job.state == "running")
    found: datetime | None = session.scalars(query.order_by(Job.latest_heartbeat.desc()).limit(1)).first()
    return found


def traces_endpoint() -> str | None:
    """Return the collector of Airflow's own traces; None where they are off."""
    from airflow.configuration import conf

    if not conf.getboolean("traces", "otel_on", fallback=False):
        return None
    scheme = "https" if conf.getboolean("traces", "otel_ssl_active", fallback=False) else "http"
    return f"{scheme}://{conf.get('traces', 'otel_host')}:{conf.get('traces', 'otel_port')}/v1/traces"


# --- Metrics ----------------------------------------------------------------------------------------


def stats_incr(name: str, count: int, tags: Mapping[str, str]) -> None:
    """Count through Airflow's own metrics: StatsD or OpenTelemetry, by ``[metrics]``; a no-op where both are off."""
    from airflow.stats import Stats

    Stats.incr(name, count, tags=dict(tags))


def task_started(dag_id: str, task_id: str) -> None:
    """Emit the metrics of a starting task that Airflow 3.0.4 documents but does not emit."""
    from airflow.stats import Stats

    Stats.incr(f"ti.start.{dag_id}.{task_id}")
    Stats.incr("ti.start", tags={"dag_id": dag_id, "task_id": task_id})


def task_finished(dag_id: str, task_id: str, state: str, seconds: float | None) -> None:
    """Emit the metrics of a finished task that Airflow 3.0.4 documents but does not emit."""
    from airflow.stats import Stats

    tags = {"dag_id": dag_id, "task_id": task_id}
    Stats.incr(f"ti.finish.{dag_id}.{task_id}.{state}")
    Stats.incr("ti.finish", tags={**tags, "state": state})
    if state == "success":
        Stats.incr("ti_successes", tags=tags)
    elif state in {"failed", "up_for_retry"}:
        Stats.incr("ti_failures", tags=tags)
    if seconds is not None:
        Stats.timing(f"dag.{dag_id}.{task_id}.duration", seconds * 1000)
        Stats.timing("task.duration", seconds * 1000, tags=tags)
