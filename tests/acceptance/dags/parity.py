"""Configuration and environment that a task sees, once for each executor; `tests/acceptance/test_parity.py` compares them."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import acme_models
from airflow.configuration import conf
from airflow.sdk import DAG, Variable, task

from airbridge.core.task_options import DELIVERED, concerns_tasks

AT_IMPORT = conf.get("acme", "lake", fallback="absent")
OWN = ("acme.lake", "acme.api_token", "smtp.smtp_password")
EXECUTORS = {"edge": None, "local": "LocalExecutor"}


@dataclass
class Order:
    """Class of the DAG file itself."""

    number: int


for variant, executor in EXECUTORS.items():
    with DAG(f"parity__{variant}", schedule=None, default_args={"executor": executor, "retries": 0}) as dag:

        @task
        def options() -> dict[str, str]:
            """Return every option that concerns tasks, and what the file saw at import."""
            # Not `conf.as_dict`: in a task it runs the command with which Airflow blocks the database.
            described = {
                f"{section}.{option}"
                for section in DELIVERED
                for option in conf.configuration_description[section]["options"]
                if concerns_tasks(section, option)
            }
            names = {*described, *OWN}
            found = {name: conf.get(*name.split("."), fallback="absent") for name in names}
            return {**found, "at_import": AT_IMPORT}

        @task
        def environment() -> dict[str, Any]:
            """Return names and some values of variables, and what AWS's and Airflow's clients make of them."""
            import boto3
            from airflow import settings

            shown = (
                "AWS_ENDPOINT_URL",
                "AIRFLOW__API__BASE_URL",
                "AWS_REGION",
                "AWS_DEFAULT_REGION",
                "TZ",
                "LANG",
                "PATH",
            )
            return {
                "names": sorted(os.environ),
                "values": {name: os.environ.get(name) for name in shown},
                "sqs_region": boto3.client("sqs").meta.region_name,
                "timezone": settings.TIMEZONE.name,
                "colour": Variable.get("parity_colour", default="absent"),
                "dags_folder": Path(conf.get("core", "dags_folder")).samefile(Path(__file__).parent),
            }

        @task
        def lists_bucket() -> list[str]:
            """Return the names in a bucket of the region, with clients of no argument."""
            import boto3

            listed = boto3.client("s3").list_objects_v2(Bucket="airbridge-local-us-east-1-data")
            return [each["Key"] for each in listed.get("Contents", [])]

        @task
        def pushes() -> list[Any]:
            """Return instances of classes of a module beside this file."""
            return [acme_models.Item("x")]

        @task
        def pulls(items: list[Any]) -> list[str]:
            """Return what came back."""
            return [type(items[0]).__name__, items[0].name]

        @task
        def pushes_own() -> Any:
            """Return an instance of a class of this file."""
            return Order(7)

        @task
        def pulls_own(order: Any) -> list[Any]:
            """Return what came back."""
            return [type(order).__name__, order.number]

        options()
        environment()
        pulls(pushes())
        pulls_own(pushes_own())
        if variant == "edge":
            lists_bucket()
    globals()[dag.dag_id] = dag
