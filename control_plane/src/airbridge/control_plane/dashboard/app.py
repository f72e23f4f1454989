"""The dashboard's ASGI application. Airflow's api-server mounts it at ``/airbridge``."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import parse_qsl

import structlog
from markupsafe import Markup
from sqlalchemy import exc as sql
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from airbridge.control_plane import worker_commands
from airbridge.control_plane.dashboard import _airflow, pages, sessions
from airbridge.control_plane.dashboard.pages import PAGES, NotFound, Page, PageContext
from airbridge.control_plane.dashboard.queries import Query
from airbridge.control_plane.dashboard.rendering import HEADERS, STATIC, render
from airbridge.control_plane.dashboard.response_cache import ResponseCache
from airbridge.control_plane.dashboard.sessions import Forbidden, NotSignedIn, Viewer
from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.read_model import workers
from airbridge.control_plane.read_model.platform import Platform
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import RefusalReason
from airbridge.executor.ledger import workers as ledger_workers

log = structlog.get_logger()

# Seconds that a rendered page is cached: requests for the same page within that time share one answer.
FRESH_SECONDS: Final = 2.0
# Seconds until a change of the DAGs that a user may read takes effect.
RIGHTS_SECONDS: Final = 30.0
FORM_BYTES: Final = 16_384
STATIC_CACHE: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Rendered:
    """Live part of a page, with an ETag of its content."""

    html: str
    etag: str
    heading: str | None


@dataclass(frozen=True, slots=True)
class _Dags:
    """DAGs that a user may read; None for all. A wrapper, because the cache uses None for a missing value."""

    ids: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class _Sight:
    """DAGs that a user may read (None for all), and whether those include the tasks that the page is about."""

    dags: frozenset[str] | None
    sees_dag: bool


@dataclass(frozen=True)
class Dashboard:
    """Pages over one database."""

    #: Loads the catalogue, the matrix and the settings. Raises `ConfigurationError`.
    platform: Callable[[], Platform]
    fresh: ResponseCache[Rendered] = field(default_factory=lambda: ResponseCache(FRESH_SECONDS))
    rights: ResponseCache[_Dags] = field(default_factory=lambda: ResponseCache(RIGHTS_SECONDS))
    platforms: ResponseCache[Platform] = field(default_factory=lambda: ResponseCache(RIGHTS_SECONDS))

    # --- pages ------------------------------------------------------------------------------------

    async def show(self, page: Page, request: Request) -> Response:
        """Answer with a page; for htmx with its live part, or 304 if that has not changed."""
        viewer = await sessions.viewer_of(request)
        if page.audit and not viewer.may_audit:
            raise Forbidden("Your Airflow role does not let you read the audit log.")
        dags = self.rights.peek(viewer.subject)
        if dags is None:
            dags = await run_in_threadpool(self.rights.get, viewer.subject, lambda: _readable(viewer))
        sight = _Sight(dags.ids, await _sees_dag(page, request, viewer))
        # All that a page's content depends on besides the database.
        key = (page.name, *_asked(request), viewer.rights, sight)
        rendered = self.fresh.peek(key)
        if rendered is None:
            rendered = await run_in_threadpool(self._render, key, page, request, viewer, sight)
        if "hx-request" not in request.headers:
            return HTMLResponse(self._whole(page, request, viewer, rendered), headers=_no_store())
        if request.headers.get("if-none-match") == rendered.etag:
            return Response(status_code=304, headers=_no_store(ETag=rendered.etag))
        return HTMLResponse(rendered.html, headers=_no_store(ETag=rendered.etag))

    def _render(self, key: Hashable, page: Page, request: Request, viewer: Viewer, sight: _Sight) -> Rendered:
        def compute() -> Rendered:
            query = Query(dict(request.query_params))
            platform = self.platforms.get("platform", self.platform)
            with _airflow.read_only_session() as session:
                context = PageContext(
                    session, platform, viewer, sight.dags, sight.sees_dag, query, request.path_params
                )
                values = page.fill(context)
            html = render(f"{page.name}_live.html", {**_shared(request, viewer), "query": query, **values})
            etag = f'"{hashlib.sha256(html.encode()).hexdigest()[:24]}"'
            return Rendered(html, etag, values.get("heading"))

        return self.fresh.get(key, compute)

    def _whole(self, page: Page, request: Request, viewer: Viewer, rendered: Rendered) -> str:
        values = {
            **_shared(request, viewer),
            "page": page,
            "heading": rendered.heading or page.title,
            "live": Markup(rendered.html),  # noqa: S704 - made by an autoescaping template
            "etag": rendered.etag,
            "query": Query(dict(request.query_params)),
            "done": _done(request),
        }
        return render(f"{page.name}.html", values)

    # --- commands -----------------------------------------------------------------------------------

    async def confirm_command(self, request: Request) -> Response:
        """Show the confirmation form of a worker command."""
        viewer, command = await self._command(request)
        return await run_in_threadpool(self._confirmation, request, viewer, command, "", 200)

    async def run_command(self, request: Request) -> Response:
        """Apply a confirmed worker command."""
        viewer, command = await self._command(request)
        if int(request.headers.get("content-length") or FORM_BYTES + 1) > FORM_BYTES:
            raise HTTPException(413, "The form is too large.")
        form = dict(parse_qsl((await request.body()).decode(errors="replace"), max_num_fields=10))
        sessions.check_form(request, viewer, form.get("form_token", ""))
        comment = form.get("comment", "").replace("\x00", "")
        name = request.path_params["worker"]
        if command is worker_commands.REVOKE and (problem := _unconfirmed(name, form)):
            return await run_in_threadpool(self._confirmation, request, viewer, command, problem, 400)
        try:
            await run_in_threadpool(self._apply, command, name, comment, viewer, _address(request))
        except Refused as refused:
            if refused.status == 404:
                raise NotFound(f"There is no worker {name[:64]!r}.") from refused
            return await run_in_threadpool(
                self._confirmation, request, viewer, command, refused.detail, refused.status
            )
        self.fresh.clear()
        log.info("worker_command.applied", command=command.name, worker=name, actor=viewer.actor)
        root = request.scope.get("root_path", "")
        return RedirectResponse(f"{root}/workers/{name}?done={command.name}", 303)

    def _apply(
        self,
        command: worker_commands.WorkerCommand,
        name: str,
        comment: str,
        viewer: Viewer,
        address: str | None,
    ) -> None:
        platform = self.platforms.get("platform", self.platform)
        if command is worker_commands.REVOKE and platform.revocation_needs_two:
            raise Refused(
                409,
                RefusalReason.FORBIDDEN,
                f"a second operator must approve a revocation here: use 'airbridge worker revoke {name[:64]}'",
            )
        _apply(command, name, comment, viewer, address)

    async def _command(self, request: Request) -> tuple[Viewer, worker_commands.WorkerCommand]:
        viewer = await sessions.viewer_of(request)
        command = worker_commands.COMMANDS.get(request.path_params["command"])
        if command is None:
            raise NotFound(f"There is no command {request.path_params['command'][:64]!r}.")
        if not (viewer.may_revoke if command is worker_commands.REVOKE else viewer.may_command):
            raise Forbidden(f"Your Airflow role does not let you {command.name} workers.")
        return viewer, command

    def _confirmation(
        self,
        request: Request,
        viewer: Viewer,
        command: worker_commands.WorkerCommand,
        problem: str,
        status: int,
    ) -> Response:
        platform = self.platforms.get("platform", self.platform)
        with _airflow.read_only_session() as session:
            worker = workers.get(session, platform, request.path_params["worker"])
        if worker is None:
            raise NotFound(f"There is no worker {request.path_params['worker'][:64]!r}.")
        values = {
            **_shared(request, viewer),
            "page": pages.WORKERS,
            "heading": f"{command.name.capitalize()} {worker.id}",
            "worker": worker,
            "order": command,
            "problem": problem,
            "longest": worker_commands.COMMENT_LENGTH,
        }
        part = "hx-request" in request.headers
        return HTMLResponse(
            render("order_form.html" if part else "order.html", values), status, headers=_no_store()
        )

    # --- sessions ---------------------------------------------------------------------------------

    async def sign_in(self, request: Request) -> Response:
        """Show the sign-in page, which sends the token of Airflow's UI or redirects to Airflow's login."""
        values = {
            "root": request.scope.get("root_path", ""),
            "airflow": _airflow.base_path(),
            "login_url": _airflow.login_url(),
            "storage_key": _airflow.TOKEN_STORAGE_KEY,
            "cookie": _airflow.TOKEN_COOKIE,
        }
        return HTMLResponse(render("signin.html", values), headers=_no_store())

    async def begin_session(self, request: Request) -> Response:
        """Exchange an Airflow bearer token for a session."""
        sessions.check_same_origin(request)
        token = sessions.bearer(request)
        viewer = await sessions.identify(token)
        response = JSONResponse({"name": viewer.name}, headers=_no_store())
        sessions.set_session_cookie(response, request, token)
        return response

    async def end_session(self, request: Request) -> Response:
        """End the session: the user has signed out of Airflow, or another one has signed in."""
        sessions.check_same_origin(request)
        response = Response(status_code=204, headers=_no_store())
        sessions.clear_session_cookie(response, request)
        return response

    # --- the application --------------------------------------------------------------------------

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        routes: list[Route | Mount] = [
            Route("/signin", self.sign_in),
            Route("/session", self.begin_session, methods=["POST"]),
            Route("/session/end", self.end_session, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
            *(Route(page.path, _handler(self, page), methods=["GET"]) for page in PAGES),
            Route("/workers/{worker}/{command}", self.confirm_command, methods=["GET"]),
            Route("/workers/{worker}/{command}", self.run_command, methods=["POST"]),
        ]
        made = Starlette(
            routes=routes,
            exception_handlers={
                NotSignedIn: _to_sign_in,
                Forbidden: lambda request, error: _error_page(request, 403, "Not allowed", str(error)),
                NotFound: lambda request, error: _error_page(request, 404, "Not found", str(error)),
                HTTPException: _http_error,
                ConfigurationError: _configuration_error,
                sql.OperationalError: _database_error,
                Exception: _internal_error,
            },
        )
        return _Headers(made)


def _handler(dashboard: Dashboard, page: Page) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return await dashboard.show(page, request)

    return handle


def _readable(viewer: Viewer) -> _Dags:
    with _airflow.read_only_session() as session:
        return _Dags(_airflow.readable_dags(session, viewer.user))


async def _sees_dag(page: Page, request: Request, viewer: Viewer) -> bool:
    """Return whether the viewer may see the tasks of the DAG that the query of a page `of_dag` names."""
    dag_id = Query(dict(request.query_params)).text(pages.DAG) if page.of_dag else None
    return dag_id is not None and await run_in_threadpool(_airflow.may_see_task, viewer.user, dag_id)


def _apply(
    command: worker_commands.WorkerCommand, name: str, comment: str, viewer: Viewer, address: str | None
) -> None:
    rule = f"Airflow: may {'delete' if command is worker_commands.REVOKE else 'change'} pools"
    with unit() as work:
        row = ledger_workers.get(work.session, name)
        if row is None:
            raise worker_commands.unknown(name)
        worker_commands.apply(work.session, command, row, comment, viewer.actor, address=address, rule=rule)


def _unconfirmed(worker: str, form: dict[str, str]) -> str:
    """Return why a form does not confirm that a worker is to be revoked, which cannot be undone; empty if it does."""
    if form.get("name", "").strip() != worker:
        return f"type the worker's name, {worker}, to revoke it"
    return "" if form.get("comment", "").strip() else "revoke needs a comment with the reason"


def _address(request: Request) -> str | None:
    return f"{request.client.host}:{request.client.port}" if request.client else None


def _shared(request: Request, viewer: Viewer) -> dict[str, Any]:
    """Return the values that every template uses."""
    return {
        "root": request.scope.get("root_path", ""),
        "airflow": _airflow.base_path(),
        "viewer": viewer,
        "menu": [page for page in PAGES if page.menu and (not page.audit or viewer.may_audit)],
    }


def _done(request: Request) -> worker_commands.WorkerCommand | None:
    """Return the command that was just applied, for the message on the page after it."""
    return worker_commands.COMMANDS.get(request.query_params.get("done", ""))


def _asked(request: Request) -> tuple[str, str]:
    """Return path and query of a request, by which its page is cached.

    They are the router's: with Starlette below 1.0.1 a Host header can change those of `request.url` (CVE-2026-48710).
    """
    return str(request.scope["path"]), request.scope["query_string"].decode("latin-1")


def _no_store(**more: str) -> dict[str, str]:
    return {"Cache-Control": "no-store", "Vary": "HX-Request", **more}


# --- Errors ---------------------------------------------------------------------------------------


def _to_sign_in(request: Request, _error: Exception) -> Response:
    root = request.scope.get("root_path", "")
    if "hx-request" in request.headers or request.method != "GET":
        return JSONResponse({"detail": "not signed in"}, 401, headers=_no_store())
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    response = RedirectResponse(f"{root}/signin?{Query({}).string(next=target)}", 303, headers=_no_store())
    sessions.clear_session_cookie(response, request)
    return response


def _error_page(request: Request, status: int, heading: str, message: str) -> Response:
    values = {
        "root": request.scope.get("root_path", ""),
        "airflow": _airflow.base_path(),
        "heading": heading,
        "message": message,
    }
    return HTMLResponse(render("error.html", values), status, headers=_no_store())


def _http_error(request: Request, error: Exception) -> Response:
    status = getattr(error, "status_code", 500)
    if status == 404:
        return _error_page(request, 404, "Not found", "There is no such page.")
    return _error_page(request, status, f"Error {status}", str(getattr(error, "detail", "")))


def _configuration_error(request: Request, error: Exception) -> Response:
    log.error("dashboard.configuration_error", error=str(error))
    return _error_page(request, 500, "Not configured", str(error))


def _database_error(request: Request, error: Exception) -> Response:
    log.warning("dashboard.database_error", error=str(error))
    return _error_page(request, 503, "No database", "The database does not answer. Try again in a moment.")


def _internal_error(request: Request, error: Exception) -> Response:
    log.error("dashboard.failed", path=request.url.path, exc_info=error)
    return _error_page(request, 500, "Error", "Internal error. The api-server's log has the details.")


class _Headers:
    """ASGI wrapper that adds the security headers to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
        self._static = (b"cache-control", STATIC_CACHE.encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
                if message["status"] == 200 and "/static/" in scope["path"]:
                    message["headers"].append(self._static)
            await send(message)

        await self._app(scope, receive, with_headers if scope["type"] == "http" else send)


def create() -> ASGIApp:
    """Return the application as Airflow's api-server serves it."""
    from airbridge.executor import plain_tracebacks, settings

    plain_tracebacks.install()
    return Dashboard(platform=lambda: Platform.load(settings.load())).app()
