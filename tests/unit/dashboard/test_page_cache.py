"""What a page of the dashboard is cached by."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from starlette.requests import Request

from airbridge.control_plane.dashboard import _airflow, app, pages, sessions
from airbridge.control_plane.dashboard.pages import NotFound, Page, PageContext
from airbridge.control_plane.dashboard.queries import Query
from airbridge.control_plane.dashboard.sessions import Viewer


def asked(path: str, query: str, host: str) -> tuple[str, str]:
    scope = {
        "type": "http",
        "scheme": "http",
        "server": ("127.0.0.1", 80),
        "path": path,
        "query_string": query.encode(),
        "headers": [(b"host", host.encode())],
    }
    return app._asked(Request(scope))


def test_host_header_moves_no_page() -> None:
    """CVE-2026-48710: a page is cached under the path that was requested, not under one that a Host header pretends."""
    honest = asked("/airbridge/workers/a", "q=1", "airflow.example")
    assert honest == ("/airbridge/workers/a", "q=1")
    assert honest == asked("/airbridge/workers/a", "q=1", "airflow.example/airbridge/workers/b?q=2#")


def viewer(name: str) -> Viewer:
    return Viewer(name, name, name, may_command=False, may_revoke=False, may_audit=False, form_token="")


@contextmanager
def no_session() -> Iterator[None]:
    yield None


@pytest.mark.parametrize("page", [pages.TIMELINE, pages.RUN], ids=lambda page: page.name)
def test_page_of_a_dag_is_for_those_who_see_it(page: Page, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page of one user is no answer for another one who reads the same DAGs, but may not see this one's tasks."""
    asking = [viewer("ann"), viewer("eve"), viewer("bob")]

    async def next_viewer(_: Request) -> Viewer:
        return asking.pop(0)

    monkeypatch.setattr(sessions, "viewer_of", next_viewer)
    monkeypatch.setattr(_airflow, "read_only_session", no_session)
    monkeypatch.setattr(_airflow, "may_see_task", lambda user, dag_id: (user, dag_id) != ("eve", "etl"))
    monkeypatch.setattr(_airflow, "readable_dags", lambda *_: None)
    monkeypatch.setattr(app, "render", lambda _, values: values["made_for"])
    monkeypatch.setattr(app, "_shared", lambda *_: {})
    shown = replace(page, fill=lambda context: {"made_for": context.viewer.name})
    dashboard = app.Dashboard(platform=lambda: None)  # type: ignore[arg-type, return-value] # unused here

    async def scene() -> list[bytes]:
        scope = {
            "type": "http",
            "path": page.path,
            "path_params": {},
            "query_string": b"dag=etl&run=r&task=t",
            "headers": [(b"hx-request", b"true")],
        }
        return [bytes((await dashboard.show(shown, Request(scope))).body) for _ in range(3)]

    assert asyncio.run(scene()) == [b"ann", b"eve", b"ann"]


@pytest.mark.parametrize("page", [pages.TIMELINE, pages.RUN], ids=lambda page: page.name)
def test_hidden_dag_is_not_found(page: Page) -> None:
    """A user who may not see the tasks of a DAG gets no page, and no word of whether there are any."""
    query = Query({"dag": "etl", "run": "r", "task": "t"})
    nothing: Any = None
    with pytest.raises(NotFound):
        page.fill(PageContext(nothing, nothing, viewer("eve"), None, False, query, {}))
