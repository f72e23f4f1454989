"""Health endpoints. ``/healthz``: the process runs. ``/readyz``: the database and its tables are available."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final

from sqlalchemy import exc as sql
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airbridge.control_plane import _airflow
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.executor.ledger.models import WorkItemRow

FRESH_SECONDS: Final = 1.0


def unready() -> str | None:
    """Return the reason why the gateway cannot serve now, or None if it can."""
    try:
        with unit() as work:
            # fallback_at is a column of the newest migration: a database of an earlier version fails here.
            work.session.execute(select(WorkItemRow.id, WorkItemRow.fallback_at).limit(1))
            work.session.execute(select(_airflow.task_instance_model().id).limit(1))
    except sql.ProgrammingError:
        return "the database lacks tables or columns: run `airflow db migrate`"
    except sql.SQLAlchemyError as error:
        return f"the database cannot be reached: {type(error).__name__}"
    return None


class Readiness:
    """Readiness of the gateway. Checked at most once in `FRESH_SECONDS`, however many ask: anybody may."""

    def __init__(self, threads: ThreadPool, check: Callable[[], str | None] = unready) -> None:
        self._threads = threads
        self._check = check
        self._checked: tuple[float, asyncio.Task[str | None]] | None = None

    async def why_not(self) -> str | None:
        """Return the reason why the gateway cannot serve, or None if it can."""
        now, checked = time.monotonic(), self._checked
        if checked is None or (checked[1].done() and now - checked[0] > FRESH_SECONDS):
            checked = self._checked = now, asyncio.create_task(self._threads.run(self._check))
        # Callers that disconnect must not cancel the check of the others.
        return await asyncio.shield(checked[1])


def routes(readiness: Readiness) -> list[Route]:
    """Return the health endpoints, which need no identity and reveal only the status."""

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        why = await readiness.why_not()
        if why is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "unready", "detail": why}, status_code=503)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]
