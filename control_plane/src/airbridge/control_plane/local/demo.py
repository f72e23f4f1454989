"""Demo: a DAG over data in two regions, from an empty directory to a result and a cleanup."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from airbridge.control_plane import samples
from airbridge.control_plane.local import overview, state
from airbridge.control_plane.local.exceptions import AlreadyRunning
from airbridge.control_plane.local.launch import launch
from airbridge.control_plane.local.layout import StateDir
from airbridge.control_plane.local.options import Options
from airbridge.control_plane.local.platform import BUILDING_TEMPLATE, has_template
from airbridge.control_plane.local.services import aws
from airbridge.control_plane.local.services import terraform as deployment
from airbridge.control_plane.local.services.airflow_rest import AirflowRest
from airbridge.control_plane.local.services.credentials import ADMINISTRATOR
from airbridge.control_plane.local.state import ComponentState, PlatformState
from airbridge.core.exceptions import ConfigurationError


class TaskRow(BaseModel):
    """Task of the run: the region of its data, the region and worker it ran on, and its times in seconds."""

    model_config = ConfigDict(frozen=True)

    task: str
    data_in: str
    region: str | None
    worker: str | None
    wait: float | None
    run: float | None
    state: str | None

    @property
    def ran_near_data(self) -> bool:
        """True if the task ran in the region of its data."""
        return self.region == self.data_in


class Report(BaseModel):
    """Result of the demo."""

    model_config = ConfigDict(frozen=True)

    state: str
    tasks: tuple[TaskRow, ...]
    result: dict[str, Any] | None
    log_of: str
    log: tuple[str, ...]
    seconds_to_ready: float
    seconds_to_run: float

    @property
    def ok(self) -> bool:
        """True if the run succeeded and every task ran in the region of its data."""
        return self.state == "success" and all(task.ran_near_data for task in self.tasks)


class View(Protocol):
    """Observer of the demo's progress."""

    def note(self, text: str) -> None:
        """Show a step."""

    def changed(self, component: ComponentState) -> None:
        """Show a component's new state."""

    def tasks(self, rows: tuple[TaskRow, ...]) -> None:
        """Show the run's tasks."""


def run(
    directory: Path | None,
    cache: Path,
    environ: Mapping[str, str],
    view: View,
    terraform: Path | None = None,
) -> Report:
    """Run the demo in `directory`, or in a temporary one; on the deployment in `terraform`, if given.

    Raises `AlreadyRunning`, `StartFailed`, `RunFailed` or `ConfigurationError`.
    """
    with ExitStack() as stack:
        root = directory or Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="airbridge-demo-", ignore_cleanup_errors=True)
            )
        )
        options = Options(directory=root.resolve(), terraform=terraform)
        if terraform is not None:
            options = replace(options, regions=_regions_with_data(terraform))
        return _run(options, cache, environ, view, stack)


def _regions_with_data(terraform: Path) -> tuple[aws.EmulatedRegion, ...]:
    """Return the deployment's regions. Raises `ConfigurationError` unless they have the buckets of the sample data."""
    regions = deployment.read(terraform)
    deployment.check_applied(regions, terraform, ADMINISTRATOR)
    for data in samples.data_objects():
        bucket = aws.EmulatedRegion(name=data.region).data_bucket
        if bucket not in regions.data_buckets.get(data.region, ()):
            raise ConfigurationError(
                f"{terraform}: the demo's data belongs in s3://{bucket}, which no region {data.region} there has; "
                "deploy the environment 'local'"
            )
    return regions.regions


def _run(options: Options, cache: Path, environ: Mapping[str, str], view: View, stack: ExitStack) -> Report:
    begun = time.monotonic()
    directory = StateDir(options.directory)
    holder = state.lock_holder(directory)
    if holder is not None:
        raise AlreadyRunning(options.directory, holder)
    # The DAG is in place before the dag-processor scans for the first time: the next scan is seconds later.
    shutil.copytree(samples.dags_folder(), directory.dags, dirs_exist_ok=True)
    if not has_template(cache):
        view.note(BUILDING_TEMPLATE)
    launched = launch(options, cache, environ, dies_with_parent=True)
    stack.callback(launched.stop)
    platform = launched.await_ready(view.changed)
    ready = time.monotonic()
    view.note("uploading the data to each region's bucket")
    _upload(platform, options)
    with AirflowRest(platform.ui_url) as airflow:
        report = _follow(airflow, directory, view, ready - begun)
    view.note("stopping the platform")
    return report


def _follow(airflow: AirflowRest, directory: StateDir, view: View, seconds_to_ready: float) -> Report:
    view.note(f"waiting for the DAG {samples.DAG_ID} to be parsed")
    airflow.wait_for_dag(samples.DAG_ID)
    airflow.unpause(samples.DAG_ID)
    begun = time.monotonic()
    run_id = airflow.trigger(samples.DAG_ID)
    view.note(f"triggered {run_id}")

    def rows(instances: list[dict[str, Any]]) -> tuple[TaskRow, ...]:
        return task_rows(instances, overview.task_regions(directory, samples.DAG_ID, run_id))

    outcome = airflow.wait(samples.DAG_ID, run_id, seen=lambda instances: view.tasks(rows(instances)))
    took = time.monotonic() - begun
    tasks = rows(airflow.task_instances(samples.DAG_ID, run_id))
    logged = next((task.task for task in tasks if task.state == "failed"), samples.LOGGED_TASK)
    return Report(
        state=outcome,
        tasks=tasks,
        result=_result(airflow, run_id),
        log_of=logged,
        log=tuple(airflow.log(samples.DAG_ID, run_id, logged)),
        seconds_to_ready=round(seconds_to_ready, 1),
        seconds_to_run=round(took, 1),
    )


def task_rows(
    instances: list[dict[str, Any]], task_regions: Mapping[tuple[str, int], tuple[str, str | None]]
) -> tuple[TaskRow, ...]:
    """Join Airflow's task instances with the regions and workers of the ledger."""
    rows = []
    for ti in sorted(instances, key=lambda ti: (ti["start_date"] or "~", ti["task_id"])):
        region, worker = task_regions.get((ti["task_id"], ti["map_index"]), (None, None))
        rows.append(
            TaskRow(
                task=ti["task_id"],
                data_in=samples.REGION_OF_DATA[ti["task_id"]],
                region=region,
                worker=worker,
                wait=_seconds(ti["queued_when"], ti["start_date"]),
                run=_seconds(ti["start_date"], ti["end_date"]),
                state=ti["state"],
            )
        )
    return tuple(rows)


def _seconds(begin: str | None, end: str | None) -> float | None:
    if begin is None or end is None:
        return None
    return round((datetime.fromisoformat(end) - datetime.fromisoformat(begin)).total_seconds(), 2)


def _result(airflow: AirflowRest, run_id: str) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = airflow.xcom(samples.DAG_ID, run_id, samples.RESULT_TASK)
    except KeyError:
        return None
    return value


def _upload(platform: PlatformState, options: Options) -> None:
    import boto3
    from botocore.config import Config

    buckets = {region.name: region.data_bucket for region in options.regions}
    owner = ADMINISTRATOR if options.terraform else aws.BOTO_CREDENTIALS
    for data in samples.data_objects():
        s3 = boto3.client(
            "s3",
            endpoint_url=platform.aws_url,
            region_name=data.region,
            # The emulator is on this machine, which the user's proxy does not know.
            config=Config(proxies={}),
            **owner,
        )
        s3.put_object(Bucket=buckets[data.region], Key=data.key, Body=data.path.read_bytes())
