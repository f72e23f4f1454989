"""XComs whose JSON takes more room inside of JSON, where quotes and umlauts are escaped: apache/airflow#48852, #64628."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG, task

EXECUTORS = {"edge": None, "local": "LocalExecutor"}
TEXTS = {"quotes": ('"', 20_000_000), "umlauts": ("ä", 10_500_000), "letters": ("x", 3_000_000)}

for variant, executor in EXECUTORS.items():
    with DAG(f"escapes__{variant}", schedule=None, default_args={"executor": executor, "retries": 0}) as dag:
        for name, (text, size) in TEXTS.items():

            @task(task_id=f"push_{name}")
            def push(text: str = text, size: int = size) -> str:
                return text * size

            @task(task_id=f"pull_{name}", trigger_rule="all_done")
            def pull(value: Any) -> int:
                return -1 if value is None else len(value)

            pull(push())
    globals()[dag.dag_id] = dag
