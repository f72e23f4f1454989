"""DAG of which `airbridge.edge_worker.runner.forking.warm_up` runs a task, with what DAG files commonly use."""

from datetime import datetime

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.operators.python import PythonOperator
from airflow.sdk import DAG, Variable, chain, setup, task, task_group, teardown  # noqa: F401 - loaded before the first fork

with DAG(
    "airbridge_warm_up",
    schedule="@daily",
    start_date=datetime(2025, 1, 1),  # noqa: DTZ001 - as most DAG files have it
    catchup=False,
    default_args={"retries": 1},
):

    @task
    def warm_up(number: int = 1, day: str = "{{ ds }}") -> dict[str, int]:  # noqa: ARG001 - it is rendered
        """Return an XCom."""
        return {"number": number}

    @task_group
    def group() -> None:
        """Map a task."""
        warm_up.override(task_id="mapped").expand(number=[1, 2])

    BashOperator(task_id="bash", bash_command="true {{ ds }}") >> warm_up() >> group()
    PythonOperator(task_id="python", python_callable=print)
