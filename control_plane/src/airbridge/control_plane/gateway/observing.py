"""What operators see of the platform: its state on one screen, and one task from the scheduler to the edge and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from airbridge.control_plane.gateway import operating
from airbridge.control_plane.gateway.authentication import Operator
from airbridge.control_plane.gateway.lanes import Lane
from airbridge.control_plane.observe import document, tasks
from airbridge.control_plane.observe.platform import Platform


class WantedTask(operating.Body):
    """Which task. Without a run it is the DAG's newest."""

    dag_id: str = Field(min_length=1, max_length=250)
    task_id: str = Field(min_length=1, max_length=250)
    run_id: str | None = Field(default=None, max_length=250)
    map_index: int = -1


@dataclass(frozen=True, slots=True)
class Observing:
    """Endpoints ``status`` (scope ``platform:read``) and ``timeline`` (scope ``work:read``)."""

    platform: Platform
    lane: Lane

    async def status(self, request: Request) -> Response:
        """Return the platform as it is now."""

        def look(session: Any, operator: Operator) -> Any:
            operator.require("platform:read")
            return document.status(session, self.platform)

        return await operating.answer(self.lane, request, look)

    async def timeline(self, request: Request) -> Response:
        """Return the timeline of a task, and why it is not running."""
        wanted = operating.query(request, WantedTask)

        def look(session: Any, operator: Operator) -> Any:
            operator.require("work:read", wanted.dag_id)
            run_id = wanted.run_id or tasks.latest_run(session, wanted.dag_id)
            found = tasks.find(session, wanted.dag_id, run_id or "", wanted.task_id, wanted.map_index)
            if found is None:
                raise operating.missing(
                    f"there is no task {wanted.task_id!r} with map index {wanted.map_index} in run "
                    f"{run_id or '(none)'!r} of DAG {wanted.dag_id!r}"
                )
            return document.timeline(session, self.platform, found)

        return await operating.answer(self.lane, request, look)
