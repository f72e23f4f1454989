"""Where the observing commands read: from the gateway, or, when it is away, from Airflow's database itself."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from airbridge.control_plane.cli import connection, output
from airbridge.control_plane.exceptions import Refused
from airbridge.control_plane.local import airflow_config, state
from airbridge.control_plane.local.exceptions import NotRunning, PlatformUnreachable
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.operator_client import OperatorClient
from airbridge.executor.protocol import RefusalReason

FromDatabase = Annotated[
    bool,
    typer.Option(
        "--database",
        help="Read Airflow's database, as this process's Airflow configuration names it, instead of asking the gateway.",
    ),
]


class Reader(Protocol):
    """Reads the documents of `airbridge.control_plane.observe.document`."""

    def status(self) -> dict[str, Any]:
        """Return one screen."""

    def timeline(self, dag_id: str, run_id: str | None, task_id: str, map_index: int) -> dict[str, Any]:
        """Return a task's timeline. Raises `Refused` (404) if there is no such task."""


@contextmanager
def reader(
    directory: Path, url: str | None, token_file: Path | None, ca_file: Path | None, *, database: bool
) -> Iterator[Reader]:
    """Open a reader.

    A local platform whose gateway does not answer is read from its database: that the gateway is away is what its
    operator has to learn then. Raises `PlatformUnreachable` if nothing answers.
    """
    if database:
        yield _Database()
        return
    with connection.client(directory, url, token_file, ca_file) as client:
        yield _Gateway(client, _local(directory) if url is None else None)


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
            return self._instead(error).status()
        return found

    def timeline(self, dag_id: str, run_id: str | None, task_id: str, map_index: int) -> dict[str, Any]:
        names = {"dag_id": dag_id, "task_id": task_id, "map_index": str(map_index)}
        try:
            found: dict[str, Any] = self.client.get(
                "timeline", **names, **({"run_id": run_id} if run_id else {})
            )
        except PlatformUnreachable as error:
            return self._instead(error).timeline(dag_id, run_id, task_id, map_index)
        return found

    def _instead(self, error: PlatformUnreachable) -> _Database:
        if self.fallback is None:
            raise PlatformUnreachable(
                f"{error}; start a gateway, or, where Airflow's own configuration is, say --database to read its "
                "database instead"
            ) from error
        output.messages().print(
            f"the gateway does not answer ({error}); reading the database instead",
            markup=False,
            soft_wrap=True,
        )
        os.environ.update(airflow_config.environment(self.fallback))
        return _Database()


class _Database:
    """Reads with this process's Airflow configuration. Airflow is imported when the first document is read."""

    def status(self) -> dict[str, Any]:
        from airbridge.control_plane.observe import document

        with _session() as (session, platform):
            return document.status(session, platform)

    def timeline(self, dag_id: str, run_id: str | None, task_id: str, map_index: int) -> dict[str, Any]:
        from airbridge.control_plane.observe import document, tasks

        with _session() as (session, platform):
            run_id = run_id or tasks.latest_run(session, dag_id)
            task = tasks.find(session, dag_id, run_id or "", task_id, map_index)
            if task is None:
                raise Refused(
                    404,
                    RefusalReason.UNKNOWN,
                    f"there is no task {task_id!r} in run {run_id!r} of {dag_id!r}",
                )
            return document.timeline(session, platform, task)


@contextmanager
def _session() -> Iterator[tuple[Any, Any]]:
    from sqlalchemy import exc as sql

    from airbridge.control_plane.observe.platform import Platform
    from airbridge.executor import _airflow, settings

    platform = Platform.load(settings.load())
    try:
        with _airflow.new_session() as session:
            yield session, platform
    except sql.OperationalError as error:
        raise PlatformUnreachable(f"the database does not answer: {error.orig}") from error
