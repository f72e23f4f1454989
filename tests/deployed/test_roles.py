"""The local platform on the queues and buckets that Terraform made, IAM enforced."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError
from tests.deployed.conftest import DIRECTORY
from tests.support.platform import LocalPlatform

from airbridge.control_plane.local.services import credentials, terraform
from airbridge.control_plane.samples import REGION_OF_DATA

AIRBRIDGE = [sys.executable, "-m", "airbridge.control_plane.cli"]


def test_the_demo_runs_in_both_regions(deployed: terraform.Deployed, tmp_path: Path) -> None:
    """Every task ran beside its data; its log is in the bucket that Terraform made in that region."""
    done = subprocess.run(
        [*AIRBRIDGE, "demo", "--from-terraform", "--terraform-dir", str(DIRECTORY), "--json", "--dir", str(tmp_path / "demo")],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["state"] == "success"
    assert {task["task"]: task["region"] for task in report["tasks"]} == REGION_OF_DATA
    assert report["result"]["new_york_celsius"]["07"] == 28.8
    assert any("read 120 rows" in line for line in report["log"])
    for region in deployed.catalogue.regions:
        s3 = boto3.client("s3", region_name=region.name, endpoint_url=deployed.endpoint_url, **credentials.ADMINISTRATOR)  # fmt: skip
        keys = [one["Key"] for one in s3.list_objects_v2(Bucket=region.log_bucket).get("Contents", ())]
        ran_here = [task for task, where in REGION_OF_DATA.items() if where == region.name]
        assert all(any(f"task_id={task}/" in key for key in keys) for task in ran_here)


def client(platform: LocalPlatform, role: str, service: str, region: str) -> Any:
    """A client with the credentials that the platform's endpoint hands out for a role."""
    grants = credentials.Grants.model_validate_json(platform.directory.grants_file.read_bytes())
    port = json.loads(platform.directory.keys_file.read_text())["ports"]["credentials"]
    answer = httpx.get(
        f"http://127.0.0.1:{port}{credentials.ROLE_PATH}",
        headers={"Authorization": grants.token(role)},
        trust_env=False,
    ).json()
    return boto3.client(
        service,
        region_name=region,
        endpoint_url=grants.endpoint_url,
        aws_access_key_id=answer["AccessKeyId"],
        aws_secret_access_key=answer["SecretAccessKey"],
        aws_session_token=answer["Token"],
    )


def test_process_has_its_roles_rights(platform: LocalPlatform, deployed: terraform.Deployed) -> None:
    """The scheduler sends and cannot receive; a worker cannot send, and cannot touch the other region's queue."""
    here, there = deployed.catalogue.regions
    queue, other = here.pools[0].queue_url, there.pools[0].queue_url
    scheduler = client(platform, deployed.service_roles["scheduler"], "sqs", here.name)
    worker_role = deployed.worker_roles[here.name, here.pools[0].name]
    scheduler.get_queue_attributes(QueueUrl=queue, AttributeNames=["ApproximateNumberOfMessages"])
    client(platform, worker_role, "sqs", here.name).receive_message(QueueUrl=queue, VisibilityTimeout=0)
    for refused in (
        lambda: scheduler.receive_message(QueueUrl=queue),
        lambda: client(platform, worker_role, "sqs", here.name).send_message(QueueUrl=queue, MessageBody="x"),
        lambda: client(platform, worker_role, "sqs", there.name).receive_message(QueueUrl=other),
    ):
        with pytest.raises(ClientError, match=r"403|AccessDenied|not authorized"):
            refused()


def test_unknown_token_gets_no_credentials(platform: LocalPlatform) -> None:
    """The credentials endpoint answers only to the token of a role."""
    port = json.loads(platform.directory.keys_file.read_text())["ports"]["credentials"]
    url = f"http://127.0.0.1:{port}{credentials.ROLE_PATH}"
    assert 403 == httpx.get(url, headers={"Authorization": "guessed"}, trust_env=False).status_code
    assert 403 == httpx.get(url, trust_env=False).status_code
