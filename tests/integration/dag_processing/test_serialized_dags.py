"""Serialised DAGs: gadgets are refused with the DAG, the key and the class; what Airflow's own examples contain is stored."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.security.attacks.serialized_dags import GADGETS, planted

from airbridge.control_plane.dag_processing.serialized_dags import SerializedDagCheck
from airbridge.core.violations import Violation

ORDINARY = """
from datetime import datetime, timedelta
import pendulum
from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.providers.standard.sensors.filesystem import FileSensor
from airflow.sdk import Asset, AssetAlias, DAG, Param, task, task_group
from airflow.timetables.trigger import CronTriggerTimetable

with DAG(
    "ordinary",
    schedule=CronTriggerTimetable("0 * * * *", timezone="Europe/Berlin"),
    start_date=pendulum.datetime(2025, 1, 1, tz="Europe/Berlin"),
    default_args={"retries": 2, "retry_delay": timedelta(minutes=1)},
    params={"p": Param(1, type="integer"), "q": Param({"a": 1}, schema={"type": "object"})},
    owner_links={"me": "https://example.com", "you": "mailto:you@example.com"},
    dagrun_timeout=timedelta(hours=1),
    tags=["a"],
):
    @task(inlets=[Asset("a")], outlets=[AssetAlias("b")], executor_config={"x": (1, {2})})
    def first(x=None):
        return [1, 2]

    @task_group
    def group(x):
        first.override(task_id="inner")(x)

    group.expand(x=first())
    BashOperator.partial(task_id="bash", env={"$ref": "x"}).expand(bash_command=["a", "b"])
    FileSensor(task_id="file", filepath="/x")
    FileSensor.partial(task_id="files").expand(filepath=["/x", "/y"])
    DateTimeSensorAsync(task_id="wait", target_time=datetime(2025, 1, 1), start_from_trigger=True)

with DAG("on_asset", schedule=(Asset("a") | Asset("b")) & AssetAlias("c")):
    BashOperator(task_id="t", bash_command="true")
"""


@pytest.fixture(scope="module")
def check() -> SerializedDagCheck:
    return SerializedDagCheck.installed()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundle")
    (path / "ordinary.py").write_text(ORDINARY)
    return path


@pytest.fixture(scope="module")
def ordinary(folder: Path) -> dict[str, Any]:
    """The DAGs of the file as they come over the wire, by id."""
    return serialized(folder / "ordinary.py", folder)


def serialized(file: Path, folder: Path) -> dict[str, Any]:
    from airflow.models.dagbag import DagBag
    from airflow.serialization.serialized_objects import SerializedDAG

    bag = DagBag(dag_folder=str(file), bundle_path=folder, include_examples=False, load_op_links=False)
    assert bag.import_errors == {}
    return {dag_id: json.loads(json.dumps(SerializedDAG.to_dict(dag))) for dag_id, dag in bag.dags.items()}


@pytest.mark.parametrize("dag_id", ["ordinary", "on_asset"])
def test_ordinary_dags_pass(
    check: SerializedDagCheck, ordinary: dict[str, Any], folder: Path, dag_id: str
) -> None:
    """Params, assets, aliases, mapping, groups, sensors that can start from a trigger, timetables, time zones."""
    check.check(ordinary[dag_id], str(folder / "ordinary.py"), str(folder))


@pytest.mark.parametrize("gadget", GADGETS)
def test_gadget_is_refused(
    check: SerializedDagCheck, ordinary: dict[str, Any], folder: Path, gadget: str
) -> None:
    """A class that the decoder would import, a source that it would show, a script, a key that breaks the scheduler."""
    data = planted(ordinary["ordinary"], gadget)
    with pytest.raises(Violation):
        check.check(data, str(folder / "ordinary.py"), str(folder))


def test_refusal_names_dag_key_and_class(
    check: SerializedDagCheck, ordinary: dict[str, Any], folder: Path
) -> None:
    """The import error names the refused value; the file's other DAGs are stored."""
    from airflow.serialization.serialized_objects import LazyDeserializedDAG

    file = str(folder / "ordinary.py")
    bad = planted(ordinary["ordinary"], "exception in default_args")
    good = LazyDeserializedDAG(data=ordinary["on_asset"])
    result = SimpleNamespace(
        fileloc="/etc/passwd",
        serialized_dags=[SimpleNamespace(data=bad), good],
        import_errors={file: "an error of its own", "/another/file.py": "forged"},
    )
    check.filter(result, file, str(folder))
    assert result.serialized_dags == [good]
    assert result.fileloc == file
    (text,) = result.import_errors.values()
    for part in ("an error of its own", "DAG 'ordinary' is refused", "dag.default_args", "builtins.exec"):
        assert part in text


@pytest.mark.parametrize(
    "data", [None, [], {}, {"__version": 2}, {"__version": 2, "dag": {}}, {"__version": 2, "dag": 1}]
)
def test_malformed_data_is_refused(check: SerializedDagCheck, folder: Path, data: Any) -> None:
    """Data that is no DAG at all is an import error, and does not end the dag-processor."""
    result = SimpleNamespace(fileloc="", serialized_dags=[SimpleNamespace(data=data)], import_errors=None)
    check.filter(result, str(folder / "ordinary.py"), str(folder))
    assert result.serialized_dags == []
    assert "is refused" in result.import_errors[str(folder / "ordinary.py")]


def test_linked_file_is_refused(check: SerializedDagCheck, ordinary: dict[str, Any], tmp_path: Path) -> None:
    """A DAG file that is a link out of its bundle is not shown as source."""
    (tmp_path / "secret").write_text("a key")
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    (bundle / "ordinary.py").symlink_to(tmp_path / "secret")
    data = json.loads(json.dumps(ordinary["on_asset"]))
    data["dag"]["fileloc"] = str(bundle / "ordinary.py")
    with pytest.raises(Violation, match="link"):
        check.check(data, str(bundle / "ordinary.py"), str(bundle))


def test_added_trigger_class_passes(ordinary: dict[str, Any], folder: Path) -> None:
    """``[airbridge] trigger_classes`` extends what a DAG may name."""
    data = planted(ordinary["ordinary"], "trigger of the author's own")
    SerializedDagCheck.installed(["dags.evil.Trigger"]).check(data, str(folder / "ordinary.py"), str(folder))
