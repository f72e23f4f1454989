"""Test of IAM permissions: real calls under each role, on an emulator that enforces IAM.

    python -m airbridge.infra.tools.permissions local --endpoint-url http://127.0.0.1:5600

Prints a table of calls, the designed and the observed result of each. While it runs, the emulator enforces IAM for
every caller but the account's administrator.
"""

from __future__ import annotations

import argparse
import sys
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from airbridge.infra import environment as environments
from airbridge.infra.environment import Environment
from airbridge.infra.exceptions import EmulatorError, InfraError

# Error codes by which services report a denial by IAM.
_DENIALS = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403", "Forbidden"}
Call = Callable[["Session"], object]


@dataclass(frozen=True)
class Expectation:
    """A call under a role, and whether the design allows it."""

    role: str
    says: str
    allowed: bool
    call: Call


@dataclass(frozen=True)
class Outcome:
    """An expectation, and what happened."""

    expected: Expectation
    allowed: bool

    @property
    def as_designed(self) -> bool:
        """Return whether design and observation agree."""
        return self.allowed == self.expected.allowed


class Session:
    """Clients under one role's credentials."""

    def __init__(self, endpoint_url: str, credentials: dict[str, str], account: str = "") -> None:
        self.account = account
        self._endpoint_url, self._credentials = endpoint_url, credentials

    def client(self, service: str, region: str) -> Any:
        """A client of a service in a region; it tries once."""
        return boto3.client(
            service,
            region_name=region,
            endpoint_url=self._endpoint_url,
            aws_access_key_id=self._credentials["AccessKeyId"],
            aws_secret_access_key=self._credentials["SecretAccessKey"],
            aws_session_token=self._credentials.get("SessionToken"),
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )


def administrator(endpoint_url: str) -> Session:
    """Administrator of the emulator."""
    return Session(endpoint_url, {"AccessKeyId": "test", "SecretAccessKey": "test"})


def assume(endpoint_url: str, role_arn: str) -> Session:
    """A session under a role."""
    sts = administrator(endpoint_url).client("sts", "us-east-1")
    answer = sts.assume_role(RoleArn=role_arn, RoleSessionName="tried")
    return Session(endpoint_url, answer["Credentials"], account=role_arn.split(":")[4])


@contextmanager
def enforced(endpoint_url: str) -> Iterator[None]:
    """The emulator enforces IAM inside the block."""
    _count_before_enforcing(endpoint_url, "0")
    try:
        yield
    finally:
        _count_before_enforcing(endpoint_url, "inf")


def _count_before_enforcing(endpoint_url: str, count: str) -> None:
    url = f"{endpoint_url}/moto-api/reset-auth"
    # As a form, which is urllib's default, the number would not reach the emulator.
    headers = {"Content-Type": "text/plain"}
    request = urllib.request.Request(url, data=count.encode(), headers=headers, method="POST")  # noqa: S310  # loopback
    with urllib.request.urlopen(request, timeout=10) as answer:  # noqa: S310
        if answer.status != 200:
            raise EmulatorError(f"{endpoint_url}: the emulator does not enforce IAM: {answer.status}")


def attempt(session: Session, call: Call) -> bool:
    """Return whether a call is allowed. Errors other than a refusal are raised."""
    try:
        call(session)
    except ClientError as error:
        if error.response["Error"]["Code"] in _DENIALS:
            return False
        raise
    return True


def try_all(environment: Environment, endpoint_url: str) -> list[Outcome]:
    """Try every expectation."""
    admin = administrator(endpoint_url)
    _prepare(environment, admin)
    expectations = list(design(environment))
    names = {each.role for each in expectations}
    sessions = {
        name: assume(endpoint_url, f"arn:aws:iam::{environment.account}:role/{name}") for name in names
    }
    with enforced(endpoint_url):
        return [Outcome(each, attempt(sessions[each.role], each.call)) for each in expectations]


def _prepare(environment: Environment, admin: Session) -> None:
    """Something to read in every bucket that the design reads."""
    names = environment.names
    for region in environment.regions:
        s3 = admin.client("s3", region.name)
        s3.put_object(Bucket=names.log_bucket(region.name), Key="logs/run/1.log", Body=b"log")
        s3.put_object(Bucket=names.log_bucket(region.name), Key="xcoms/value", Body=b"value")
        s3.put_object(Bucket=names.bundle_bucket(region.name), Key="bundles/b/1.tar.gz", Body=b"dag")
        s3.put_object(Bucket=names.bundle_bucket(region.name), Key="bundles/b/owed/r/1", Body=b"")
        for prefix in region.data:
            _make_data(s3, region.name, *_split(prefix))
    admin.client("s3", environment.home_region).put_object(
        Bucket=names.state_bucket, Key=f"{environment.name}/tried.tfstate", Body=b"{}"
    )


def _make_data(s3: Any, region: str, bucket: str, prefix: str) -> None:
    """Owner of the data, which is not AirBridge's."""
    place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
    if bucket not in {one["Name"] for one in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=bucket, **place)
    s3.put_object(Bucket=bucket, Key=f"{prefix}tried.csv", Body=b"1")


def _split(prefix: str) -> tuple[str, str]:
    """Bucket and key prefix of `s3://bucket/prefix`; the prefix ends in a slash, or is empty."""
    bucket, _, key = prefix.removeprefix("s3://").partition("/")
    return bucket, f"{key.rstrip('/')}/" if key else ""


def design(environment: Environment) -> Iterator[Expectation]:
    """Every role's calls, allowed and denied."""
    here, there = environment.regions[-1].name, environment.regions[0].name
    yield from _worker(environment, here, there)
    yield from _scheduler(environment, here)
    yield from _gateway(environment, here)
    yield from _api_server(environment, here)
    yield from _others(environment, here)
    yield from _pipelines(environment, here)


def _scheduler(environment: Environment, here: str) -> Iterator[Expectation]:
    """The scheduler sends work and never receives it."""
    names = environment.names
    scheduler, queue = names.role("scheduler"), names.queue(here, "default")
    logs, bundles = names.log_bucket(here), names.bundle_bucket(here)
    yield Expectation(scheduler, f"send to {queue}", True, _send(here, queue))
    yield Expectation(scheduler, f"receive from {queue}", False, _receive(here, queue))
    yield Expectation(scheduler, f"purge {queue}", False, _purge(here, queue))
    dead_letters = names.dead_letter_queue(here)
    yield Expectation(scheduler, f"look at {dead_letters}", True, _look(here, dead_letters))
    yield Expectation(scheduler, f"send to {dead_letters}", False, _send(here, dead_letters))
    yield Expectation(
        scheduler, f"write s3://{bundles}/bundles/", False, _put(here, bundles, "bundles/b/forged")
    )
    yield Expectation(scheduler, "read the CA's key", False, _secret(environment, "ca-key"))
    worker_arn = f"arn:aws:iam::{environment.account}:role/{names.worker_role(here, 'default')}"
    yield Expectation(scheduler, "assume a worker's role", False, _assume(worker_arn))
    yield Expectation(scheduler, f"look at {queue}", True, _look(here, queue))
    yield Expectation(scheduler, f"read s3://{logs}/logs/", False, _get(here, logs, "logs/run/1.log"))
    yield Expectation(scheduler, f"publish to AirBridge in {here}", True, _metric(here, "AirBridge"))
    yield Expectation(scheduler, f"publish to Other in {here}", False, _metric(here, "Other"))


def _gateway(environment: Environment, here: str) -> Iterator[Expectation]:
    """The gateway publishes pushed DAG code and touches no queue."""
    names = environment.names
    gateway, queue = names.role("gateway"), names.queue(here, "default")
    logs, bundles = names.log_bucket(here), names.bundle_bucket(here)
    yield Expectation(gateway, f"send to {queue}", False, _send(here, queue))
    yield Expectation(gateway, f"receive from {queue}", False, _receive(here, queue))
    yield Expectation(
        gateway, f"write s3://{bundles}/bundles/", True, _put(here, bundles, "bundles/b/2.tar.gz")
    )
    yield Expectation(
        gateway, f"read s3://{bundles}/bundles/", True, _get(here, bundles, "bundles/b/1.tar.gz")
    )
    yield Expectation(
        gateway, f"delete s3://{bundles}/bundles/", False, _remove(here, bundles, "bundles/b/1.tar.gz")
    )
    yield Expectation(
        gateway, f"delete s3://{bundles}/bundles/*/owed/", True, _remove(here, bundles, "bundles/b/owed/r/1")
    )
    yield Expectation(gateway, "publish to AirBridge", False, _metric(here, "AirBridge"))
    yield Expectation(gateway, "read the signing key", False, _secret(environment, "signing-key"))
    yield Expectation(
        gateway, f"write s3://{bundles}/trust/ca.crt", False, _put(here, bundles, "trust/ca.crt")
    )
    yield Expectation(gateway, f"read s3://{logs}/logs/", False, _get(here, logs, "logs/run/1.log"))
    yield Expectation(gateway, f"read s3://{logs}/xcoms/", True, _get(here, logs, "xcoms/value"))
    yield Expectation(gateway, f"list s3://{logs}/xcoms/", True, _list(here, logs, "xcoms/"))
    yield Expectation(gateway, f"write s3://{logs}/xcoms/", False, _put(here, logs, "xcoms/forged"))
    yield Expectation(gateway, f"delete s3://{logs}/logs/", False, _remove(here, logs, "logs/run/1.log"))


def _api_server(environment: Environment, here: str) -> Iterator[Expectation]:
    """The API server reads task logs for the UI."""
    names = environment.names
    api, queue = names.role("api-server"), names.queue(here, "default")
    logs, bundles = names.log_bucket(here), names.bundle_bucket(here)
    yield Expectation(api, f"read s3://{logs}/logs/", True, _get(here, logs, "logs/run/1.log"))
    yield Expectation(api, f"list s3://{logs}/logs/", True, _list(here, logs, "logs/"))
    yield Expectation(api, f"list s3://{logs}/", False, _list(here, logs, ""))
    yield Expectation(api, f"write s3://{logs}/logs/", False, _put(here, logs, "logs/forged"))
    yield Expectation(api, f"send to {queue}", False, _send(here, queue))
    yield Expectation(api, f"read s3://{bundles}/bundles/", False, _get(here, bundles, "bundles/b/1.tar.gz"))
    yield Expectation(api, "read the CA's key", False, _secret(environment, "ca-key"))


def _others(environment: Environment, here: str) -> Iterator[Expectation]:
    """The dag-processor publishes DAG code and runs it; the triggerer runs what DAGs wait for."""
    names = environment.names
    processor, triggerer = names.role("dag-processor"), names.role("triggerer")
    queue, logs, bundles = names.queue(here, "default"), names.log_bucket(here), names.bundle_bucket(here)
    yield Expectation(
        processor, f"write s3://{bundles}/bundles/", True, _put(here, bundles, "bundles/b/3.tar.gz")
    )
    yield Expectation(
        processor, f"write s3://{bundles}/trust/ca.crt", False, _put(here, bundles, "trust/ca.crt")
    )
    yield Expectation(processor, f"send to {queue}", False, _send(here, queue))
    yield Expectation(processor, f"read s3://{logs}/logs/", False, _get(here, logs, "logs/run/1.log"))
    yield Expectation(triggerer, f"send to {queue}", False, _send(here, queue))
    yield Expectation(triggerer, f"read s3://{logs}/logs/", False, _get(here, logs, "logs/run/1.log"))
    yield Expectation(
        triggerer, f"read s3://{bundles}/bundles/", False, _get(here, bundles, "bundles/b/1.tar.gz")
    )


def _worker(environment: Environment, here: str, there: str) -> Iterator[Expectation]:
    names = environment.names
    worker = names.worker_role(here, "default")
    own, other, dead_letters = (
        names.queue(here, "default"),
        names.queue(there, "default"),
        names.dead_letter_queue(here),
    )
    logs, bundles = names.log_bucket(here), names.bundle_bucket(here)
    yield Expectation(worker, f"receive from {own}", True, _receive(here, own))
    yield Expectation(worker, f"delete what came from {own}", True, _delete_message(here, own))
    yield Expectation(worker, f"send to {own}", False, _send(here, own))
    yield Expectation(worker, f"purge {own}", False, _purge(here, own))
    yield Expectation(worker, f"receive from {other}", False, _receive(there, other))
    yield Expectation(worker, f"send to {other}", False, _send(there, other))
    yield Expectation(worker, f"send to {dead_letters}", False, _send(here, dead_letters))
    yield Expectation(
        worker, f"read s3://{bundles}/bundles/", True, _get(here, bundles, "bundles/b/1.tar.gz")
    )
    yield Expectation(
        worker, f"write s3://{bundles}/bundles/", False, _put(here, bundles, "bundles/b/forged")
    )
    yield Expectation(worker, f"list s3://{bundles}/bundles/", True, _list(here, bundles, "bundles/"))
    yield Expectation(worker, f"list s3://{bundles}/", False, _list(here, bundles, ""))
    foreign = names.bundle_bucket(there)
    yield Expectation(
        worker, f"read s3://{foreign}/bundles/", False, _get(there, foreign, "bundles/b/1.tar.gz")
    )
    yield Expectation(worker, f"write s3://{logs}/logs/", True, _put(here, logs, "logs/run/2.log"))
    yield Expectation(worker, f"write s3://{logs}/ outside logs/", False, _put(here, logs, "elsewhere/2.log"))
    yield Expectation(worker, f"read s3://{logs}/logs/", False, _get(here, logs, "logs/run/1.log"))
    yield Expectation(worker, f"write s3://{logs}/xcoms/", True, _put(here, logs, "xcoms/value"))
    yield Expectation(worker, f"read s3://{logs}/xcoms/", True, _get(here, logs, "xcoms/value"))
    elsewhere = names.log_bucket(there)
    yield Expectation(worker, f"read s3://{elsewhere}/xcoms/", False, _get(there, elsewhere, "xcoms/value"))
    yield Expectation(
        worker, f"write s3://{elsewhere}/logs/", False, _put(there, elsewhere, "logs/run/2.log")
    )
    yield from _data(environment, worker, names.task_role(here, "default"), here, there)
    task_role = names.task_role_arn(here, "default")
    yield Expectation(worker, "assume its tasks' role", True, _assume(task_role))
    other_tasks = names.task_role_arn(there, "default")
    yield Expectation(worker, "assume another region's tasks' role", False, _assume(other_tasks))
    yield Expectation(names.task_role(here, "default"), f"receive from {own}", False, _receive(here, own))
    yield Expectation(worker, "publish to AirBridge", False, _metric(here, "AirBridge"))
    yield Expectation(worker, "read the CA's key", False, _secret(environment, "ca-key"))
    yield Expectation(worker, "assume the scheduler's role", False, _assume(names.role_arn("scheduler")))


def _data(environment: Environment, worker: str, task: str, here: str, there: str) -> Iterator[Expectation]:
    """A task reads the data of its own region, and writes none; the worker itself does neither."""
    for region, allowed in ((here, True), (there, False)):
        for prefix in environment.region(region).data[:1]:
            bucket, key = _split(prefix)
            yield Expectation(task, f"read {prefix}", allowed, _get(region, bucket, f"{key}tried.csv"))
            yield Expectation(task, f"write {prefix}", False, _put(region, bucket, f"{key}forged.csv"))
            yield Expectation(worker, f"read {prefix}", False, _get(region, bucket, f"{key}tried.csv"))


def _pipelines(environment: Environment, here: str) -> Iterator[Expectation]:
    names, home = environment.names, environment.home_region
    publish, plan = names.role("pipeline-publish"), names.role("pipeline-plan")
    deploy = names.role("pipeline-deploy")
    state = f"{environment.name}/tried.tfstate"
    yield Expectation(publish, "log in to ECR", True, _login(home))
    yield Expectation(
        publish, f"read s3://{names.state_bucket}/{state}", False, _get(home, names.state_bucket, state)
    )
    yield Expectation(
        plan, f"read s3://{names.state_bucket}/{state}", True, _get(home, names.state_bucket, state)
    )
    yield Expectation(
        plan,
        f"delete the queue {names.queue(here, 'default')}",
        False,
        _delete(here, names.queue(here, "default")),
    )
    yield Expectation(
        plan,
        f"receive from {names.queue(here, 'default')}",
        False,
        _receive(here, names.queue(here, "default")),
    )
    yield Expectation(
        deploy, f"write s3://{names.state_bucket}/{state}", True, _put(home, names.state_bucket, state)
    )
    yield Expectation(
        deploy,
        f"receive from {names.queue(here, 'default')}",
        False,
        _receive(here, names.queue(here, "default")),
    )
    yield Expectation(deploy, "read the CA's key", False, _secret(environment, "ca-key"))


def _url(session: Session, region: str, queue: str) -> tuple[Any, str]:
    client = session.client("sqs", region)
    return client, f"{client.meta.endpoint_url}/{session.account}/{queue}"


def _send(region: str, queue: str) -> Call:
    def call(session: Session) -> object:
        client, url = _url(session, region, queue)
        return client.send_message(QueueUrl=url, MessageBody="{}")

    return call


def _receive(region: str, queue: str) -> Call:
    def call(session: Session) -> object:
        client, url = _url(session, region, queue)
        return client.receive_message(QueueUrl=url, WaitTimeSeconds=0, VisibilityTimeout=0)

    return call


def _purge(region: str, queue: str) -> Call:
    def call(session: Session) -> object:
        client, url = _url(session, region, queue)
        return client.purge_queue(QueueUrl=url)

    return call


def _delete(region: str, queue: str) -> Call:
    def call(session: Session) -> object:
        client, url = _url(session, region, queue)
        return client.delete_queue(QueueUrl=url)

    return call


def _delete_message(region: str, queue: str) -> Call:
    def call(session: Session) -> object:
        client, url = _url(session, region, queue)
        # A receipt of no message: only the permission to make the call is tested.
        try:
            return client.delete_message(QueueUrl=url, ReceiptHandle="tried")
        except ClientError as error:
            if "ReceiptHandle" not in error.response["Error"]["Code"]:
                raise
            return None

    return call


def _look(region: str, queue: str) -> Call:
    def call(session: Session) -> object:
        client, url = _url(session, region, queue)
        return client.get_queue_attributes(QueueUrl=url, AttributeNames=["ApproximateNumberOfMessages"])

    return call


def _get(region: str, bucket: str, key: str) -> Call:
    return lambda session: session.client("s3", region).get_object(Bucket=bucket, Key=key)


def _put(region: str, bucket: str, key: str) -> Call:
    return lambda session: session.client("s3", region).put_object(Bucket=bucket, Key=key, Body=b"x")


def _remove(region: str, bucket: str, key: str) -> Call:
    return lambda session: session.client("s3", region).delete_object(Bucket=bucket, Key=key)


def _list(region: str, bucket: str, prefix: str) -> Call:
    return lambda session: session.client("s3", region).list_objects_v2(Bucket=bucket, Prefix=prefix)


def _metric(region: str, namespace: str) -> Call:
    data = [{"MetricName": "BacklogPerSlot", "Value": 0.0}]
    return lambda session: session.client("cloudwatch", region).put_metric_data(
        Namespace=namespace, MetricData=data
    )


def _secret(environment: Environment, name: str) -> Call:
    identifier = f"{environment.names.base}/{name}"
    return lambda session: session.client("secretsmanager", environment.home_region).get_secret_value(
        SecretId=identifier
    )


def _assume(role_arn: str) -> Call:
    return lambda session: session.client("sts", "us-east-1").assume_role(
        RoleArn=role_arn, RoleSessionName="stolen"
    )


def _login(region: str) -> Call:
    return lambda session: session.client("ecr", region).get_authorization_token()


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes in Markdown."""
    lines = ["| role | call | design | happened |", "| --- | --- | --- | --- |"]
    word = {True: "allowed", False: "denied"}
    for each in outcomes:
        happened = word[each.allowed] + ("" if each.as_designed else " **(not as designed)**")
        lines.append(
            f"| {each.expected.role} | {each.expected.says} | {word[each.expected.allowed]} | {happened} |"
        )
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; 0 if all is as designed."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.tools.permissions", description="Try every role."
    )
    parser.add_argument("environment")
    parser.add_argument("--endpoint-url", default="http://127.0.0.1:5600")
    options = parser.parse_args(arguments)
    try:
        environment = environments.load(Path("environments") / f"{options.environment}.toml")
        outcomes = try_all(environment, options.endpoint_url)
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(table(outcomes))
    return 0 if all(each.as_designed for each in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
