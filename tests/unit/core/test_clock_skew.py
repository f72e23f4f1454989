"""A host whose clock is wrong, and what it sends to AWS."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from io import BytesIO
from typing import Any

import boto3
import pytest
from botocore.awsrequest import AWSPreparedRequest, AWSResponse
from botocore.config import Config
from botocore.exceptions import ClientError

from airbridge.core.aws.clock_skew import correct_clock_skew

KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing", "region_name": "eu-west-1"}


class Body(BytesIO):
    """Body stream in the form that botocore reads."""

    def stream(self, **_: Any) -> Any:
        yield self.read()


class Aws:
    """Answers in AWS's place: like it, refuses what is signed more than five minutes off."""

    def __init__(self, client: Any, *, ahead: timedelta) -> None:
        self.now = lambda: datetime.now(UTC) + ahead
        self.stamps: list[timedelta] = []
        self.body = b"{}" if client.meta.service_model.service_name == "sqs" else b""
        client.meta.events.register("before-send.*.*", self.answer)

    def answer(self, request: AWSPreparedRequest, **_: Any) -> AWSResponse:
        stamp = request.headers["X-Amz-Date"]
        text = stamp.decode() if isinstance(stamp, bytes) else stamp
        off = datetime.strptime(text, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC) - self.now()
        self.stamps.append(off)
        status = 200 if abs(off) < timedelta(minutes=5) else 403
        headers = {"Date": format_datetime(self.now(), usegmt=True)}
        return AWSResponse(request.url, status, headers, Body(self.body if status == 200 else b""))


def client(service: str) -> Any:
    config = Config(retries={"total_max_attempts": 1})
    return correct_clock_skew(boto3.session.Session(**KEYS).client(service, config=config))


def ask(made: Any) -> None:
    """One request of either service."""
    if made.meta.service_model.service_name == "sqs":
        made.receive_message(QueueUrl="https://sqs.eu-west-1.amazonaws.com/1/q")
    else:
        made.head_bucket(Bucket="logs")


@pytest.mark.parametrize("service", ["sqs", "s3"])
@pytest.mark.parametrize("minutes", [-600, -20, 20, 600])
def test_wrong_clock_costs_one_refusal(service: str, minutes: int) -> None:
    """With a wrong host clock the first request is refused; the next is signed by the time in that response."""
    made = client(service)
    aws = Aws(made, ahead=timedelta(minutes=minutes))
    with pytest.raises(ClientError, match="403"):
        ask(made)
    ask(made)
    ask(made)
    first, *others = aws.stamps
    assert abs(first) > timedelta(minutes=19)
    assert all(abs(off) < timedelta(seconds=30) for off in others)


@pytest.mark.parametrize("service", ["sqs", "s3"])
def test_right_clock_is_used(service: str) -> None:
    """Within a minute the host's own clock is used: a Date header is older than it."""
    made = client(service)
    aws = Aws(made, ahead=timedelta(seconds=40))
    ask(made)
    ask(made)
    assert all(timedelta(seconds=-45) < off < timedelta(seconds=-35) for off in aws.stamps)
