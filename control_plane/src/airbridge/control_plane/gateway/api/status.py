"""Status API for operators: the platform on one screen, and the timeline of one task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import AwareDatetime, Field
from starlette.requests import Request
from starlette.responses import Response

from airbridge.control_plane.gateway.api import operator_endpoint
from airbridge.control_plane.gateway.auth.authentication import Operator
from airbridge.control_plane.gateway.net.thread_pools import ThreadPool
from airbridge.control_plane.read_model import document, tasks
from airbridge.control_plane.read_model.platform import Platform


class TaskQuery(operator_endpoint.Body):
    """Task of a timeline. Without a run it is the DAG's newest."""

    dag_id: str = Field(min_length=1, max_length=250)
    task_id: str = Field(min_length=1, max_length=250)
    run_id: str | None = Field(default=None, max_length=250)
    map_index: int = -1


class UsageQuery(operator_endpoint.Body):
    """Period and grouping of a usage report: by default the last day, by team. `by` is a list with commas."""

    since: AwareDatetime | None = None
    until: AwareDatetime | None = None
    by: str = Field(default="team", pattern=r"^(team|dag|region|pool)(,(team|dag|region|pool))*$")


@dataclass(frozen=True, slots=True)
class StatusApi:
    """Endpoints ``status`` (scope ``platform:read``), ``timeline`` and ``usage`` (scope ``work:read``)."""

    platform: Platform
    threads: ThreadPool

    async def status(self, request: Request) -> Response:
        """Return the platform as it is now."""

        def read(session: Any, operator: Operator) -> Any:
            operator.require("platform:read")
            return document.status(session, self.platform)

        return await operator_endpoint.answer(self.threads, request, read)

    async def usage(self, request: Request) -> Response:
        """Return what work items used, of all DAGs."""
        wanted = operator_endpoint.query(request, UsageQuery)

        def read(session: Any, operator: Operator) -> Any:
            operator.require("work:read")
            return document.usage(session, wanted.by.split(","), wanted.since, wanted.until)

        return await operator_endpoint.answer(self.threads, request, read)

    async def timeline(self, request: Request) -> Response:
        """Return the timeline of a task, and why it is not running."""
        wanted = operator_endpoint.query(request, TaskQuery)

        def read(session: Any, operator: Operator) -> Any:
            operator.require("work:read", wanted.dag_id)
            run_id = wanted.run_id or tasks.latest_run(session, wanted.dag_id)
            found = tasks.find(session, wanted.dag_id, run_id or "", wanted.task_id, wanted.map_index)
            if found is None:
                raise operator_endpoint.missing(tasks.missing(session, wanted.dag_id, run_id, wanted.task_id))
            return document.timeline(session, self.platform, found)

        return await operator_endpoint.answer(self.threads, request, read)
