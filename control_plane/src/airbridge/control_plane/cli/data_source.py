"""Data source of `status`, `top`, `trace` and `usage`: the gateway, or Airflow's database while no gateway answers."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from airbridge.control_plane.cli import connection, output
from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.local import state
from airbridge.control_plane.local.exceptions import NotRunning, PlatformUnreachable
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.services import airflow_config, postgres
from airbridge.control_plane.operator_client import OperatorClient
from airbridge.core.protocol import RefusalReason

FromDatabase = Annotated[
    bool,
    typer.Option(
        "--database",
        help="Read Airflow's database, from this process's Airflow configuration, instead of the gateway.",
    ),
]


class Reader(Protocol):
    """Reads the documents of `airbridge.control_plane.read_model.document`."""

    def status(self) -> dict[str, Any]:
        """Return the platform's status document."""

    def usage(self, **asked: str) -> dict[str, Any]:
        """Return what work items used: `by`, and optionally `since` and `until` in ISO 8601. Raises `Refused` (400)."""

    def timeline(self, dag_id: str, run_id: str | None, task_id: str, map_index: int) -> dict[str, Any]:
        """Return a task's timeline. Raises `Refused` (404) if there is no such task."""


@contextmanager
def reader(context: typer.Context, *, database: bool) -> Iterator[Reader]:
    """Open a reader.

    A local platform whose gateway does not answer is read from its database instead: the outage itself is then
    what the operator needs to see. Raises `PlatformUnreachable` if nothing answers.
    """
    if database:
        yield _Database()
        return
    given = connection.options(context)
    with connection.client(context) as client:
        yield _Gateway(client, _local(given.directory) if given.url is None else None)


def _local(directory: Path) -> StateDir | None:
    found = StateDir(directory)
    try:
        state.read(found)
    except NotRunning:
        return None
    return found


@dataclass(frozen=True, slots=True)
class _Gateway:
    client: OperatorClient
    fallback: StateDir | None

    def status(self) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.client.get("status")
        except PlatformUnreachable as error:
            return self._fall_back(error).status()
        return found

    def usage(self, **asked: str) -> dict[str, Any]:
        try:
            found: dict[str, Any] = self.client.get("usage", **asked)
        except PlatformUnreachable as error:
            return self._fall_back(error).usage(**asked)
        return found

    def timeline(self, dag_id: str, run_id: str | None, task_id: str, map_index: int) -> dict[str, Any]:
        names = {"dag_id": dag_id, "task_id": task_id, "map_index": str(map_index)}
        try:
            found: dict[str, Any] = self.client.get(
                "timeline", **names, **({"run_id": run_id} if run_id else {})
            )
        except PlatformUnreachable as error:
            return self._fall_back(error).timeline(dag_id, run_id, task_id, map_index)
        return found

    def _fall_back(self, error: PlatformUnreachable) -> _Database:
        if self.fallback is None:
            raise PlatformUnreachable(
                f"{error}; start a gateway, or use --database on a host with Airflow's configuration to read its "
                "database instead"
            ) from error
        output.messages().print(
            f"the gateway does not answer ({error}); reading the database instead",
            markup=False,
            soft_wrap=True,
        )
        # Airflow reads these variables when it is imported, which has not happened yet.
        os.environ.update(airflow_config.environment(self.fallback, None))
        postgres.drop_client_variables(os.environ)
        return _Database()


class _Database:
    """Reader of the database of this process's Airflow configuration. Imports Airflow at the first document."""

    def status(self) -> dict[str, Any]:
        from airbridge.control_plane.read_model import document

        with _session() as (session, platform):
            return document.status(session, platform)

    def usage(self, **asked: str) -> dict[str, Any]:
        from airbridge.control_plane.read_model import document

        times = {name: datetime.fromisoformat(asked[name]) for name in ("since", "until") if name in asked}
        with _session() as (session, _platform):
            return document.usage(session, asked["by"].split(","), **times)

    def timeline(self, dag_id: str, run_id: str | None, task_id: str, map_index: int) -> dict[str, Any]:
        from airbridge.control_plane.read_model import document, tasks

        with _session() as (session, platform):
            run_id = run_id or tasks.latest_run(session, dag_id)
            task = tasks.find(session, dag_id, run_id or "", task_id, map_index)
            if task is None:
                why = tasks.missing(session, dag_id, run_id, task_id)
                raise Refused(404, RefusalReason.UNKNOWN, why)
            return document.timeline(session, platform, task)


@contextmanager
def _session() -> Iterator[tuple[Any, Any]]:
    from sqlalchemy import exc as sql

    from airbridge.control_plane.read_model.platform import Platform
    from airbridge.executor import _airflow, settings

    platform = Platform.load(settings.load())
    try:
        with _airflow.new_session() as session:
            yield session, platform
    except sql.OperationalError as error:
        raise PlatformUnreachable(f"the database does not answer: {error.orig}") from error
