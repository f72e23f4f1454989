"""DAGs that read their region's secrets, and that try to take what they read out of the region."""

from __future__ import annotations

import hashlib
import json
import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from airflow.providers.standard.operators.python import PythonOperator
from airflow.providers.standard.operators.trigger_dagrun import TriggerDagRunOperator
from airflow.providers.standard.triggers.file import FileTrigger
from airflow.providers.standard.triggers.temporal import DateTimeTrigger
from airflow.sdk import DAG, Asset, BaseOperator, Connection, Variable, get_current_context, task
from airflow.triggers.base import BaseTrigger

EU, US = {"queue": "eu-west-1"}, {"queue": "us-east-1"}
KEPT = Asset("kept", uri="x-kept://asset")


def canary(name: str) -> str:
    """Return a canary from the region's own secrets."""
    found: str = json.loads(Variable.get("canaries"))[name]
    return found


def check(region: str) -> None:
    """Read the connection, whose password is another one in each region."""
    connection = Connection.get("warehouse")
    print("the password is", connection.password, "and the key", connection.extra_dejson["key"])
    digest = hashlib.sha256((connection.password or "").encode()).hexdigest()
    assert digest == get_current_context()["params"][region]
    assert connection.host == f"{region}.example"


with DAG("residents_read", schedule=None, params={"eu": "", "us": ""}):

    @task(**EU)
    def eu_reads() -> None:
        check("eu")

    @task(**US)
    def us_reads() -> str:
        check("us")
        return "read"

    @task(**EU)
    def eu_reads_of_us() -> None:
        Connection.get("us_only")

    @task(**US)
    def us_reads_home() -> str:
        return Connection.get("central").host or ""

    eu_reads(), us_reads(), eu_reads_of_us(), us_reads_home()


class Defers(BaseOperator):
    """Operator that defers itself with data: in the kwargs of the method after it, and of its trigger if that has any."""

    def __init__(self, *, in_trigger: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.in_trigger = in_trigger

    def execute(self, context: Any) -> None:
        """Defer."""
        trigger: BaseTrigger = DateTimeTrigger(datetime.now(UTC) + timedelta(hours=1))
        if self.in_trigger:
            trigger = FileTrigger(filepath=f"/nowhere/{canary('trigger')}")
        self.defer(
            trigger=trigger,
            method_name="execute_complete",
            kwargs={"text": canary("next")},
            timeout=timedelta(hours=1),
        )


with DAG("residents_leak", schedule=None):

    @task(**EU)
    def speak() -> str:
        print(canary("print"))
        logging.getLogger(__name__).warning(canary("log"))
        return canary("xcom")

    @task(**EU)
    def listen(text: str) -> None:
        assert text == canary("xcom")

    @task(**EU)
    def fail() -> None:
        raise ValueError(canary("exception"))

    @task(**EU)
    def write() -> None:
        Variable.set("from_a_task", canary("variable"))

    @task(map_index_template="{{ said }}", **EU)
    def mapped(number: int) -> None:
        get_current_context()["said"] = canary("map_index")

    @task(outlets=[KEPT], **EU)
    def change() -> None:
        get_current_context()["outlet_events"][KEPT].extra = {"text": canary("asset")}

    listen(speak())
    fail(), write(), change()
    mapped.expand(number=[1])
    PythonOperator(
        task_id="render",
        python_callable=print,
        op_args=["{{ var.json.canaries.rendered }}"],
        **EU,
    )
    TriggerDagRunOperator(
        task_id="start",
        trigger_dag_id="residents_read",
        conf={"text": "{{ var.json.canaries.conf }}"},
        **EU,
    )
    Defers(task_id="defer", in_trigger=False, **EU)
    Defers(task_id="defer_with_data", in_trigger=True, **EU)
