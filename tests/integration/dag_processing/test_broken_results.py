"""Results of parsing that Airflow cannot store or decode: an import error of their file, and no service ends with them."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select
from tests.support.airflow_home import Metadata

from airbridge.control_plane.dag_processing import _airflow
from airbridge.control_plane.dag_processing.serialized_dags import SerializedDagCheck

CODE = """
import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG("ordinary", schedule="0 * * * *", start_date=pendulum.datetime(2025, 1, 1), tags=["a"]):
    BashOperator(task_id="t", bash_command="true")
"""


def _task(dag: dict[str, Any]) -> dict[str, Any]:
    task: dict[str, Any] = dag["tasks"][0]["__var"]
    return task


# What a DAG file's process can send in place of the DAG of its file.
BROKEN: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a date out of range": lambda dag: dag.update(start_date=1e300),
    "text as a date": lambda dag: dag.update(start_date="x"),
    "an endless timeout": lambda dag: dag.update(dagrun_timeout=1e300),
    "an unknown time zone": lambda dag: dag["timetable"]["__var"].update(timezone="x"),
    "a timetable without data": lambda dag: dag["timetable"].update(__var={}),
    "a schedule that stands still": lambda dag: dag.update(
        timetable={
            "__type": "airflow.timetables.trigger.DeltaTriggerTimetable",
            "__var": {"delta": 0.0, "interval": 0.0},
        }
    ),
    "no timetable": lambda dag: dag.pop("timetable"),
    "a list as id": lambda dag: dag.update(dag_id=["x"]),
    "a long id": lambda dag: dag.update(dag_id="x" * 300),
    "a lone surrogate": lambda dag: dag.update(description="\ud800"),
    "a list as a tag": lambda dag: dag.update(tags=[["x"]]),
    "text as a limit": lambda dag: dag.update(max_active_runs="x"),
    "a limit out of range": lambda dag: dag.update(max_active_runs=10**30),
    "text as a flag": lambda dag: dag.update(is_paused_upon_creation="x"),
    "a task without fields": lambda dag: _task(dag).pop("template_fields"),
    "an unknown weight rule": lambda dag: _task(dag).update(weight_rule="x"),
    "a task before nothing": lambda dag: _task(dag).update(downstream_task_ids=["nowhere"]),
    "a cycle": lambda dag: _task(dag).update(downstream_task_ids=["t"]),
    "a group of nothing": lambda dag: dag["task_group"].update(children={"x": ["operator", "nowhere"]}),
    "a list as owner": lambda dag: _task(dag).update(owner=["x"]),
    "an asset without a name": lambda dag: _task(dag).update(outlets=[{"__type": "asset", "__var": {}}]),
    "a class of no class": lambda dag: _task(dag).update(
        more={
            "__type": "operator",
            "__var": {
                "task_id": "y",
                "template_fields": [],
                "task_type": "x",
                "_task_module": "x",
                "__class__": "x",
            },
        }
    ),
}


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle") / "ordinary.py"
    path.write_text(CODE)
    return path


@pytest.fixture(scope="module")
def data(file: Path) -> dict[str, Any]:
    """The DAG of the file as it comes over the wire."""
    from airflow.models.dagbag import DagBag
    from airflow.serialization.serialized_objects import SerializedDAG

    bag = DagBag(dag_folder=str(file), bundle_path=file.parent, include_examples=False, load_op_links=False)
    found: dict[str, Any] = json.loads(json.dumps(SerializedDAG.to_dict(bag.dags["ordinary"])))
    return found


@pytest.fixture(scope="module")
def check() -> SerializedDagCheck:
    return SerializedDagCheck.installed()


class Store:
    """The dag-processor's way from a result to the database."""

    def __init__(self, metadata: Metadata, check: SerializedDagCheck, file: Path) -> None:
        from airflow.dag_processing import manager
        from airflow.models.dagbundle import DagBundleModel

        self._metadata, self._check, self._file = metadata, check, str(file)
        self._store = _airflow.storing_each(manager.process_parse_results)
        with metadata.session() as session:
            session.merge(DagBundleModel(name="b"))
            session.commit()

    def __call__(self, data: dict[str, Any], **more: Any) -> None:
        from airflow.dag_processing.processor import DagFileParsingResult
        from airflow.serialization.serialized_objects import LazyDeserializedDAG

        result = DagFileParsingResult(
            fileloc="", serialized_dags=[LazyDeserializedDAG(data=copy.deepcopy(data))], **more
        )
        self._check.filter(result, self._file, str(Path(self._file).parent))
        with self._metadata.session() as session:
            self._store(
                run_duration=0.0, finish_time=datetime.now(UTC), run_count=0, bundle_name="b", bundle_version=None,
                parsing_result=result, session=session,
            )  # fmt: skip

    def errors(self) -> list[str]:
        from airflow.models.errors import ParseImportError

        with self._metadata.session() as session:
            return list(session.scalars(select(ParseImportError.stacktrace)))

    def decodable(self) -> list[str]:
        """The stored DAGs, each decoded as the scheduler does."""
        from airflow.models.dagbag import DagBag
        from airflow.models.serialized_dag import SerializedDagModel

        bag = DagBag(read_dags_from_db=True)
        with self._metadata.session() as session:
            ids = session.scalars(select(SerializedDagModel.dag_id).distinct()).all()
            return [bag.get_dag(each, session).dag_id for each in ids]


@pytest.fixture
def store(metadata: Metadata, check: SerializedDagCheck, file: Path) -> Store:
    return Store(metadata, check, file)


def test_broken_dags_are_import_errors(store: Store, data: dict[str, Any]) -> None:
    """None of them ends the dag-processor, or stands where the scheduler would end with it; the file is good afterwards."""
    for name, breaking in BROKEN.items():
        changed = copy.deepcopy(data)
        breaking(changed["dag"])
        store(changed)
        assert len(store.errors()) == 1, name
        assert store.decodable() == [], name
    store(data)
    assert store.decodable() == ["ordinary"]
    assert store.errors() == []


def test_other_files_stay_stored(store: Store, data: dict[str, Any]) -> None:
    """What was stored of a file before is not lost with what cannot be stored."""
    store(data)
    broken = copy.deepcopy(data)
    broken["dag"].update(dag_id="another", max_active_runs="x")
    store(broken)
    assert store.decodable() == ["ordinary"]


@pytest.mark.parametrize(
    "more",
    [{"warnings": [{}]}, {"warnings": [[1]]}, {"import_errors": {"FILE": "NUL \0 and \ud800"}}],
    ids=str,
)
def test_hostile_reports_are_harmless(
    store: Store, data: dict[str, Any], file: Path, more: dict[str, Any]
) -> None:
    """Warnings that cannot be hashed and texts that cannot be stored do not end the dag-processor."""
    if "import_errors" in more:
        more = {"import_errors": {str(file): "NUL \0 and \ud800"}}
    store(data, **more)
    assert store.decodable() == ["ordinary"]


def test_too_large_for_an_index(store: Store, data: dict[str, Any]) -> None:
    """PostgreSQL reports an index entry that is too large as it does a failure of its own: nothing is tried for ever."""
    name = "".join(chr(0x4E00 + (each * 7919) % 20_000) for each in range(1500))
    asset = {"name": name, "uri": name, "group": "asset", "extra": {}}
    changed = copy.deepcopy(data)
    _task(changed["dag"]).update(outlets=[{"__type": "asset", "__var": asset}])
    store(changed)
    store(data)
    assert store.decodable() == ["ordinary"]
