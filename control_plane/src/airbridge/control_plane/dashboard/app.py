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

from airbridge.control_plane import orders
from airbridge.control_plane.dashboard import _airflow, pages, people
from airbridge.control_plane.dashboard.memo import Memo
from airbridge.control_plane.dashboard.pages import PAGES, Asked, NotFound, Page
from airbridge.control_plane.dashboard.people import Forbidden, NotSignedIn, Person
from airbridge.control_plane.dashboard.queries import Query
from airbridge.control_plane.dashboard.rendering import HEADERS, STATIC, render
from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.observe import workers
from airbridge.control_plane.observe.platform import Platform
from airbridge.executor.exceptions import ConfigurationError
from airbridge.executor.ledger import workers as ledger_workers

log = structlog.get_logger()

FRESH_SECONDS: Final = 2.0
"""How old what a page shows may be; all who ask for the same within that time get the same answer."""
RIGHTS_SECONDS: Final = 30.0
"""How long a change of which DAGs a user may read takes to be seen."""
FORM_BYTES: Final = 16_384
STATIC_CACHE: Final = "public, max-age=31536000, immutable"


@dataclass(frozen=True, slots=True)
class Rendered:
    """The part of a page that is kept fresh, and a name for its content."""

    html: str
    etag: str
    heading: str | None


@dataclass(frozen=True, slots=True)
class _Dags:
    """The DAGs a user may read. None is all of them, which a memo could not tell from nothing."""

    ids: frozenset[str] | None


@dataclass(frozen=True)
class Dashboard:
    """The pages over one database."""

    platform: Callable[[], Platform]
    """Reads the catalogue, the matrix and the settings. Raises `ConfigurationError`."""
    fresh: Memo[Rendered] = field(default_factory=lambda: Memo(FRESH_SECONDS))
    rights: Memo[_Dags] = field(default_factory=lambda: Memo(RIGHTS_SECONDS))
    platforms: Memo[Platform] = field(default_factory=lambda: Memo(RIGHTS_SECONDS))

    # --- pages ------------------------------------------------------------------------------------

    async def show(self, page: Page, request: Request) -> Response:
        """Answer with a page, or for htmx with the part of it that is kept fresh, if that has changed."""
        person = await people.of_request(request)
        if page.audit and not person.may_audit:
            raise Forbidden("Your Airflow role does not let you read the audit log.")
        dags = self.rights.fresh(person.subject)
        if dags is None:
            dags = await run_in_threadpool(self.rights.get, person.subject, lambda: _readable(person))
        key = (page.name, request.url.path, request.url.query, person.rights, dags)
        rendered = self.fresh.fresh(key)
        if rendered is None:
            rendered = await run_in_threadpool(self._render, key, page, request, person, dags)
        if "hx-request" not in request.headers:
            return HTMLResponse(self._whole(page, request, person, rendered), headers=_no_store())
        if request.headers.get("if-none-match") == rendered.etag:
            return Response(status_code=304, headers=_no_store(ETag=rendered.etag))
        return HTMLResponse(rendered.html, headers=_no_store(ETag=rendered.etag))

    def _render(self, key: Hashable, page: Page, request: Request, person: Person, dags: _Dags) -> Rendered:
        def compute() -> Rendered:
            query = Query(dict(request.query_params))
            platform = self.platforms.get("platform", self.platform)
            with _airflow.reading() as session:
                asked = Asked(session, platform, person, dags.ids, query, request.path_params)
                values = page.fill(asked)
            html = render(f"{page.name}_live.html", {**_shared(request, person), "query": query, **values})
            etag = f'"{hashlib.sha256(html.encode()).hexdigest()[:24]}"'
            return Rendered(html, etag, values.get("heading"))

        return self.fresh.get(key, compute)

    def _whole(self, page: Page, request: Request, person: Person, rendered: Rendered) -> str:
        values = {
            **_shared(request, person),
            "page": page,
            "heading": rendered.heading or page.title,
            "live": Markup(rendered.html),  # noqa: S704 - made by an autoescaping template
            "etag": rendered.etag,
            "query": Query(dict(request.query_params)),
            "done": _done(request),
        }
        return render(f"{page.name}.html", values)

    # --- orders -----------------------------------------------------------------------------------

    async def ask(self, request: Request) -> Response:
        """Show what an order would do, to be confirmed."""
        person, order = await self._order(request)
        return await run_in_threadpool(self._confirmation, request, person, order, "", 200)

    async def give(self, request: Request) -> Response:
        """Carry out an order that was confirmed."""
        person, order = await self._order(request)
        if int(request.headers.get("content-length") or FORM_BYTES + 1) > FORM_BYTES:
            raise HTTPException(413, "The form is too large.")
        form = dict(parse_qsl((await request.body()).decode(errors="replace"), max_num_fields=10))
        people.check_form(request, person, form.get("form_token", ""))
        comment = form.get("comment", "").replace("\x00", "")
        name = request.path_params["worker"]
        try:
            await run_in_threadpool(_carry_out, order, name, comment, person, _address(request))
        except Refused as refused:
            if refused.status == 404:
                raise NotFound(f"There is no worker {name[:64]!r}.") from refused
            return await run_in_threadpool(
                self._confirmation, request, person, order, refused.detail, refused.status
            )
        self.fresh.clear()
        log.info("order.given", order=order.name, worker=name, actor=person.actor)
        root = request.scope.get("root_path", "")
        return RedirectResponse(f"{root}/workers/{name}?done={order.name}", 303)

    async def _order(self, request: Request) -> tuple[Person, orders.Order]:
        person = await people.of_request(request)
        order = orders.ORDERS.get(request.path_params["order"])
        if order is None:
            raise NotFound(f"There is no order {request.path_params['order'][:64]!r}.")
        if not (person.may_revoke if order is orders.REVOKE else person.may_steer):
            raise Forbidden(f"Your Airflow role does not let you {order.name} workers.")
        return person, order

    def _confirmation(
        self, request: Request, person: Person, order: orders.Order, problem: str, status: int
    ) -> Response:
        platform = self.platforms.get("platform", self.platform)
        with _airflow.reading() as session:
            worker = workers.get(session, platform, request.path_params["worker"])
        if worker is None:
            raise NotFound(f"There is no worker {request.path_params['worker'][:64]!r}.")
        values = {
            **_shared(request, person),
            "page": pages.WORKERS,
            "heading": f"{order.name.capitalize()} {worker.id}",
            "worker": worker,
            "order": order,
            "problem": problem,
            "longest": orders.COMMENT_LENGTH,
        }
        part = "hx-request" in request.headers
        return HTMLResponse(
            render("order_form.html" if part else "order.html", values), status, headers=_no_store()
        )

    # --- sessions ---------------------------------------------------------------------------------

    async def sign_in(self, request: Request) -> Response:
        """Show the page that takes the token of Airflow's UI, or sends the browser to Airflow's login."""
        values = {
            "root": request.scope.get("root_path", ""),
            "airflow": _airflow.base_path(),
            "login_url": _airflow.login_url(),
            "storage_key": _airflow.TOKEN_STORAGE_KEY,
            "cookie": _airflow.TOKEN_COOKIE,
        }
        return HTMLResponse(render("signin.html", values), headers=_no_store())

    async def begin(self, request: Request) -> Response:
        """Exchange a bearer token of Airflow's for a session."""
        people.check_same_origin(request)
        token = people.bearer(request)
        person = await people.identify(token)
        response = JSONResponse({"name": person.name}, headers=_no_store())
        people.remember(response, request, token)
        return response

    async def end(self, request: Request) -> Response:
        """End the session: the user has left Airflow, or is another one now."""
        people.check_same_origin(request)
        response = Response(status_code=204, headers=_no_store())
        people.forget(response, request)
        return response

    # --- the application --------------------------------------------------------------------------

    def app(self) -> ASGIApp:
        """Return the ASGI application."""
        routes: list[Route | Mount] = [
            Route("/signin", self.sign_in),
            Route("/session", self.begin, methods=["POST"]),
            Route("/session/end", self.end, methods=["POST"]),
            Mount("/static", StaticFiles(directory=STATIC)),
            *(Route(page.path, _handler(self, page), methods=["GET"]) for page in PAGES),
            Route("/workers/{worker}/{order}", self.ask, methods=["GET"]),
            Route("/workers/{worker}/{order}", self.give, methods=["POST"]),
        ]
        made = Starlette(
            routes=routes,
            exception_handlers={
                NotSignedIn: _to_sign_in,
                Forbidden: lambda request, error: _apologise(request, 403, "Not allowed", str(error)),
                NotFound: lambda request, error: _apologise(request, 404, "Not found", str(error)),
                HTTPException: _http_error,
                ConfigurationError: _misconfigured,
                sql.OperationalError: _no_database,
                Exception: _broken,
            },
        )
        return _Headers(made)


def _handler(dashboard: Dashboard, page: Page) -> Callable[[Request], Awaitable[Response]]:
    async def handle(request: Request) -> Response:
        return await dashboard.show(page, request)

    return handle


def _readable(person: Person) -> _Dags:
    with _airflow.reading() as session:
        return _Dags(_airflow.readable_dags(session, person.user))


def _carry_out(order: orders.Order, name: str, comment: str, person: Person, address: str | None) -> None:
    rule = f"Airflow: may {'delete' if order is orders.REVOKE else 'change'} pools"
    with unit() as work:
        row = ledger_workers.get(work.session, name)
        if row is None:
            raise orders.unknown(name)
        orders.give(work.session, order, row, comment, person.actor, address=address, rule=rule)


def _address(request: Request) -> str | None:
    return f"{request.client.host}:{request.client.port}" if request.client else None


def _shared(request: Request, person: Person) -> dict[str, Any]:
    """What every template may use."""
    return {
        "root": request.scope.get("root_path", ""),
        "airflow": _airflow.base_path(),
        "person": person,
        "menu": [page for page in PAGES if page.menu and (not page.audit or person.may_audit)],
    }


def _done(request: Request) -> orders.Order | None:
    """The order that has just been carried out, to be said on the page that follows it."""
    return orders.ORDERS.get(request.query_params.get("done", ""))


def _no_store(**more: str) -> dict[str, str]:
    return {"Cache-Control": "no-store", "Vary": "HX-Request", **more}


# --- Errors ---------------------------------------------------------------------------------------


def _to_sign_in(request: Request, _error: Exception) -> Response:
    root = request.scope.get("root_path", "")
    if "hx-request" in request.headers or request.method != "GET":
        return JSONResponse({"detail": "not signed in"}, 401, headers=_no_store())
    target = request.url.path + (f"?{request.url.query}" if request.url.query else "")
    response = RedirectResponse(f"{root}/signin?{Query({}).string(next=target)}", 303, headers=_no_store())
    people.forget(response, request)
    return response


def _apologise(request: Request, status: int, heading: str, message: str) -> Response:
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
        return _apologise(request, 404, "Not found", "There is no such page.")
    return _apologise(request, status, f"Error {status}", str(getattr(error, "detail", "")))


def _misconfigured(request: Request, error: Exception) -> Response:
    log.error("dashboard.misconfigured", error=str(error))
    return _apologise(request, 500, "Not configured", str(error))


def _no_database(request: Request, error: Exception) -> Response:
    log.warning("dashboard.no_database", error=str(error))
    return _apologise(request, 503, "No database", "The database does not answer. Try again in a moment.")


def _broken(request: Request, error: Exception) -> Response:
    log.error("dashboard.broken", path=request.url.path, exc_info=error)
    return _apologise(request, 500, "Error", "Something went wrong. The api-server's log has the details.")


class _Headers:
    """Puts the security headers on every answer."""

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
    from airbridge.executor import settings

    return Dashboard(platform=lambda: Platform.load(settings.load())).app()
