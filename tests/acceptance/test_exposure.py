"""Secrets that tasks use, print, pass on and fail with appear in no log, trace, event or metric."""

from __future__ import annotations

import time
from typing import Any

from tests.support.collector import Collector
from tests.support.platform import LocalPlatform

CONNECTION, VARIABLE, TOKEN = "planted-connection-9f1c", "planted-variable-77ab", "planted-token-51de"

DAG = """
from airflow.sdk import DAG, Connection, Variable, task

@task(queue="eu-west-1")
def uses(token) -> None:
    password = Connection.get("planted").password
    secret = Variable.get("planted_secret")
    assert len(password) > 10 and len(secret) > 10 and len(token) > 10
    raise RuntimeError(f"cannot log in with {password}, {secret}, {token}")

with DAG("planted", schedule=None):
    uses("{{ var.value.planted_api_token }}")
"""


def logs_of(platform: LocalPlatform) -> str:
    """Return every task's log from the region's bucket, error details included."""
    s3 = platform.aws_client("s3", "eu-west-1")
    found = {"Bucket": next(name for name in buckets(s3) if name.endswith("-logs"))}
    keys = [each["Key"] for each in s3.list_objects_v2(**found).get("Contents", ())]
    return "\n".join(s3.get_object(**found, Key=key)["Body"].read().decode() for key in keys)


def buckets(s3: Any) -> list[str]:
    """The names of the region's buckets."""
    return [each["Name"] for each in s3.list_buckets()["Buckets"] if "eu-west-1" in each["Name"]]


def test_no_secret_is_exposed(plain_platform: LocalPlatform, collector: Collector) -> None:
    """A connection's password, a variable and a token, planted in a failing task, appear in none of its outputs."""
    platform = plain_platform
    post = platform.airflow._json
    post(
        "POST",
        "/api/v2/connections",
        {"connection_id": "planted", "conn_type": "http", "password": CONNECTION},
    )
    post("POST", "/api/v2/variables", {"key": "planted_secret", "value": VARIABLE})
    post("POST", "/api/v2/variables", {"key": "planted_api_token", "value": TOKEN})
    platform.add_dag("planted", DAG)
    run = platform.run("planted")
    assert "failed" == run.state
    time.sleep(15)  # an edge event arrives with a heartbeat, every 10 s
    outputs = {
        "events": str(platform.query("SELECT event, detail::text FROM airbridge_event")),
        "items": str(platform.query("SELECT detail, placement::text FROM airbridge_work_item")),
        "audit": str(platform.query("SELECT row_to_json(airbridge_audit)::text FROM airbridge_audit")),
        "spans": str(list(collector.spans.values())),
    }
    with platform.operator() as operator:
        outputs["metrics"] = operator.get("/operator/v1/metrics").text
        names = {"dag_id": "planted", "run_id": run.run_id, "task_id": "uses"}
        outputs["timeline"] = operator.get("/operator/v1/timeline", params=names).text
        outputs["status"] = operator.get("/operator/v1/status").text
    for component in platform.state.components:
        outputs[f"log of {component.name}"] = platform.log_text(component.name)
    outputs["log of the task"] = logs_of(platform)
    assert "task.ended" in outputs["events"]
    assert "planted" in outputs["spans"]
    assert "cannot log in" in outputs["log of the task"]
    assert [] == [
        (place, secret)
        for place, text in outputs.items()
        for secret in (CONNECTION, VARIABLE, TOKEN)
        if secret in text
    ]
