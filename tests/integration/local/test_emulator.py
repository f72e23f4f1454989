"""The AWS emulator's process: what it makes, and that it makes it again."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from airbridge.control_plane.local import ports
from airbridge.control_plane.local.process.probes import http_ok
from airbridge.control_plane.local.services import aws
from airbridge.control_plane.local.services.emulator import READY_PATH

RESOURCES = aws.Resources(
    home_region="us-east-1", regions=aws.parse_regions(["us-east-1", "eu-west-1:default,gpu"])
)


@contextmanager
def emulator(resources: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "airbridge.control_plane.local.services.emulator",
            "--port",
            str(port),
            "--resources",
            str(resources),
        ]
    )
    try:
        ready = http_ok(aws.endpoint(port) + READY_PATH)
        deadline = time.monotonic() + 30
        while not ready(datetime.now(UTC)):
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield process
    finally:
        process.kill()
        process.wait()


def client(service: str, region: str, port: int) -> Any:
    return boto3.client(
        service,
        region_name=region,
        endpoint_url=aws.endpoint(port),
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )


def test_resources_exist_once_ready(tmp_path: Path) -> None:
    """Each region has its buckets and queues at the URLs of the catalogue; poison goes to its dead-letter queue."""
    path = tmp_path / "resources.json"
    aws.write(path, RESOURCES)
    port = ports.choose(["aws"], {})["aws"]
    with emulator(path, port) as process:
        s3 = client("s3", "eu-west-1", port)
        assert (
            s3.get_bucket_location(Bucket="airbridge-local-eu-west-1-data")["LocationConstraint"]
            == "eu-west-1"
        )
        sqs = client("sqs", "eu-west-1", port)
        assert aws.queue_url(port, "airbridge-local-eu-west-1-gpu") in sqs.list_queues()["QueueUrls"]
        url = aws.queue_url(port, "airbridge-local-eu-west-1-default")
        found = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        assert json.loads(found["RedrivePolicy"])["deadLetterTargetArn"].endswith(
            "airbridge-local-eu-west-1-dead"
        )
        assert (
            client("sqs", "us-east-1", port)
            .list_queues(QueueNamePrefix="airbridge-local-eu")
            .get("QueueUrls")
            is None
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(5) == 0


def test_restarted_emulator_has_same_queues(tmp_path: Path) -> None:
    """After kill -9 the same URLs work on the same port."""
    path = tmp_path / "resources.json"
    aws.write(path, RESOURCES)
    port = ports.choose(["aws"], {})["aws"]
    url = aws.queue_url(port, "airbridge-local-us-east-1-default")
    for _ in range(2):
        with emulator(path, port) as process:
            client("sqs", "us-east-1", port).send_message(QueueUrl=url, MessageBody="hello")
            os.kill(process.pid, signal.SIGKILL)
            process.wait()


def test_calls_keep_connection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The calls of a client share one connection: uploads, reads, errors, and HEAD of an object that is missing."""
    path = tmp_path / "resources.json"
    aws.write(path, RESOURCES)
    port = ports.choose(["aws"], {})["aws"]
    with emulator(path, port):
        s3 = client("s3", "us-east-1", port)
        caplog.set_level(logging.DEBUG, "urllib3")
        bucket = "airbridge-local-us-east-1-logs"
        for _ in range(2):
            s3.put_object(Bucket=bucket, Key="a/full.log", Body=b"a log")
            assert s3.get_object(Bucket=bucket, Key="a/full.log")["Body"].read() == b"a log"
            assert s3.head_object(Bucket=bucket, Key="a/full.log")["ContentLength"] == 5
            for read in (s3.get_object, s3.head_object):
                with pytest.raises(s3.exceptions.ClientError):
                    read(Bucket=bucket, Key="b/full.log")
            s3.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a/full.log"}]})
    made = [each for each in caplog.messages if "new HTTP connection" in each or "dropped connection" in each]
    assert len(made) == 1
