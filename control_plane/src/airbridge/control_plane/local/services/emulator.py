"""AWS emulator process: moto server, with the platform's queues and buckets created before it reports ready.

moto keeps all state in memory. The resources are therefore created at every start: after a restart on the same
port it has the same queues and buckets, empty.
"""

from __future__ import annotations

import argparse
import json
import logging
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from airbridge.control_plane.local import ports
from airbridge.control_plane.local.services import aws

READY_PATH = "/airbridge/ready"

_Environ = dict[str, Any]
_StartResponse = Callable[[str, list[tuple[str, str]]], Any]
_Application = Callable[[_Environ, _StartResponse], Iterable[bytes]]


class ReadyGate:
    """WSGI middleware that answers `READY_PATH`: 503 until `open` was called, then 200."""

    def __init__(self, application: _Application) -> None:
        self._application = application
        self._ready = threading.Event()

    def open(self) -> None:
        """Report ready from now on."""
        self._ready.set()

    def __call__(self, environ: _Environ, start_response: _StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if environ.get("PATH_INFO") != READY_PATH:
            return self._application(environ, start_response)
        status = "200 OK" if self._ready.is_set() else "503 Service Unavailable"
        start_response(status, [("Content-Type", "text/plain")])
        return [status.encode()]


def make_resources(resources: aws.Resources, port: int) -> None:
    """Create the queues and buckets that do not exist yet."""
    import boto3

    for region in resources.regions:
        session = boto3.Session(
            aws_access_key_id=aws.CREDENTIALS["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=aws.CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            region_name=region.aws_region,
        )
        _make_buckets(session.client("s3", endpoint_url=aws.endpoint(port)), region)
        _make_queues(session.client("sqs", endpoint_url=aws.endpoint(port)), region)


def _make_buckets(s3: Any, region: aws.EmulatedRegion) -> None:
    # S3 rejects us-east-1, its default, as a LocationConstraint.
    place = (
        {}
        if region.aws_region == "us-east-1"
        else {"CreateBucketConfiguration": {"LocationConstraint": region.aws_region}}
    )
    existing = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    for bucket in {region.log_bucket, region.bundle_bucket, region.data_bucket} - existing:
        s3.create_bucket(Bucket=bucket, **place)


def _make_queues(sqs: Any, region: aws.EmulatedRegion) -> None:
    dead = sqs.create_queue(QueueName=region.dead_letter_queue)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": aws.MAX_RECEIVES})
    for pool in region.pools:
        sqs.create_queue(
            QueueName=region.queue(pool),
            Attributes={"RedrivePolicy": redrive, "VisibilityTimeout": str(aws.VISIBILITY_SECONDS)},
        )


def main() -> None:
    """Serve until SIGTERM."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    from airbridge.control_plane.local.services.emulator_connections import KeepAliveHandler

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--resources", type=Path, required=True)
    arguments = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    gate = ReadyGate(DomainDispatcherApplication(create_backend_app))
    # Blocked before any thread starts, so that only sigwait below receives them.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    server = make_server(
        ports.LOOPBACK, arguments.port, gate, threaded=True, request_handler=KeepAliveHandler
    )
    threading.Thread(target=server.serve_forever, name="aws-emulator", daemon=True).start()
    make_resources(aws.read(arguments.resources), arguments.port)
    gate.open()
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
