"""``/healthz``: the process runs. ``/readyz``: it can do its work, with the database and its tables in place."""

from __future__ import annotations

from sqlalchemy import exc as sql
from sqlalchemy import select
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from airbridge.control_plane import _airflow
from airbridge.control_plane.gateway.database import unit
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.executor.ledger.models import WorkItemRow


def unready() -> str | None:
    """Return why the gateway cannot serve now, or None if it can."""
    try:
        with unit() as work:
            work.session.execute(select(WorkItemRow.id, WorkItemRow.fallback_at).limit(1))
            work.session.execute(select(_airflow.task_instance_model().id).limit(1))
    except sql.ProgrammingError:
        return "the database lacks tables or columns: run `airflow db migrate`"
    except sql.SQLAlchemyError as error:
        return f"the database cannot be reached: {type(error).__name__}"
    return None


def routes(lane: Lane) -> list[Route]:
    """Return the health endpoints, which ask for no identity and tell nothing but yes or no."""

    async def healthz(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_request: Request) -> Response:
        why = await lane.run(unready)
        if why is None:
            return JSONResponse({"status": "ready"})
        return JSONResponse({"status": "unready", "detail": why}, status_code=503)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]
