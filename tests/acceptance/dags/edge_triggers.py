"""Deferrable operators of the standard provider, for each executor; `tests/acceptance/test_edge_triggers.py` compares them."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta

from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.providers.standard.sensors.external_task import ExternalTaskSensor
from airflow.providers.standard.sensors.filesystem import FileSensor
from airflow.providers.standard.sensors.time import TimeSensor
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor, WaitSensor
from airflow.sdk import DAG

EXECUTORS = {"edge": None, "local": "LocalExecutor"}
START = datetime(2025, 1, 1, tzinfo=UTC)

with DAG("edge_triggers_child", schedule=None, start_date=START):
    EmptyOperator(task_id="done")

for variant, executor in EXECUTORS.items():
    with DAG(
        f"edge_triggers__{variant}",
        schedule=None,
        start_date=START,
        # LocalExecutor's tasks fail at times, because their triggers fire before the scheduler has read that they were deferred.
        default_args={"executor": executor, "retries": 3, "retry_delay": timedelta(seconds=1)},
    ) as dag:
        delta = TimeDeltaSensor(task_id="time_delta", delta=timedelta(seconds=30), deferrable=True)
        WaitSensor(task_id="wait", time_to_wait=timedelta(seconds=2), deferrable=True)
        DateTimeSensorAsync(task_id="date_time", target_time="{{ macros.datetime.now() }}")
        TimeSensor(task_id="time", target_time=time(0, 0, 1), deferrable=True)
        TimeDeltaSensor(
            task_id="ends_from_trigger", delta=timedelta(seconds=30), deferrable=True, end_from_trigger=True
        )
        DateTimeSensorAsync(
            task_id="starts_from_trigger",
            target_time="2025-01-01T00:00:00+00:00",
            start_from_trigger=True,
            trigger_kwargs={"moment": START, "end_from_trigger": True},
        )
        FileSensor(
            task_id="file",
            filepath="{{ dag_run.conf['folder'] }}/*",
            poke_interval=0.5,
            deferrable=True,
        )
        FileSensor(
            task_id="file_never",
            filepath="{{ dag_run.conf['folder'] }}/never",
            poke_interval=0.5,
            timeout=5,
            deferrable=True,
            retries=0,
        )
        ExternalTaskSensor(
            task_id="external",
            external_dag_id=dag.dag_id,
            external_task_id="time_delta",
            poll_interval=1,
            deferrable=True,
        )
        TriggerDagRunOperator(
            task_id="trigger_run",
            trigger_dag_id="edge_triggers_child",
            wait_for_completion=True,
            poke_interval=1,
            deferrable=True,
        )
