"""Bundles bring the packages that data engineers use, each its own, from every kind of source."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

import pytest
from tests.support import package_index
from tests.support.platform import LocalPlatform, Run, running, wait_for

from airbridge.control_plane.airflow_settings import Bundle, dag_bundles
from airbridge.control_plane.local.services.aws import parse_regions

pytestmark = [pytest.mark.slow("make proof-packages"), pytest.mark.timeout(900)]

# Locking and building may take this long, with every package to be fetched.
BUILD_SECONDS: Final = 300.0
# Each source's DAG and packages; the two versions of pandas cannot be in one environment.
PACKAGES: Final = {
    "folder": "pandas==2.2.3\napache-airflow-providers-openlineage\n",
    "pushed": "pandas==2.1.4\npolars\n",
    "cloned": "apache-airflow-providers-amazon\nduckdb\ns3fs\n",
}
_PANDAS: Final = """
import pandas
from airflow.sdk import dag, task


@dag(schedule=None)
def folder():
    @task
    def versions():
        frame = pandas.DataFrame({"amount": [1.5, 2.5]})
        return {"pandas": pandas.__version__, "total": float(frame["amount"].sum())}

    versions()


folder()
"""
_POLARS: Final = """
import time

import boto3
import pandas
import polars
from airflow.sdk import dag, task


@dag(schedule=None)
def pushed():
    @task
    def versions():
        frame = polars.DataFrame({"amount": [1.5, 2.5]})
        return {"pandas": pandas.__version__, "total": frame["amount"].sum()}

    @task
    def hold():
        s3 = boto3.client("s3", region_name="eu-west-1")
        while not s3.list_objects_v2(Bucket="airbridge-local-eu-west-1-data", Prefix="go").get("Contents"):
            time.sleep(0.5)

    @task
    def afterwards():
        return pandas.__version__

    versions() >> hold() >> afterwards()


pushed()
"""
_DUCKDB: Final = """
import duckdb
from airflow.sdk import ObjectStoragePath, dag, task

ORDERS = ObjectStoragePath("s3://airbridge-local-eu-west-1-data/orders.parquet")


@dag(schedule=None)
def cloned():
    @task
    def write():
        table = "SELECT * FROM (VALUES (1.5), (2.5)) AS orders(amount)"
        duckdb.sql(f"COPY ({table}) TO 'orders.parquet' (FORMAT parquet)")
        with open("orders.parquet", "rb") as file:
            ORDERS.write_bytes(file.read())

    @task
    def total():
        with duckdb.connect() as connection:
            connection.register_filesystem(ORDERS.fs)
            [row] = connection.sql(f"SELECT sum(amount)::DOUBLE FROM read_parquet('{ORDERS}')").fetchall()
        return row[0]

    write() >> total()


cloned()
"""
DAGS: Final = {"folder": _PANDAS, "pushed": _POLARS, "cloned": _DUCKDB}


class Lineage(ThreadingHTTPServer):
    """A server that keeps the job and the type of each OpenLineage event that it gets."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.events: list[tuple[str, str]] = []


class _Events(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        assert isinstance(self.server, Lineage)
        self.server.events.append((event["job"]["name"], event["eventType"]))
        self.send_response(201)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


def write_bundle(name: str, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(DAGS[name])
    (folder / "requirements.txt").write_text(PACKAGES[name])
    return folder


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skip where the package index of this machine lacks one of the packages."""
    names = {line for each in PACKAGES.values() for line in each.split()}
    package_index.require(
        sorted({name.partition("==")[0] for name in names}), tmp_path_factory.mktemp("index")
    )


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = write_bundle("cloned", tmp_path_factory.mktemp("repository"))
    name = ("-c", "user.name=ann", "-c", "user.email=ann@example.com")
    for command in (("init", "-q", "-b", "main"), ("add", "."), (*name, "commit", "-q", "-m", "DAG")):
        subprocess.run(["git", *command], cwd=folder, check=True)
    return folder


@pytest.fixture(scope="module")
def lineage() -> Iterator[Lineage]:
    """A receiver of OpenLineage events."""
    server = Lineage(("127.0.0.1", 0), _Events)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def sources(
    tmp_path_factory: pytest.TempPathFactory, index: None, repository: Path, lineage: Lineage
) -> Iterator[LocalPlatform]:
    """A platform with one worker, and a bundle of each kind of source."""
    folder = write_bundle("folder", tmp_path_factory.mktemp("folder"))
    setting = dag_bundles(
        [
            Bundle("folder", {"kind": "folder", "path": str(folder)}, refresh_seconds=5),
            Bundle("pushed", {"kind": "push"}, refresh_seconds=5),
            Bundle(
                "cloned",
                {"kind": "git", "repo_url": f"file://{repository}", "ref": "main"},
                refresh_seconds=5,
            ),
        ]
    )
    transport = {"type": "http", "url": f"http://127.0.0.1:{lineage.server_port}"}
    task_env = {"AIRFLOW__OPENLINEAGE__TRANSPORT": json.dumps(transport)}
    with running(
        airflow={f"{setting.section}.{setting.option}": setting.value},
        worker_env={"AIRBRIDGE_WORKER_TASK_ENV": json.dumps(task_env)},
        regions=parse_regions(("eu-west-1",)),
    ) as started:
        yield started


def push(platform: LocalPlatform, folder: Path) -> None:
    options = ("--bundle", "pushed", "--dir", str(platform.directory.root))
    command = [sys.executable, "-m", "airbridge.control_plane.cli", "dags", "push", str(folder), *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert result.returncode == 0, result.stderr


def go_on(platform: LocalPlatform) -> None:
    """Let the tasks of the pushed DAG go on that wait for it."""
    platform.aws_client("s3", "eu-west-1").put_object(
        Bucket="airbridge-local-eu-west-1-data", Key="go", Body=b""
    )


def ended(platform: LocalPlatform, dag_id: str, run_id: str) -> Run:
    run = platform.finish(dag_id, run_id)
    assert run.state == "success", [
        platform.task_log(run, ti["task_id"]) for ti in run.tasks if ti["try_number"]
    ]
    return run


def test_each_source_brings_packages(sources: LocalPlatform, lineage: Lineage, tmp_path: Path) -> None:
    """A folder, a push and a repository bring pandas, another pandas with polars, and duckdb; one worker runs all three.

    duckdb reads Parquet from the region's bucket with ObjectStoragePath. A run that began before a push ends with the packages that
    it began with; the next one has the new ones.
    """
    push(sources, write_bundle("pushed", tmp_path))
    for dag_id in DAGS:
        sources.airflow.wait_for_dag(dag_id, BUILD_SECONDS)
    runs = {dag_id: sources.trigger(dag_id) for dag_id in DAGS}
    sources.wait_task("pushed", runs["pushed"], "hold", {"running"}, 120)
    (tmp_path / "requirements.txt").write_text("pandas==2.2.3\npolars\n")
    push(sources, tmp_path)
    versions = "SELECT count(*) FROM dag_version WHERE dag_id = 'pushed'"
    wait_for(lambda: sources.query(versions)[0][0] == 2, "the second version to be there", 60)
    go_on(sources)
    found = {dag_id: ended(sources, dag_id, run_id) for dag_id, run_id in runs.items()}
    assert sources.xcom(found["folder"], "versions") == {"pandas": "2.2.3", "total": 4.0}
    assert sources.xcom(found["pushed"], "versions") == {"pandas": "2.1.4", "total": 4.0}
    assert sources.xcom(found["pushed"], "afterwards") == "2.1.4"
    assert sources.xcom(found["cloned"], "total") == 4.0
    assert len({place for run in found.values() for place in sources.places(run).values()}) == 1
    assert sources.xcom(sources.run("pushed"), "afterwards") == "2.2.3"
    # The plugin of a bundle's package listens in the tasks of that bundle, and in no other's.
    assert lineage.events == [("folder.versions", "START"), ("folder.versions", "COMPLETE")]
