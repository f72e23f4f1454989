"""Secrets of a region's own backend in the runner: what a task gets of one that is there, missing, or in a backend that fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.integration.runner.world import Run, World

from airbridge.core.residency import settings as residency

BACKEND = "airflow.secrets.local_filesystem.LocalFilesystemBackend"
FILE = """
from airflow.exceptions import AirflowNotFoundException
from airflow.hooks.base import BaseHook
from airflow.sdk import DAG, Variable, task

with DAG("d", schedule=None):
    @task
    def found():
        connection = BaseHook.get_connection("db")
        return [connection.host, connection.schema, connection.password, connection.port, Variable.get("here")]
    found()

    @task
    def defaults():
        return Variable.get("missing", default="none")
    defaults()

    @task
    def without_default():
        return Variable.get("missing")
    without_default()

    @task
    def connects():
        try:
            BaseHook.get_connection("missing")
        except AirflowNotFoundException as error:
            return str(error)
    connects()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the backend's files."""
    return tmp_path_factory.mktemp("secrets")


@pytest.fixture(scope="module")
def regional(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A runner whose pool has a secrets backend."""
    kwargs = {
        "variables_file_path": str(folder / "variables.json"),
        "connections_file_path": str(folder / "connections.json"),
    }
    options = {residency.SECRETS: {"backend": BACKEND, "backend_kwargs": json.dumps(kwargs)}}
    world = World(tmp_path_factory.mktemp("runner"), options=options)
    yield world
    world.close()


@pytest.fixture
def secrets(folder: Path) -> None:
    """Secrets of the backend."""
    connection = {"conn_type": "postgres", "host": "h", "schema": "s", "password": "hunter2-hunter2"}
    (folder / "variables.json").write_text(json.dumps({"here": "seen"}))
    (folder / "connections.json").write_text(json.dumps({"db": connection}))


def run(world: World, task_id: str) -> Run:
    return world.do(world.run(world.write(FILE), task_id))


@pytest.mark.usefixtures("secrets")
def test_secrets_are_read_in_region(regional: World) -> None:
    """A task gets what its region's backend has, and the control plane is not read."""
    done = run(regional, "found")
    assert done.proxy.pushed() == ["h", "s", "hunter2-hunter2", None, "seen"], done.log
    assert not [call for call in done.proxy.calls if call.path.startswith(("connections/", "variables/"))]


@pytest.mark.usefixtures("secrets")
def test_missing_variable_has_default(regional: World) -> None:
    """A task's default takes the place of a variable that its region's backend lacks."""
    done = run(regional, "defaults")
    assert (done.proxy.states, done.proxy.pushed()) == (["success"], "none"), done.log


@pytest.mark.usefixtures("secrets")
def test_missing_secret_names_backend(regional: World) -> None:
    """Without a default the task fails by Airflow's own error, and the log has the backend and the reason."""
    reason = f"the region's secrets backend {BACKEND} has no such secret"
    failed = run(regional, "without_default")
    assert failed.proxy.states == ["failed"]
    assert "VARIABLE_NOT_FOUND" in failed.log
    assert f"variable 'missing': {reason}" in failed.log
    caught = run(regional, "connects")
    assert caught.proxy.pushed() == "The conn_id `missing` isn't defined", caught.log
    assert f"connection 'missing': {reason}" in caught.log


def test_failing_backend_is_no_missing_secret(regional: World, folder: Path) -> None:
    """No default takes the place of a secret while the backend fails: the task fails with the reason."""
    for name in ("variables.json", "connections.json"):
        (folder / name).unlink(missing_ok=True)
    done = run(regional, "defaults")
    assert done.proxy.states == ["failed"]
    assert "GENERIC_ERROR" in done.log
    assert f"variable 'missing': the region's secrets backend {BACKEND} failed with" in done.log
