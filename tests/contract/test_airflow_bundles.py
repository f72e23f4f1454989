"""Airflow 3.0.4 behaviour that AirBridge's bundle depends on: the dag-processor's calls, and the recorded versions."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from airflow.exceptions import AirflowException
from tests.support.airflow_home import Metadata
from tests.support.cloud import Cloud, cloud, dags, ledger_store, write_dag, write_publishing_key

from airbridge.core.code.snapshot import pack
from airbridge.executor._airflow import report_import_errors
from airbridge.executor.bundles.bundle import AirBridgeBundle
from airbridge.executor.bundles.store import BundleStore

__all__ = ["cloud", "dags"]  # fixtures


@pytest.fixture
def airflow(
    cloud: Cloud, dags: Path, tmp_path: Path, sqlite_metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> Metadata:
    """An Airflow whose bundles are `dags`, from the folder, and `pushed`."""
    write_publishing_key(tmp_path / "secrets")
    hour = {"refresh_interval": 3600, "refuse_broken": False}
    classpath = "airbridge.executor.bundles.bundle.AirBridgeBundle"
    bundles = [
        {
            "name": "dags",
            "classpath": classpath,
            "kwargs": {"source": {"kind": "folder", "path": str(dags)}, **hour},
        },
        {"name": "pushed", "classpath": classpath, "kwargs": {"source": {"kind": "push"}, **hour}},
    ]
    for name, value in {
        "AIRFLOW__AIRBRIDGE__REGIONS_FILE": str(cloud.catalogue_file),
        "AIRFLOW__AIRBRIDGE__SECRETS_DIR": str(tmp_path / "secrets"),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps(bundles),
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH": str(tmp_path / "disk"),
        "AIRFLOW__DAG_PROCESSOR__BUNDLE_REFRESH_CHECK_INTERVAL": "0",
        "AIRFLOW__LOGGING__DAG_PROCESSOR_CHILD_PROCESS_LOG_DIRECTORY": str(tmp_path / "parse-logs"),
    }.items():
        monkeypatch.setenv(name, value)
    return sqlite_metadata


def processor() -> Any:
    """A dag-processor's manager that has read its configuration, before its first look."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager
    from airflow.dag_processing.manager import DagFileProcessorManager

    DagBundlesManager().sync_bundles_to_db()
    manager = DagFileProcessorManager(max_runs=1)
    manager._dag_bundles = list(DagBundlesManager().get_all_dag_bundles())
    return manager


def callback(version: str | None) -> Any:
    """The request of a run's failure callback."""
    from airflow.callbacks.callback_requests import DagCallbackRequest

    return DagCallbackRequest(
        filepath="one.py",
        bundle_name="dags",
        bundle_version=version,
        dag_id="one",
        run_id="r",
        is_failure_callback=True,
    )


def recorded(metadata: Metadata, bundle: str = "dags") -> str | None:
    from airflow.models.dagbundle import DagBundleModel

    with metadata.session() as session:
        version: str | None = session.get(DagBundleModel, bundle).version
        return version


def test_dag_processor_records_the_digest(airflow: Metadata, dags: Path) -> None:
    """A real dag-processor parses the snapshot and records its digest with bundle and DAG; a run is pinned to it."""
    from airflow.models.dag import DagModel
    from airflow.models.dagrun import DagRun
    from airflow.models.serialized_dag import SerializedDagModel
    from airflow.utils.state import DagRunState
    from airflow.utils.types import DagRunTriggeredByType, DagRunType

    done = subprocess.run(
        [sys.executable, "-m", "airflow", "dag-processor", "--num-runs", "1"],
        env={**os.environ, "AIRFLOW__CORE__EXECUTOR": "LocalExecutor"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version = pack(dags).version
    assert recorded(airflow) == version
    assert recorded(airflow, "pushed") is None
    with airflow.session() as session:
        dag_model = session.get(DagModel, "one")
        assert (dag_model.bundle_name, dag_model.bundle_version) == ("dags", version)
        assert dag_model.relative_fileloc == "one.py"
        dag = SerializedDagModel.get("one", session=session).dag
    when = datetime(2025, 8, 20, tzinfo=UTC)
    dag.create_dagrun(
        run_id="manual__1",
        logical_date=when,
        data_interval=(when, when),
        run_after=when,
        run_type=DagRunType.MANUAL,
        triggered_by=DagRunTriggeredByType.TEST,
        state=DagRunState.QUEUED,
    )
    with airflow.session() as session:
        assert session.query(DagRun).one().bundle_version == version


def test_version_is_recorded_after_restart(airflow: Metadata, dags: Path) -> None:
    """A restarted dag-processor, whose first refresh writes import errors, records the version and the time of that refresh."""
    from airflow.models.dagbundle import DagBundleModel

    def last_refreshed() -> Any:
        with airflow.session() as session:
            return session.get(DagBundleModel, "dags").last_refreshed

    processor()._refresh_dag_bundles({})
    before = last_refreshed()
    write_dag(dags, "two.py", "two")
    processor()._refresh_dag_bundles({})
    assert recorded(airflow) == pack(dags).version
    assert last_refreshed() > before


def test_files_are_those_of_the_version(airflow: Metadata, dags: Path) -> None:
    """The dag-processor lists the snapshot's files, and a change of the folder alone changes nothing it has listed."""
    manager, files = processor(), dict[str, set[Any]]()
    manager._refresh_dag_bundles(files)
    write_dag(dags, "two.py", "two")
    manager._refresh_dag_bundles(files)  # not time to refresh
    (found,) = files["dags"]
    assert found.rel_path == Path("one.py")
    assert found.absolute_path.is_relative_to(manager._dag_bundles[0].path)
    assert files["pushed"] == set()


def test_home_region_down_at_start(airflow: Metadata, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """A dag-processor that cannot reach the home region goes on with its other bundles instead of ending."""
    text = cloud.catalogue_file.read_text().replace(cloud.moto.url, "http://127.0.0.1:9")
    cloud.catalogue_file.write_text(text)
    manager, files = processor(), dict[str, set[Any]]()
    manager._refresh_dag_bundles(files)
    assert files == {}
    cloud.catalogue_file.write_text(text.replace("http://127.0.0.1:9", cloud.moto.url))
    manager = processor()
    manager._refresh_dag_bundles(files)
    assert set(files) == {"dags", "pushed"}


def test_push_is_picked_up_at_the_next_check(
    airflow: Metadata, cloud: Cloud, dags: Path, tmp_path: Path
) -> None:
    """The dag-processor refreshes a bundle that has another version now, though its interval is an hour; otherwise it does not."""
    manager, files = processor(), dict[str, set[Any]]()
    manager._refresh_dag_bundles(files)
    store = ledger_store(cloud, "pushed", tmp_path / "secrets")
    store.publish(pack(dags), "ci", store.pointer())
    manager._refresh_dag_bundles(files)
    assert recorded(airflow, "pushed") == pack(dags).version
    assert {file.rel_path for file in files["pushed"]} == {Path("one.py")}
    del files["pushed"]
    manager._refresh_dag_bundles(files)
    assert "pushed" not in files


def test_push_during_a_refresh(airflow: Metadata, cloud: Cloud, dags: Path, tmp_path: Path) -> None:
    """A push between a refresh and Airflow's record of it is picked up at the next check: the record does not hide it."""
    manager = processor()
    manager._refresh_dag_bundles({})
    store = ledger_store(cloud, "pushed", tmp_path / "secrets")
    store.publish(pack(dags), "ci", store.pointer())
    (bundle,) = (each for each in manager._dag_bundles if each.name == "pushed")
    refresh = bundle.refresh

    def refresh_before_push() -> None:
        refresh()
        write_dag(dags, "two.py", "two")
        store.publish(pack(dags), "ci", store.pointer())

    bundle.refresh = refresh_before_push
    manager._refresh_dag_bundles({})
    bundle.refresh = refresh
    manager._refresh_dag_bundles({})
    assert recorded(airflow, "pushed") == pack(dags).version


def test_second_dag_processor_follows(airflow: Metadata, dags: Path) -> None:
    """A dag-processor that sees another version recorded than its own refreshes before its interval is over."""
    first, second = processor(), processor()
    first_files, second_files = dict[str, set[Any]](), dict[str, set[Any]]()
    first._refresh_dag_bundles(first_files)
    second._refresh_dag_bundles(second_files)
    write_dag(dags, "two.py", "two")
    second._force_refresh_bundles.add("dags")
    second._refresh_dag_bundles(second_files)
    first._refresh_dag_bundles(first_files)
    assert {str(file.rel_path) for file in first_files["dags"]} == {"one.py", "two.py"}
    assert recorded(airflow) == first._dag_bundles[0].get_current_version() == pack(dags).version


def test_callbacks_run_with_their_runs_code(airflow: Metadata, dags: Path) -> None:
    """A callback's bundle returns its path without being initialised, and has its run's files there."""
    manager = processor()
    manager._refresh_dag_bundles({})
    old = manager._dag_bundles[0].get_current_version()
    write_dag(dags, "one.py", "renamed")
    manager._force_refresh_bundles.add("dags")
    manager._refresh_dag_bundles({})
    manager._add_callback_to_queue(callback(old))
    (file,) = manager._callback_to_execute
    assert '"one"' in file.absolute_path.read_text()


def test_callback_of_another_kind_of_bundle(airflow: Metadata) -> None:
    """A callback of a run that was created when the bundle was one of Git commits finds no file, and the dag-processor goes on."""
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    commit = "8e3d1b5a" * 5
    manager = processor()
    manager._add_callback_to_queue(callback(commit))
    (file,) = manager._callback_to_execute
    assert not file.absolute_path.exists()
    with pytest.raises(AirflowException, match="expected sha256:"):
        DagBundlesManager().get_bundle("dags", commit).initialize()


def test_callback_survives_a_full_disk(
    airflow: Metadata, dags: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A callback whose code cannot be unpacked finds no file, and the dag-processor goes on."""
    manager = processor()
    manager._refresh_dag_bundles({})
    old = manager._dag_bundles[0].get_current_version()
    shutil.rmtree(manager._dag_bundles[0].path)

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(BundleStore, "fetch", full)
    manager._add_callback_to_queue(callback(old))
    (file,) = manager._callback_to_execute
    assert not file.absolute_path.exists()


def test_callback_without_version(airflow: Metadata) -> None:
    """A callback of a run that is not pinned to a version has the code that is current."""
    manager = processor()
    manager._refresh_dag_bundles({})
    manager._add_callback_to_queue(callback(None))
    (file,) = manager._callback_to_execute
    assert '"one"' in file.absolute_path.read_text()


def test_stale_versions_are_airflows_to_remove(airflow: Metadata) -> None:
    """A version is stored where Airflow's clean-up of used versions looks for it."""
    from airflow.dag_processing.bundles.base import get_bundle_version_path
    from airflow.dag_processing.bundles.manager import DagBundlesManager

    bundle = DagBundlesManager().get_bundle("dags")
    assert isinstance(bundle, AirBridgeBundle)
    bundle.initialize()
    assert bundle.path == get_bundle_version_path("dags", bundle.get_current_version())


def test_import_errors_of_a_refused_snapshot(airflow: Metadata) -> None:
    """Import errors of a refused snapshot are listed beside Airflow's own, replace one another, and go with the next version."""
    from airflow.models.errors import ParseImportError

    def listed() -> set[str]:
        with airflow.session() as session:
            return {row.filename for row in session.query(ParseImportError)}

    manager = processor()
    report_import_errors("dags", {"a.py": "a.py:1: x", "b.py": "b.py:1: x"})
    report_import_errors("dags", {"b.py": "b.py:1: x"})
    report_import_errors("pushed", {"c.py": "c.py:1: x"})
    assert listed() == {"b.py (not published)", "c.py (not published)"}
    manager.clear_orphaned_import_errors(bundle_name="dags", observed_filelocs=set())
    assert listed() == {"c.py (not published)"}
    report_import_errors("pushed", {})
    assert listed() == set()


def test_errors_of_left_out_files_stay(airflow: Metadata, dags: Path) -> None:
    """What a source has and cannot publish is an import error after each of the dag-processor's looks but the one that
    brought a version, and goes with its cause."""
    from airflow.models.errors import ParseImportError

    def listed() -> set[str]:
        with airflow.session() as session:
            return {row.filename for row in session.query(ParseImportError)}

    os.mkfifo(dags / "pipe")
    manager, files = processor(), dict[str, set[Any]]()
    manager._refresh_dag_bundles(files)
    found = []
    for _ in range(3):
        manager._refresh_dag_bundles(files)
        found.append(listed())
    assert found == [{"pipe (not published)"}] * 3
    assert {str(file.rel_path) for file in files["dags"]} == {"one.py"}
    (dags / "pipe").unlink()
    manager._force_refresh_bundles.add("dags")
    manager._refresh_dag_bundles(files)
    assert listed() == set()


def test_version_fits_airflows_columns() -> None:
    """A digest fits every column that Airflow keeps a bundle's version in."""
    from airflow.models.dag import DagModel
    from airflow.models.dag_version import DagVersion
    from airflow.models.dagbundle import DagBundleModel
    from airflow.models.dagrun import DagRun

    columns = [
        DagBundleModel.version,
        DagModel.bundle_version,
        DagRun.bundle_version,
        DagVersion.bundle_version,
    ]
    lengths = [getattr(column.type, "length", None) for column in columns]
    assert all(length is None or length >= len("sha256:") + 64 for length in lengths)
