"""Files that are queued or being parsed when a bundle gets another version."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.support.airflow_home import Metadata

from airbridge.control_plane.dag_processing import _airflow

V1, V2 = "sha256:" + 64 * "1", "sha256:" + 64 * "2"
CODE = 'from airflow.sdk import DAG\n\nwith DAG("{dag_id}", schedule=None):\n    pass\n'


@pytest.fixture
def versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of the versions of the bundle `dags`, with a DAG file in each of two."""
    monkeypatch.setenv("AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_STORAGE_PATH", str(tmp_path))
    folder = tmp_path / "dags" / "versions"
    for version, dag_id in ((V1, "before"), (V2, "after")):
        (folder / version).mkdir(parents=True)
        (folder / version / "one.py").write_text(CODE.format(dag_id=dag_id))
    return folder


@pytest.fixture
def store(sqlite_metadata: Metadata) -> Callable[[Path, str | None], Any]:
    """Parses a file of the bundle and stores its DAGs under a version, as the dag-processor does."""
    from airflow.dag_processing import manager
    from airflow.dag_processing.processor import DagFileParsingResult
    from airflow.models.dagbag import DagBag
    from airflow.models.dagbundle import DagBundleModel
    from airflow.serialization.serialized_objects import LazyDeserializedDAG, SerializedDAG

    storing = _airflow.storing_each(manager.process_parse_results)
    with sqlite_metadata.session() as session:
        session.add(DagBundleModel(name="dags"))
        session.commit()

    def parse_and_store(file: Path, version: str | None) -> Any:
        bag = DagBag(dag_folder=file, bundle_path=file.parent, include_examples=False, load_op_links=False)
        dags = [LazyDeserializedDAG(data=SerializedDAG.to_dict(dag)) for dag in bag.dags.values()]
        result = DagFileParsingResult(
            fileloc=str(file), serialized_dags=dags, import_errors=bag.import_errors
        )
        with sqlite_metadata.session() as session:
            return storing(
                run_duration=0.1, finish_time=datetime.now(UTC), run_count=3, bundle_name="dags", bundle_version=version,
                parsing_result=result, session=session,
            )  # fmt: skip

    return parse_and_store


def recorded(metadata: Metadata) -> dict[str, str | None]:
    from airflow.models.dag import DagModel

    with metadata.session() as session:
        return {dag.dag_id: dag.bundle_version for dag in session.query(DagModel)}


@pytest.fixture
def manager(sqlite_metadata: Metadata) -> Any:
    from airflow.dag_processing.manager import DagFileProcessorManager

    return DagFileProcessorManager(max_runs=1)


def file_of(folder: Path, version: str | None = None) -> Any:
    from airflow.dag_processing.manager import DagFileInfo

    return DagFileInfo(Path("one.py"), "dags", bundle_path=folder, bundle_version=version)


def test_file_of_another_version_is_not_recorded(
    sqlite_metadata: Metadata, store: Callable[[Path, str | None], Any], versions: Path
) -> None:
    """DAGs and import errors of a file that was parsed in the version before are not recorded under the new one."""
    (versions / V1 / "broken.py").write_text("import nothing_of_this_name\n")
    store(versions / V1 / "one.py", V2)
    store(versions / V1 / "broken.py", V2)
    assert recorded(sqlite_metadata) == {}
    assert import_errors(sqlite_metadata) == 0
    store(versions / V2 / "one.py", V2)
    assert recorded(sqlite_metadata) == {"after": V2}


def import_errors(metadata: Metadata) -> int:
    from airflow.models.errors import ParseImportError

    with metadata.session() as session:
        return int(session.query(ParseImportError).count())


def test_superseded_file_is_due_again(
    manager: Any, store: Callable[[Path, str | None], Any], versions: Path
) -> None:
    """A file whose result was not recorded is queued again at once, in the new version, and has not used one of the runs."""
    stat = store(versions / V1 / "one.py", V2)
    manager._file_stats[file_of(versions / V1)] = stat
    manager.prepare_file_queue({"dags": {file_of(versions / V2)}})
    assert [file.absolute_path for file in manager._file_queue] == [versions / V2 / "one.py"]
    assert stat.run_count == 3


def test_other_bundles_are_recorded(
    sqlite_metadata: Metadata, store: Callable[[Path, str | None], Any], versions: Path, tmp_path: Path
) -> None:
    """A file outside of the versions' directory, as those of other bundles of Airflow's, and one without a version are recorded."""
    elsewhere = tmp_path / "tracking" / "one.py"
    elsewhere.parent.mkdir()
    elsewhere.write_text(CODE.format(dag_id="elsewhere"))
    store(elsewhere, V2)
    store(versions / V1 / "one.py", None)
    assert recorded(sqlite_metadata) == {"elsewhere": V2, "before": None}


def test_queued_files_are_parsed_in_the_current_version(
    manager: Any, versions: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A queued file is parsed where the current version is; a callback in its run's version, and another bundle's file where it was."""
    parsed: list[Path] = []

    def create(_self: Any, file: Any) -> Any:
        parsed.append(file.absolute_path)
        return SimpleNamespace()

    monkeypatch.setattr(type(manager), "_create_process", create)
    _airflow.parse_current_files()
    manager._bundle_versions = {"dags": V2}
    manager._parallelism = 9
    for file in (file_of(versions / V1), file_of(versions / V1, V1)):
        manager._file_queue.append(file)
    manager._start_new_processes()
    assert parsed == [versions / V2 / "one.py", versions / V1 / "one.py"]

    manager._processors.clear()
    manager._file_queue.append(file_of(tmp_path / "tracking"))
    manager._start_new_processes()
    assert parsed[2:] == [tmp_path / "tracking" / "one.py"]


@pytest.fixture
def kept_callbacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The dag-processor with callbacks that run to their end, for one test."""
    from airflow.dag_processing.manager import DagFileProcessorManager

    for name in ("handle_removed_files", "_collect_results"):
        monkeypatch.setattr(DagFileProcessorManager, name, getattr(DagFileProcessorManager, name))
    _airflow.keep_callbacks()


@pytest.mark.usefixtures("kept_callbacks")
def test_new_version_keeps_callbacks(manager: Any, versions: Path) -> None:
    """A callback is neither dropped from the queue nor killed when its bundle, or another, gets a new version."""
    killed: list[int] = []
    process = SimpleNamespace(kill=killed.append, logger_filehandle=SimpleNamespace(close=lambda: None))
    queued, gone = file_of(versions / V1, V1), file_of(versions / V1)
    running = replace(queued, rel_path=Path("two.py"))
    manager._file_queue = deque([queued, replace(gone, rel_path=Path("three.py"))])
    manager._processors = {running: process}
    manager.handle_removed_files({"dags": {file_of(versions / V2)}})
    assert list(manager._file_queue) == [queued]
    assert (list(manager._processors), killed) == ([running], [])


@pytest.mark.usefixtures("kept_callbacks")
def test_callback_of_a_bundle_that_was_never_refreshed(manager: Any, versions: Path) -> None:
    """Its result is collected as any other: the dag-processor goes on."""
    closed: list[bool] = []
    file = file_of(versions / V1, V1)
    manager._processors = {
        file: SimpleNamespace(
            is_ready=True,
            start_time=0.0,
            parsing_result=None,
            logger_filehandle=SimpleNamespace(close=lambda: closed.append(True)),
        )
    }
    manager._collect_results()
    assert manager._processors == {}
    assert closed == [True]
    assert "dags" not in manager._bundle_versions
