"""Airflow's own example DAGs, and one that leans on the file system, reach at the edge the outcome that they reach under
LocalExecutor, with a state directory below /tmp.

Each file of the installed package is put into the DAG folder twice, with a few lines at its end that give its DAGs other names, and
one of the two LocalExecutor. Both run side by side.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import airflow
import pytest
from tests.support.platform import BOTH_EXECUTORS, LocalPlatform, running

EXAMPLES = Path(airflow.__file__).parent / "example_dags"
OWN = Path(__file__).parent / "dags" / "file_expectations.py"
RUN_ID = "example"
TIMEOUT_SECONDS = 420.0

CHOSEN = (
    "example_bash_decorator",
    "example_bash_operator",
    "example_dynamic_task_mapping",
    "example_nested_branch_dag",
    "example_outlet_event_extra",
    "example_passing_params_via_test_command",
    "example_sensor_decorator",
    "example_setup_teardown_taskflow",
    "example_short_circuit_decorator",
    "example_skip_dag",
    "example_trigger_controller_dag",
    "example_trigger_target_dag",
    "example_xcomargs",
    "tutorial_dag",
    "tutorial_taskflow_templates",
)
"""One of each kind: LocalExecutor takes more than a second of CPU a task."""

NOT_RUN = {
    "example_asset_alias": "schedules by assets, which both variants would share",
    "example_asset_alias_with_no_taskflow": "schedules by assets, which both variants would share",
    "example_asset_decorator": "schedules by assets, which both variants would share",
    "example_asset_with_watchers": "a trigger polls a file for ever",
    "example_assets": "schedules by assets, which both variants would share",
    "example_branch_datetime_operator": "as example_short_circuit_decorator",
    "example_branch_day_of_week_operator": "depends on the day",
    "example_branch_labels": "as example_nested_branch_dag",
    "example_branch_operator": "installs packages from an index",
    "example_branch_operator_decorator": "installs packages from an index",
    "example_branch_python_dop_operator_3": "depends on the minute",
    "example_complex": "as example_bash_operator, 37 times",
    "example_custom_weight": "needs a plugin in the scheduler",
    "example_dag_decorator": "reads from the internet",
    "example_display_name": "as example_bash_operator",
    "example_dynamic_task_mapping_with_no_taskflow_operators": "as example_dynamic_task_mapping",
    "example_external_task_child_deferrable": "waits for a run of another DAG",
    "example_external_task_marker_dag": "waits for a run of another DAG",
    "example_external_task_parent_deferrable": "waits for a run of another DAG",
    "example_hitl_operator": "needs a human",
    "example_inlet_event_extra": "reads asset events, which both variants would share",
    "example_kubernetes_executor": "needs Kubernetes",
    "example_latest_only": "as example_skip_dag",
    "example_latest_only_with_trigger": "as example_skip_dag",
    "example_local_kubernetes_executor": "needs Kubernetes",
    "example_params_trigger_ui": "needs a human to fill in a form",
    "example_params_ui_tutorial": "needs a human to fill in a form",
    "example_python_decorator": "installs packages from an index",
    "example_python_operator": "installs packages from an index",
    "example_sensors": "waits for a time of day",
    "example_setup_teardown": "as example_setup_teardown_taskflow",
    "example_short_circuit_operator": "as example_short_circuit_decorator",
    "example_simplest_dag": "as example_display_name",
    "example_task_group": "as example_dynamic_task_mapping",
    "example_task_group_decorator": "as example_dynamic_task_mapping",
    "example_time_delta_sensor_async": "deferral: test_features.py",
    "example_workday_timetable": "needs a plugin in the scheduler",
    "example_xcom": "as example_xcomargs",
    "tutorial": "as tutorial_dag",
    "tutorial_objectstorage": "reads from the internet",
    "tutorial_taskflow_api": "as tutorial_dag",
    "tutorial_taskflow_api_virtualenv": "installs packages from an index",
}

TAIL = """

def _give_variant(suffix, executor):
    from airflow.sdk import DAG
    from airflow.sdk.definitions._internal.contextmanager import DagContext
    from airflow.timetables.simple import NullTimetable

    found = [each for each in globals().values() if isinstance(each, DAG)]
    found += [dag for dag, _ in DagContext.autoregistered_dags]
    for dag in {id(each): each for each in found}.values():
        dag.dag_id += suffix
        for name, value in (("schedule", None), ("timetable", NullTimetable())):
            object.__setattr__(dag, name, value)  # frozen; no runs but the test's
        for task in dag.task_dict.values():
            settings = getattr(task, "partial_kwargs", None)
            if settings is None:
                task.executor = executor
                if hasattr(task, "trigger_dag_id"):
                    task.trigger_dag_id += suffix
            else:
                settings["executor"] = executor


"""
VARIANTS = {"edge": None, "local": "LocalExecutor"}


def examples() -> dict[str, Path]:
    """Return the files of the installed package that have DAGs, by name."""
    files = (*EXAMPLES.glob("[et]*.py"), *EXAMPLES.glob("standard/[et]*.py"))
    return {file.stem: file for file in files}


@pytest.fixture(scope="module", params=["/tmp", "/var/lib", str(Path.home())])
def placed(request: pytest.FixtureRequest) -> Iterator[LocalPlatform]:
    """A platform with both executors whose state directory lies below /tmp, where services have theirs, or below HOME."""
    if not os.access(request.param, os.W_OK):
        pytest.skip(f"{request.param} cannot be written to")
    with running(request.param, airflow=BOTH_EXECUTORS) as platform:
        yield platform


@pytest.fixture(scope="module")
def outcomes(placed: LocalPlatform) -> dict[str, dict[str, Any]]:
    """What became of every DAG, by its name and variant."""
    platform = placed
    for folder in ("sql", "libs"):
        shutil.copytree(EXAMPLES / folder, Path(platform.state.dags) / folder, dirs_exist_ok=True)
    found = {**examples(), OWN.stem: OWN}
    for name in (*CHOSEN, OWN.stem):
        for suffix, executor in VARIANTS.items():
            call = f"_give_variant('__{suffix}', {executor!r})\n"
            platform.add_dag(f"{name}__{suffix}", found[name].read_text() + TAIL + call)
    dag_ids = _parsed(platform)
    for dag_id in dag_ids:
        platform.airflow.unpause(dag_id)
        platform.airflow.trigger(dag_id, run_id=RUN_ID)
    _wait(platform, len(dag_ids))
    return {dag_id: _outcome(platform, dag_id) for dag_id in dag_ids}


def _parsed(platform: LocalPlatform) -> list[str]:
    """Wait until all files are parsed; return their DAGs."""
    deadline, wanted = time.monotonic() + 90, len(VARIANTS) * (len(CHOSEN) + 1)
    while True:
        rows = platform.query(
            "SELECT dag_id, fileloc FROM dag WHERE dag_id LIKE '%%\\_\\_%%' AND NOT is_stale"
        )
        if len({file for _, file in rows}) >= wanted:
            return sorted(dag_id for dag_id, _ in rows)
        errors = platform.query("SELECT filename, stacktrace FROM import_error")
        assert not errors
        assert time.monotonic() < deadline, rows
        time.sleep(0.5)


def _wait(platform: LocalPlatform, runs: int) -> None:
    deadline = time.monotonic() + TIMEOUT_SECONDS
    ended = "SELECT count(*) FROM dag_run WHERE run_id = %s AND state IN ('success', 'failed')"
    while platform.query(ended, RUN_ID)[0][0] < runs:
        if time.monotonic() > deadline:
            unfinished = platform.query(
                "SELECT ti.dag_id, task_id, ti.state FROM task_instance ti JOIN dag_run r USING (dag_id, run_id)"
                " WHERE run_id = %s AND r.state NOT IN ('success', 'failed') ORDER BY 1, 2",
                RUN_ID,
            )
            pytest.fail(f"the examples have not ended after {TIMEOUT_SECONDS:.0f} s: {unfinished}")
        time.sleep(0.5)


def _outcome(platform: LocalPlatform, dag_id: str) -> dict[str, Any]:
    run = platform.query("SELECT state FROM dag_run WHERE dag_id = %s AND run_id = %s", dag_id, RUN_ID)
    tasks = "SELECT task_id, map_index, state, try_number FROM task_instance WHERE dag_id = %s AND run_id = %s ORDER BY 1, 2"
    return {"run": run, "tasks": platform.query(tasks, dag_id, RUN_ID)}


def test_every_example_is_run_or_has_reason() -> None:
    """An example that a new version of Airflow brings is looked at."""
    assert set(examples()) <= {*CHOSEN, *NOT_RUN}


@pytest.mark.slow("make proof-examples")
@pytest.mark.timeout(600)
def test_files_are_found_as_under_local_executor(
    placed: LocalPlatform, outcomes: dict[str, dict[str, Any]]
) -> None:
    """Directories are listed, and files made in literal /tmp and the like are there for the next task, with equal results."""
    returned = {}
    for variant in VARIANTS:
        dag_id = f"{OWN.stem}__{variant}"
        assert outcomes[dag_id]["run"] == [("success",)], outcomes[dag_id]
        returned[variant] = [
            placed.airflow.xcom(dag_id, RUN_ID, task_id, "return_value", -1)
            for task_id in ("lists", "reads", "shell", "virtualenv")
        ]
    assert returned["edge"] == returned["local"]


@pytest.mark.slow("make proof-examples")
@pytest.mark.timeout(600)
def test_examples_run_as_under_local_executor(outcomes: dict[str, dict[str, Any]]) -> None:
    """The state of each run, and the state and tries of each task, are the same under both executors."""
    names = {dag_id.rpartition("__")[0] for dag_id in outcomes}
    different = {
        name: (outcomes[f"{name}__edge"], outcomes[f"{name}__local"])
        for name in names
        if outcomes[f"{name}__edge"] != outcomes[f"{name}__local"]
    }
    assert different == {}
    assert len(names) >= len(CHOSEN)
