"""DAG of the smoke test on AWS: a task in each region of the sandbox, and one that joins what they returned."""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import dag, task


@dag(schedule=None, start_date=datetime(2024, 1, 1, tzinfo=UTC), catchup=False)
def smoke() -> None:
    """Return each worker's region, and compare."""

    @task(queue="default@us-east-1")
    def home() -> str:
        import os

        return os.environ["AWS_REGION"]

    @task(queue="default@eu-west-1")
    def away() -> str:
        import os

        return os.environ["AWS_REGION"]

    @task(queue="default@us-east-1")
    def both(found: list[str]) -> None:
        if found != ["us-east-1", "eu-west-1"]:
            raise ValueError(f"the tasks ran in {found}")

    both([home(), away()])


smoke()
