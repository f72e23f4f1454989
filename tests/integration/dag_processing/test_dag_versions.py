"""Versions of DAGs: one for each content of a DAG and its file, over any number of versions of the bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.support.airflow_home import Metadata
from tests.support.cloud import write_dag
from tests.support.scheduler import start_run

from airbridge.control_plane.dag_processing import _airflow
from airbridge.core.code.snapshot import pack, unpack

CODE = """
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG

def work():
    {body}

with DAG("one", schedule=None):
    PythonOperator(task_id="t", python_callable=work)
"""


class Bundle:
    """A folder of DAG files, and the dag-processor that publishes, parses and stores it."""

    def __init__(self, metadata: Metadata, root: Path) -> None:
        from airflow.models.dagbundle import DagBundleModel

        self.metadata, self._root = metadata, root
        self.airflows_hash: Any = None
        self.folder = root / "dags"
        self.folder.mkdir()
        with metadata.session() as session:
            session.merge(DagBundleModel(name="dags"))
            session.commit()

    def write(self, body: str = "pass") -> None:
        (self.folder / "one.py").write_text(CODE.format(body=body))

    def publish(self, file: str = "one.py") -> str:
        """Publish the folder and parse one file of it; return the bundle's version."""
        from airflow.dag_processing import manager

        snapshot = pack(self.folder)
        tree = self._root / "versions" / snapshot.version
        unpack([snapshot.compressed()], snapshot.version, tree)
        store = _airflow.storing_each(manager.process_parse_results)
        with self.metadata.session() as session:
            store(
                run_duration=0.0, finish_time=datetime.now(UTC), run_count=0, bundle_name="dags",
                bundle_version=snapshot.version, parsing_result=parsed(tree, file), session=session,
            )  # fmt: skip
        return snapshot.version

    def run(self) -> str | None:
        """Start a run of the DAG; return its version of the bundle."""
        from airflow.models.dagrun import DagRun
        from airflow.sdk import DAG

        run_id = start_run(self.metadata, DAG("one", schedule=None))
        with self.metadata.session() as session:
            version: str | None = session.scalar(select(DagRun.bundle_version).where(DagRun.run_id == run_id))
            return version

    def dag_versions(self) -> list[tuple[str, str]]:
        """Return file and source of each version of the DAG, the oldest first."""
        from airflow.models.dag_version import DagVersion

        with self.metadata.session() as session:
            found = session.scalars(select(DagVersion).order_by(DagVersion.version_number))
            return [(each.serialized_dag.dag.relative_fileloc, each.dag_code.source_code) for each in found]


def parsed(tree: Path, file: str) -> Any:
    """Return what a process that parses the file sends."""
    from airflow.dag_processing.processor import DagFileParsingResult
    from airflow.models.dagbag import DagBag
    from airflow.serialization.serialized_objects import LazyDeserializedDAG, SerializedDAG

    bag = DagBag(str(tree / file), bundle_path=tree, include_examples=False, load_op_links=False)
    assert not bag.import_errors
    sent = [json.loads(json.dumps(SerializedDAG.to_dict(dag))) for dag in bag.dags.values()]
    return DagFileParsingResult(
        fileloc=str(tree / file), serialized_dags=[LazyDeserializedDAG(data=data) for data in sent]
    )


@pytest.fixture
def bundle(sqlite_metadata: Metadata, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bundle]:
    from airflow import settings
    from airflow.models.serialized_dag import SerializedDagModel

    monkeypatch.setattr(settings, "MIN_SERIALIZED_DAG_UPDATE_INTERVAL", 0)
    original = vars(SerializedDagModel)["hash"]
    _airflow.version_dags_by_content()
    made = Bundle(sqlite_metadata, tmp_path)
    made.airflows_hash = original.__get__(None, SerializedDagModel)
    yield made
    SerializedDagModel.hash = original


def test_unchanged_dag_keeps_its_version(bundle: Bundle) -> None:
    """A bundle whose other files change gets a new version, which new runs have; an unchanged DAG keeps its own."""
    bundle.write()
    first = bundle.publish()
    assert bundle.run() == first
    (bundle.folder / "README").write_text("more\n")
    write_dag(bundle.folder, "two.py", "two")
    second = bundle.publish()
    assert second != first
    assert bundle.run() == second
    assert len(bundle.dag_versions()) == 1


def test_changed_file_is_a_version(bundle: Bundle) -> None:
    """A DAG whose file changes gets a version, though what is serialised of it is equal: each version shows its own source."""
    for body in ("pass", "return 1"):
        bundle.write(body)
        bundle.publish()
        bundle.run()
    assert bundle.dag_versions() == [
        ("one.py", CODE.format(body="pass")),
        ("one.py", CODE.format(body="return 1")),
    ]


def test_moved_file_is_a_version(bundle: Bundle) -> None:
    """A DAG whose file moves gets a version with the new path; the version before keeps the old one."""
    bundle.write()
    bundle.publish()
    bundle.run()
    (bundle.folder / "sub").mkdir()
    (bundle.folder / "one.py").rename(bundle.folder / "sub" / "one.py")
    bundle.publish("sub/one.py")
    assert [file for file, _source in bundle.dag_versions()] == ["one.py", "sub/one.py"]


def test_other_bundles_are_hashed_as_before(bundle: Bundle) -> None:
    """The hash of a DAG that is in no unpacked snapshot is Airflow's own."""
    from airflow.models.serialized_dag import SerializedDagModel

    data = {"__version": 2, "dag": {"dag_id": "one", "fileloc": "/srv/dags/one.py"}}
    assert SerializedDagModel.hash(data) == bundle.airflows_hash(data)
