"""Secrets that tasks use, print, pass on and fail with are in nothing that observability tells."""

from __future__ import annotations

import time
from typing import Any

from tests.support.collector import collecting
from tests.support.platform import LocalPlatform, running

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
    """Every task's log as it lies in the region's bucket, error details and all."""
    s3 = platform.aws_client("s3", "eu-west-1")
    found = {"Bucket": next(name for name in buckets(s3) if name.endswith("-logs"))}
    keys = [each["Key"] for each in s3.list_objects_v2(**found).get("Contents", ())]
    return "\n".join(s3.get_object(**found, Key=key)["Body"].read().decode() for key in keys)


def buckets(s3: Any) -> list[str]:
    """The names of the region's buckets."""
    return [each["Name"] for each in s3.list_buckets()["Buckets"] if "eu-west-1" in each["Name"]]


def test_no_secret_is_told() -> None:
    """A connection's password, a variable and a token, planted in a failing task: in nothing that tells of it."""
    with collecting() as collector:
        settings = {"airbridge.traces_endpoint": collector.endpoint}
        with running(airflow=settings) as platform:
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
            time.sleep(15)  # what the edge has to tell comes with its heartbeat
            told = {
                "events": str(platform.query("SELECT event, detail::text FROM airbridge_event")),
                "items": str(platform.query("SELECT detail, placement::text FROM airbridge_work_item")),
                "audit": str(
                    platform.query("SELECT row_to_json(airbridge_audit)::text FROM airbridge_audit")
                ),
                "spans": str(list(collector.spans.values())),
            }
            with platform.operator() as operator:
                told["metrics"] = operator.get("/operator/v1/metrics").text
                names = {"dag_id": "planted", "run_id": run.run_id, "task_id": "uses"}
                told["timeline"] = operator.get("/operator/v1/timeline", params=names).text
                told["status"] = operator.get("/operator/v1/status").text
            for component in platform.state.components:
                told[f"log of {component.name}"] = platform.log_text(component.name)
            told["log of the task"] = logs_of(platform)
    assert "task.ended" in told["events"]
    assert "planted" in told["spans"]
    assert "cannot log in" in told["log of the task"]
    assert [] == [
        (place, secret)
        for place, text in told.items()
        for secret in (CONNECTION, VARIABLE, TOKEN)
        if secret in text
    ]
