"""A place whose worker goes to AWS with the gateway's credentials: it has none of its own, and its tasks have none at all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.platform import LocalPlatform, running, wait_for

from airbridge.control_plane.local.services.aws import CREDENTIALS, parse_regions

pytestmark = [pytest.mark.slow("make proof-anywhere"), pytest.mark.timeout(600)]
PLACE = "depot-3"
DAG = """
import os
from airflow.sdk import DAG, task

with DAG("brokered"):
    @task
    def look():
        from botocore.session import get_session

        print("looked around")
        found = get_session().get_credentials().get_frozen_credentials()
        secret = [name for name, value in os.environ.items() if value in (found.secret_key, found.token)]
        return [found.access_key, secret]
    look()
"""


@pytest.fixture(scope="module")
def platform() -> Iterator[LocalPlatform]:
    """A platform whose work goes to a place with one worker."""
    regions = parse_regions(["us-east-1", f"{PLACE}@us-east-1+brokered"])
    with running(regions=regions, airflow={"airbridge.default_queue": PLACE}) as started:
        started.add_dag("brokered", DAG)
        yield started


def test_worker_uses_the_gateways_credentials(platform: LocalPlatform) -> None:
    """A task runs and its log is in the bucket, the worker has no credentials but those of its pool's role, tasks those of their own."""
    run = platform.run("brokered")
    assert "success" == run.state
    key, variables = platform.xcom(run, "look")
    assert [] == variables
    (worker,) = {str(name) for _, name in platform.places(run).values()}
    assert worker.startswith(PLACE)
    s3, bucket = platform.aws_client("s3", "us-east-1"), f"airbridge-local-{PLACE}-logs"

    def logged() -> bool:
        keys = [each["Key"] for each in s3.list_objects_v2(Bucket=bucket).get("Contents", ())]
        return any(key.endswith("/full.log") for key in keys)

    wait_for(logged, "the log in the bucket")
    assert "looked around" in platform.task_log(run, "look")
    environ = Path(f"/proc/{platform.worker_pids()[worker]}/environ").read_bytes()
    assert not [value for value in CREDENTIALS.values() if value.encode() in environ]
    assert not [
        name
        for name in environ.split(b"\0")
        if name.startswith((b"AWS_ACCESS", b"AWS_SECRET", b"AWS_CONTAINER"))
    ]
    rows = platform.query(
        "SELECT detail->>'role', detail->>'access_key_id' FROM airbridge_audit WHERE event = 'credentials.brokered' AND worker_id = %s",
        worker,
    )
    role = "arn:aws:iam::123456789012:role/airbridge-local-depot-3"
    assert role in {name for name, _ in rows}
    assert (f"{role}-tasks", key) in rows
