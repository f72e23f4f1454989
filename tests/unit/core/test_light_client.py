"""Calls of the clients that queues and object stores make: what is sent, and what is worked out for it."""

from __future__ import annotations

import base64
import itertools
import json
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.loaders import Loader

from airbridge.core.aws.light_client import UNREAD_PARAMETERS, remember_endpoints
from airbridge.core.aws.object_store import EXPECT_BYTES, S3Store, connect
from airbridge.core.aws.queue import SqsQueue, sqs_client

SESSION = boto3.session.Session("testing", "testing", region_name="eu-west-1")
REGION = "eu-west-1"


class Body(BytesIO):
    """Body stream in the form that botocore reads."""

    def stream(self, **_: Any) -> Iterator[bytes]:
        yield self.read()


class Sent:
    """Requests of a client, answered with 200."""

    def __init__(self, client: Any) -> None:
        self.requests: list[AWSPreparedRequest] = []
        self.body = b"{}" if client.meta.service_model.service_name == "sqs" else b""
        client.meta.events.register("before-send.*.*", self.answer)

    def answer(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        self.requests.append(request)
        return AWSResponse(request.url, 200, {"ETag": '"etag"'}, Body(self.body))

    def header(self, name: str) -> str | None:
        """The header of the last request."""
        value = self.requests[-1].headers.get(name)
        return value.decode() if isinstance(value, bytes) else value


def store() -> tuple[S3Store, Any]:
    made = connect(REGION, "logs", session=SESSION)
    return made, made._client


def test_user_agent_names_airbridge() -> None:
    """Calls are recognisable in AWS's own logs."""
    made, client = store()
    sent = Sent(client)
    made.put("a/full.log", b"a log")
    assert (sent.header("User-Agent") or "").startswith("AirBridge/")
    client = sqs_client(REGION, session=SESSION)
    sent = Sent(client)
    SqsQueue(client, "https://sqs.eu-west-1.amazonaws.com/1/q").receive()
    assert (sent.header("User-Agent") or "").startswith("AirBridge/")


@pytest.mark.parametrize(("size", "expectation"), [(5, None), (EXPECT_BYTES, "100-continue")])
def test_small_content_is_sent_at_once(size: int, expectation: str | None) -> None:
    """S3 is asked before large content is sent, and not before a log of some lines."""
    made, client = store()
    sent = Sent(client)
    made.put("a/full.log", b"x" * size)
    assert sent.header("Expect") == expectation


def test_content_has_checksum() -> None:
    """S3 verifies small content by a checksum, as it does a file's."""
    made, client = store()
    sent = Sent(client)
    made.put("a/full.log", b"a log")
    [request] = sent.requests
    assert request.headers["X-Amz-Trailer"] == b"x-amz-checksum-crc32"
    checksum = base64.b64encode(zlib.crc32(b"a log").to_bytes(4, "big"))
    assert request.body.read() == b"5\r\na log\r\n0\r\nx-amz-checksum-crc32:%s\r\n\r\n" % checksum


def test_endpoint_is_resolved_once() -> None:
    """The keys of one bucket share the work of finding its endpoint."""
    made, client = store()
    Sent(client)
    ruleset = client._ruleset_resolver._provider.ruleset
    evaluate, evaluated = ruleset.evaluate, []
    ruleset.evaluate = lambda parameters: evaluated.append(parameters) or evaluate(parameters)
    for number in range(3):
        made.put(f"{number}/full.log", b"a log")
        made.head(f"{number}/full.log")
    assert len(evaluated) == 1


@pytest.mark.parametrize(
    ("style", "fips", "dual", "region", "endpoint"),
    [
        *itertools.product(
            ["virtual", "path"], [False, True], [False, True], ["us-east-1", "us-gov-west-1"], [None]
        ),
        ("path", False, False, "cn-north-1", None),
        ("path", False, False, "eu-west-1", "http://127.0.0.1:4566"),
        ("virtual", False, False, "eu-west-1", "https://vpce-1.s3.eu-west-1.vpce.amazonaws.com"),
    ],
)
def test_endpoints_are_the_same(
    style: str, fips: bool, dual: bool, region: str, endpoint: str | None
) -> None:
    """Buckets and access points are found where an unchanged client finds them."""
    config = Config(s3={"addressing_style": style}, use_fips_endpoint=fips, use_dualstack_endpoint=dual)

    def urls(client: Any) -> list[str]:
        sent = Sent(client)
        point = f"arn:aws:s3:{region}:123456789012:accesspoint/point"
        for bucket in [
            "logs",
            "logs.with.dots",
            *([point] if style == "virtual" and "gov" not in region else []),
        ]:
            client.put_object(Bucket=bucket, Key="a b/full.log", Body=b"")
            client.list_objects_v2(Bucket=bucket, Prefix="a b/")
        return [request.url for request in sent.requests]

    def client() -> Any:
        return SESSION.client("s3", region_name=region, endpoint_url=endpoint, config=config)

    assert urls(remember_endpoints(client())) == urls(client())


def test_no_rule_reads_left_out_parameters() -> None:
    """The rules of botocore's lock neither refer to the parameters nor use them in a template."""
    rules = json.dumps(Loader().load_service_model("s3", "endpoint-rule-set-1")["rules"])
    for name in UNREAD_PARAMETERS:
        assert f'"{name}"' not in rules
        assert f"{{{name}" not in rules
    assert '"Bucket"' in rules
