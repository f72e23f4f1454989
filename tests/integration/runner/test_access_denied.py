"""An access that S3 denied: the explanation in a task's log, with boto3 against a server that denies."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import boto3
import botocore.exceptions
import pytest
from tests.integration.runner.world import World

from airbridge.edge_worker.runner import access_denied

ROLE = "airbridge-dev-eu-west-1-default-task"
ARN = f"arn:aws:sts::111122223333:assumed-role/{ROLE}/i-0abc"
WHO = f"<GetCallerIdentityResponse><GetCallerIdentityResult><Arn>{ARN}</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>"
BARE = "Access Denied"
FULL = f"User: {ARN} is not authorized to perform: s3:PutObject"


class Aws(BaseHTTPRequestHandler):
    """S3 that denies everything, and STS."""

    message = BARE
    identity = WHO

    def do_PUT(self) -> None:
        self._answer(403, f"<Error><Code>AccessDenied</Code><Message>{self.message}</Message></Error>")

    def do_HEAD(self) -> None:
        self._answer(403, "")

    def do_GET(self) -> None:
        self._answer(404, "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>")

    def do_POST(self) -> None:
        self._answer(200 if self.identity else 500, self.identity)

    def _answer(self, status: int, body: str) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Stay silent."""


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Aws) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        yield boto3.client("s3", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="y")
        server.shutdown()


def raised(call: Any, *, wrapped: bool = False) -> Exception:
    """Return the error of a call, or another one that was raised from it."""
    try:
        try:
            call()
        except Exception as error:
            if wrapped:
                raise RuntimeError("the upload failed") from error
            raise
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the result
        return error
    raise AssertionError("it was allowed")


@pytest.mark.parametrize(
    ("message", "identity", "role"),
    [(BARE, WHO, f"the role {ROLE}"), (FULL, "", f"the role {ROLE}"), (BARE, "", "the task's role")],
    ids=["by STS", "by AWS's message", "unknown"],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_denied_write_is_explained(
    s3: Any, monkeypatch: pytest.MonkeyPatch, message: str, identity: str, role: str, *, wrapped: bool
) -> None:
    """The sentence names the role, the bucket and the key of the environment file; also for an error that came from it."""
    monkeypatch.setattr(Aws, "message", message)
    monkeypatch.setattr(Aws, "identity", identity)
    error = raised(lambda: s3.put_object(Bucket="acme-lake", Key="a/b", Body=b""), wrapped=wrapped)
    assert access_denied.explain(error) == (
        f"S3 denied PutObject on bucket 'acme-lake' to {role}; in AWS the environment file grants access: "
        "list s3://acme-lake/PREFIX in data_write of the pool (to write and read) or in data of the region (to read)"
    )


@pytest.mark.parametrize("response", [None, {"Error": None}, "AccessDenied"])
def test_odd_error_does_no_harm(response: Any) -> None:
    """An error whose content is not as botocore makes it is not explained, and what follows the task's failure goes on."""
    error = botocore.exceptions.ClientError({}, "PutObject")
    error.response = response
    assert access_denied.explain(error) is None


def test_denied_head_is_explained(s3: Any) -> None:
    """A HEAD has no body: its error has the status alone."""
    error = raised(lambda: s3.head_object(Bucket="acme-lake", Key="a/b"))
    assert "S3 denied HeadObject on bucket 'acme-lake'" in (access_denied.explain(error) or "")


def test_other_errors_are_left_alone(s3: Any) -> None:
    """Errors of other kinds have no explanation, and neither has success."""
    assert access_denied.explain(raised(lambda: s3.get_object(Bucket="acme-lake", Key="a/b"))) is None
    assert access_denied.explain(ValueError("AccessDenied")) is None
    assert access_denied.explain(None) is None


FILE = """
import boto3
from airflow.sdk import DAG, task

with DAG("d", schedule=None):
    @task
    def writes():
        s3 = boto3.client("s3", endpoint_url="{url}", region_name="eu-west-1", aws_access_key_id="x", aws_secret_access_key="y")
        s3.put_object(Bucket="acme-lake", Key="a/b", Body=b"")
    writes()
"""


def test_log_of_task_has_it(world: World, s3: Any) -> None:
    """The task fails with AWS's error, and its log explains it."""
    root = world.write(FILE.replace("{url}", s3.meta.endpoint_url))
    done = world.do(world.run(root, "writes", warm=True))
    assert done.proxy.states == ["failed"]
    assert world.exit.exception == "ClientError"
    [line] = [each for each in done.events if each["event"].startswith("S3 denied")]
    assert line["level"] == "error"
    assert "PutObject on bucket 'acme-lake'" in line["event"]
    assert "data_write" in line["event"]
