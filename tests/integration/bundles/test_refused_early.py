"""What a platform could not run is refused when it is pushed, and not when its first task is queued."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.integration.bundles.test_push import configured, current, publish, pushed_from
from tests.support.airflow_home import Metadata
from tests.support.cloud import Cloud, cloud, dags, write_dag

from airbridge.control_plane.dag_processing import _airflow
from airbridge.control_plane.dags import Publisher
from airbridge.core.code.snapshot import pack
from airbridge.core.exceptions import BundleError, BundleRefused

__all__ = ["cloud", "configured", "dags", "publish"]  # fixtures

TASKS = """from airflow.sdk import DAG, task

with DAG("placed"):

    @task(queue="gpu@eu-west-1")
    def unknown_pool(): ...

    @task(executor_config={"airbridge": {"near": ["region:eu-west-2"]}})
    def unknown_region(): ...

    @task.bash(executor_config={"airbridge": {"nera": ["region:eu-west-1"]}})
    def misspelt_hint(): ...

    @task(executor_config={"airbrige": {"near": ["region:eu-west-1"]}})
    def misspelt_key(): ...

    @task(queue="mars")
    def mapped(number): ...

    @task(queue="eu-west-1", executor_config={"airbridge": {"fallback": ["us-east-1"]}, "pod_override": object()})
    def good(): ...

    @task(queue="celery", executor="LocalExecutor")
    def of_another_executor(): ...

    unknown_pool(); unknown_region(); misspelt_hint(); misspelt_key(); mapped.expand(number=[1]); good(); of_another_executor()
"""


EXPECTED = {
    5: (
        "task 'unknown_pool' ",
        "queue 'gpu@eu-west-1' is served by nobody: region 'eu-west-1' has no pool 'gpu'; its pools: default",
    ),
    8: (
        "task 'unknown_region' ",
        "executor_config['airbridge']['near'] hint 'region:eu-west-2' is served by nobody: there is no region 'eu-west-2'; did you mean 'eu-west-1'? regions: us-east-1, eu-west-1",
    ),
    11: (
        "task 'misspelt_hint' ",
        "executor_config['airbridge']['nera'] is not known; did you mean 'near'? known hints: cpus, disconnect, fallback, fallback_after, hours, limits, memory, near, pool, sizes, trigger, warm",
    ),
    14: ("task 'misspelt_key' ", "executor_config['airbrige'] is not known; did you mean 'airbridge'?"),
    17: (
        "task 'mapped' ",
        "queue 'mars' is served by nobody: there is no region 'mars'; regions: us-east-1, eu-west-1",
    ),
}


@pytest.fixture
def executors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "airbridge.executor.EdgeExecutor,LocalExecutor")


def test_unplaceable_tasks_are_refused(
    executors: None, publish: Publisher, cloud: Cloud, tmp_path: Path
) -> None:
    """Unknown regions and pools and misspelt hints are refused together, each with file, line, task and what would be right."""
    folder = tmp_path / "placed"
    folder.mkdir()
    (folder / "placed.py").write_text(TASKS)
    with pytest.raises(BundleRefused) as caught:
        pushed_from(folder, publish)
    found = {failure.line: failure.error for failure in caught.value.failures}
    assert {failure.file for failure in caught.value.failures} == {"placed.py"}
    prefix = "of DAG 'placed': "
    assert {line: error.partition(prefix)[::2] for line, error in found.items()} == EXPECTED
    assert current(cloud) is None


def test_empty_push_is_refused(publish: Publisher, cloud: Cloud, dags: Path, tmp_path: Path) -> None:
    """A folder without files, or without a DAG, does not replace what is current."""
    pushed_from(dags, publish)
    before = current(cloud)
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(BundleError, match=r"empty has no files: push the folder that holds the DAG files"):
        pushed_from(empty, publish)
    with pytest.raises(BundleError, match="defines no DAG"):
        publish("pushed", pack(empty).compressed(), "ci")
    (empty / "helper.py").write_text("x = 1\n")
    with pytest.raises(BundleError, match="'pushed' defines no DAG: push the folder"):
        pushed_from(empty, publish)
    assert current(cloud) == before


def of_bundle(metadata: Metadata, dag_id: str, bundle: str, *, stale: bool = False) -> None:
    from airflow.models.dag import DagModel
    from airflow.models.dagbundle import DagBundleModel

    with metadata.session() as session:
        if session.get(DagBundleModel, bundle) is None:
            session.add(DagBundleModel(name=bundle))
            session.flush()
        session.merge(
            DagModel(
                dag_id=dag_id,
                bundle_name=bundle,
                relative_fileloc="first.py",
                fileloc="first.py",
                is_stale=stale,
            )
        )
        session.commit()


def test_taken_dag_id_is_refused(publish: Publisher, dags: Path, sqlite_metadata: Metadata) -> None:
    """A push of a DAG that another bundle defines is refused with that bundle and its file; not its own again, nor one that is gone."""
    of_bundle(sqlite_metadata, "one", "main")
    with pytest.raises(
        BundleRefused, match=r"one\.py: DAG 'one' is defined by bundle 'main' \(first\.py\) already: rename"
    ):
        pushed_from(dags, publish)
    of_bundle(sqlite_metadata, "one", "main", stale=True)
    pushed_from(dags, publish)
    of_bundle(sqlite_metadata, "one", "pushed")
    write_dag(dags, "two.py", "two")
    pushed_from(dags, publish)


class Recorder:
    """Airflow's function that stores the results of a file, replaced."""

    def __init__(self) -> None:
        self.kept: list[tuple[list[str], dict[str, str]]] = []

    def __call__(self, *, dags: Collection[Any], import_errors: dict[str, str], **_: Any) -> None:
        self.kept.append(([dag.dag_id for dag in dags], import_errors))


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> Recorder:
    from airflow.dag_processing import manager

    recorder = Recorder()
    monkeypatch.setattr(manager, "update_dag_parsing_results_in_db", recorder)
    _airflow.refuse_taken_ids()
    return recorder


def test_second_bundle_gets_import_error(sqlite_metadata: Metadata, stored: Recorder) -> None:
    """Of two bundles that define a DAG id the dag-processor keeps the first; the second's file has an import error, its other DAGs are kept."""
    from airflow.dag_processing import manager

    of_bundle(sqlite_metadata, "one", "main")
    found = [SimpleNamespace(dag_id=name, fileloc="/x/two.py") for name in ("one", "two")]
    with sqlite_metadata.session() as session:
        for bundle in ("main", "other"):
            manager.update_dag_parsing_results_in_db(
                bundle_name=bundle, bundle_version="v", dags=found, import_errors={}, warnings=set(), session=session
            )  # fmt: skip
    error = (
        "DAG 'one' is defined by bundle 'main' (first.py) already: rename it here, or remove it there first"
    )
    assert stored.kept == [(["one", "two"], {}), (["two"], {"/x/two.py": error})]
