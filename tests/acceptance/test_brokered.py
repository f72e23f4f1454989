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
        print("looked around")
        return sorted(name for name in os.environ if name.startswith("AWS_") and name != "AWS_CA_BUNDLE")
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
    """A task runs and its log is in the bucket, the worker has no credentials but those of its pool's role, and tasks find none."""
    run = platform.run("brokered")
    assert "success" == run.state
    assert [] == platform.xcom(run, "look")
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
        "SELECT detail->>'role' FROM airbridge_audit WHERE event = 'credentials.brokered' AND worker_id = %s",
        worker,
    )
    assert ("arn:aws:iam::123456789012:role/airbridge-local-depot-3",) in rows
