"""Brokered credentials: how narrow they are under IAM that is enforced, who gets them, and their renewal through a cut."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from tests.integration.gateway.world import Worker, World, client_context, running
from tests.support import emulator
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres

from airbridge.control_plane.gateway.brokering.session_policy import LONGEST, session_policy
from airbridge.core.aws.object_store import S3Store, connect
from airbridge.core.aws.queue import SqsQueue, sqs_client
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ObjectNotFound, QueueError, StoreError
from airbridge.core.protocol import VERSION_HEADER
from airbridge.core.wire.brokering import AwsCredentials, AwsCredentialsRequest
from airbridge.edge_worker.exceptions import GatewayUnreachable
from airbridge.edge_worker.transfer.brokered import BrokeredSession
from airbridge.edge_worker.transfer.client import Answer, Transfers
from airbridge.executor.ledger.identity import revocations

ACCOUNT = "123456789012"
REGION = "eu-central-1"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/airbridge-workers"
TASK_ROLE = f"arn:aws:iam::{ACCOUNT}:role/airbridge-tasks"
UNKNOWN_ROLE = f"arn:aws:iam::{ACCOUNT}:role/untrusting"
OTHER_ROLE = f"arn:aws:iam::{ACCOUNT}:role/other"
DENIED = {"AccessDenied", "AccessDeniedException", "403", "UnauthorizedOperation"}
#: What the role's own policy allows: the session policy alone makes the credentials narrow.
ALL = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}


def catalogue(url: str) -> Catalogue:
    """Two places that share one role, and a pool that has credentials of its own."""
    return Catalogue.parse(
        f"""
        home_region = "{REGION}"
        [[region]]
        name = "{REGION}"
        log_bucket = "home-logs"
        bundle_bucket = "home-dags"
        endpoint_url = "{url}"
        [[region.pool]]
        queue_url = "{url}/{ACCOUNT}/home"
        [[region]]
        name = "factory-7"
        aws_region = "{REGION}"
        credentials = "brokered"
        log_bucket = "factory-logs"
        bundle_bucket = "factory-dags"
        endpoint_url = "{url}"
        [[region.pool]]
        queue_url = "{url}/{ACCOUNT}/factory"
        role_arn = "{ROLE}"
        [[region.pool]]
        name = "press"
        queue_url = "{url}/{ACCOUNT}/press"
        role_arn = "{ROLE}"
        task_role_arn = "{TASK_ROLE}"
        xcom_inline_bytes = 1024
        [[region.pool]]
        name = "lonely"
        queue_url = "{url}/{ACCOUNT}/lonely"
        role_arn = "{UNKNOWN_ROLE}"
        """
    )


@dataclass
class Cloud:
    """The emulated account."""

    url: str
    #: Calls before this one are the administrator's.
    clients: dict[str, Any] = field(default_factory=dict)

    def client(self, service: str, keys: AwsCredentials | None = None, region: str = REGION) -> Any:
        """A client under these credentials; without any the administrator's."""
        return boto3.client(
            service,
            region_name=region,
            endpoint_url=self.url,
            aws_access_key_id=keys.access_key_id if keys else "test",
            aws_secret_access_key=keys.secret_access_key if keys else "test",
            aws_session_token=keys.session_token if keys else None,
            config=Config(retries={"total_max_attempts": 1}, s3={"addressing_style": "path"}),
        )

    def receives(self, queue: str) -> int:
        answer = self.client("sqs").receive_message(QueueUrl=f"{self.url}/{ACCOUNT}/{queue}")
        return len(answer.get("Messages", ()))


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """An account with IAM enforced, in which the gateway may assume the pools' role and nothing else."""
    with (
        emulator.serve(tmp_path_factory.mktemp("emulator")) as url,
        pytest.MonkeyPatch.context() as environment,
    ):
        made = Cloud(url)
        for bucket in ("home-logs", "home-dags", "factory-logs", "factory-dags"):
            made.client("s3").create_bucket(
                Bucket=bucket, CreateBucketConfiguration={"LocationConstraint": REGION}
            )
        for queue in ("home", "factory", "press", "lonely"):
            made.client("sqs").create_queue(QueueName=queue)
        made.client("sqs", region="eu-west-1").create_queue(QueueName="factory")
        key = _gateway(made)
        environment.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
        environment.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
        enforced = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(enforced, timeout=10).close()
        yield made


def _gateway(cloud: Cloud) -> dict[str, str]:
    """Create the roles, and the gateway's own user with the rights that its documentation names."""
    iam = cloud.client("iam")
    iam.create_user(UserName="gateway")
    user = f"arn:aws:iam::{ACCOUNT}:user/gateway"
    trust = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Principal": {"AWS": user}, "Action": "sts:AssumeRole"}],
    }
    for arn in (ROLE, OTHER_ROLE, UNKNOWN_ROLE):
        name = arn.rpartition("/")[2]
        iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(trust))
        iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=json.dumps(ALL))
    iam.create_role(RoleName="airbridge-tasks", AssumeRolePolicyDocument=json.dumps(trust))
    reads = {"Effect": "Allow", "Action": "s3:GetObject", "Resource": "arn:aws:s3:::home-dags/data/*"}
    iam.put_role_policy(
        RoleName="airbridge-tasks",
        PolicyName="data",
        PolicyDocument=json.dumps({"Version": "2012-10-17", "Statement": [reads]}),
    )
    may = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Resource": [ROLE, TASK_ROLE]}],
    }
    iam.put_user_policy(UserName="gateway", PolicyName="broker", PolicyDocument=json.dumps(may))
    key: dict[str, str] = iam.create_access_key(UserName="gateway")["AccessKey"]
    return key


@pytest.fixture(scope="module")
def world(
    cloud: Cloud, postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A gateway that brokers credentials for a factory."""
    name = postgres.create(postgres_template)
    directory = tmp_path_factory.mktemp("gateway")
    with pointed_at(postgres.url(name)) as metadata, running(metadata, directory, catalogue(cloud.url)) as it:
        yield it
    postgres.drop(name)


@pytest.fixture
def worker(world: World) -> Worker:
    """A worker of the factory."""
    return world.worker("factory-7")


@pytest.fixture
def transfers(worker: Worker) -> Iterator[Transfers]:
    """The worker's own client."""
    made = Transfers(worker.world.edge_url, timeout_seconds=20.0)
    made.identify(
        client_context(worker.world.ca.certificate_pem, worker.certificate_pem, worker.key),
        {VERSION_HEADER: "1", "Authorization": f"Bearer {worker.token}"},
    )
    yield made
    made.close()


def brokered(worker: Worker) -> AwsCredentials:
    response = worker.post("credentials", {})
    assert response.status_code == 200, response.text
    return AwsCredentials.model_validate_json(response.content)


# --- what they allow -----------------------------------------------------------------------------


def test_worker_uses_queue_code_and_logs(cloud: Cloud, transfers: Transfers) -> None:
    """With the credentials a worker receives from its queue, reads DAG code, and writes, lists and deletes logs."""
    cloud.client("s3").put_object(Bucket="factory-dags", Key="bundles/main/x.tar.gz", Body=b"code")
    cloud.client("sqs").send_message(QueueUrl=f"{cloud.url}/{ACCOUNT}/factory", MessageBody="work")
    session = BrokeredSession(transfers).get()
    queue = SqsQueue(sqs_client(REGION, cloud.url, session=session), f"{cloud.url}/{ACCOUNT}/factory")
    [message] = queue.receive(wait_seconds=2)
    queue.release([message.receipt])
    [message] = queue.receive(wait_seconds=2)
    queue.delete([message.receipt])
    code = connect(REGION, "factory-dags", endpoint_url=cloud.url, session=session)
    assert b"".join(code.stream("bundles/main/x.tar.gz")) == b"code"
    with pytest.raises(ObjectNotFound):
        code.get("bundles/main/other.tar.gz")
    logs = connect(REGION, "factory-logs", endpoint_url=cloud.url, session=session)
    logs.put("logs/a/full.log", b"line")
    upload = logs.begin_parts("logs/a/long.log")
    logs.finish_parts("logs/a/long.log", upload, [logs.put_part("logs/a/long.log", upload, 1, b"part")])
    assert sorted(each.key for each in logs.list("logs/a/")) == ["logs/a/full.log", "logs/a/long.log"]
    logs.delete(["logs/a/full.log", "logs/a/long.log"])
    assert list(logs.list("logs/a/")) == []


def test_xcoms_only_where_they_are_stored(cloud: Cloud, world: World) -> None:
    """Credentials of a pool that stores XComs in its region reach them; those of another pool do not."""
    xcom = {"Bucket": "factory-logs", "Key": "xcoms/a"}
    cloud.client("s3", brokered(world.worker("factory-7", "press"))).put_object(**xcom, Body=b"1")
    with pytest.raises(ClientError, match=r"AccessDenied|Forbidden|Access Denied"):
        cloud.client("s3", brokered(world.worker("factory-7"))).put_object(**xcom, Body=b"1")


Attempt = Callable[["Tried"], Any]


@dataclass(frozen=True)
class Tried:
    """Clients under the credentials of a worker of the factory's default pool."""

    cloud: Cloud
    keys: AwsCredentials

    def __getattr__(self, service: str) -> Any:
        return self.cloud.client(service, self.keys)

    def queue(self, name: str) -> str:
        return f"{self.cloud.url}/{ACCOUNT}/{name}"


def abroad(tried: Tried) -> Any:
    return tried.cloud.client("sqs", tried.keys, region="eu-west-1")


DENIALS: dict[str, Attempt] = {
    "send to the own queue": lambda t: t.sqs.send_message(QueueUrl=t.queue("factory"), MessageBody="forged"),
    "receive from another pool": lambda t: t.sqs.receive_message(QueueUrl=t.queue("press")),
    "receive from another region": lambda t: t.sqs.receive_message(QueueUrl=t.queue("home")),
    "receive in another AWS region": lambda t: abroad(t).receive_message(QueueUrl=t.queue("factory")),
    "delete from another pool": lambda t: t.sqs.delete_message(QueueUrl=t.queue("press"), ReceiptHandle="x"),
    "count another pool's work": lambda t: t.sqs.get_queue_attributes(QueueUrl=t.queue("press")),
    "purge the own queue": lambda t: t.sqs.purge_queue(QueueUrl=t.queue("factory")),
    "delete the own queue": lambda t: t.sqs.delete_queue(QueueUrl=t.queue("factory")),
    "change the own queue": lambda t: t.sqs.set_queue_attributes(
        QueueUrl=t.queue("factory"), Attributes={"VisibilityTimeout": "1"}
    ),
    "list queues": lambda t: t.sqs.list_queues(),
    "create a queue": lambda t: t.sqs.create_queue(QueueName="mine"),
    "write DAG code": lambda t: t.s3.put_object(Bucket="factory-dags", Key="bundles/main/y", Body=b""),
    "delete DAG code": lambda t: t.s3.delete_object(Bucket="factory-dags", Key="bundles/main/x"),
    "list all of the code bucket": lambda t: t.s3.list_objects_v2(Bucket="factory-dags"),
    "read beside the code": lambda t: t.s3.get_object(Bucket="factory-dags", Key="trust/ca.key"),
    "read another region's code": lambda t: t.s3.get_object(Bucket="home-dags", Key="bundles/main/x"),
    "read logs": lambda t: t.s3.get_object(Bucket="factory-logs", Key="logs/other/full.log"),
    "write beside the logs": lambda t: t.s3.put_object(Bucket="factory-logs", Key="data/x", Body=b""),
    "write XComs": lambda t: t.s3.put_object(Bucket="factory-logs", Key="xcoms/x", Body=b""),
    "read XComs": lambda t: t.s3.get_object(Bucket="factory-logs", Key="xcoms/x"),
    "write another region's logs": lambda t: t.s3.put_object(Bucket="home-logs", Key="logs/x", Body=b""),
    "list another region's logs": lambda t: t.s3.list_objects_v2(Bucket="home-logs", Prefix="logs/"),
    "list buckets": lambda t: t.s3.list_buckets(),
    "open a bucket": lambda t: t.s3.put_bucket_policy(Bucket="factory-logs", Policy=json.dumps(ALL)),
    "delete a bucket": lambda t: t.s3.delete_bucket(Bucket="factory-logs"),
    "assume the role without the limits": lambda t: t.sts.assume_role(RoleArn=ROLE, RoleSessionName="wide"),
    "assume another role": lambda t: t.sts.assume_role(RoleArn=OTHER_ROLE, RoleSessionName="other"),
    "make a lasting key": lambda t: t.iam.create_access_key(UserName="gateway"),
    "widen the role": lambda t: t.iam.put_role_policy(
        RoleName="airbridge-workers", PolicyName="x", PolicyDocument=json.dumps(ALL)
    ),
    "list roles": lambda t: t.iam.list_roles(),
    "decrypt outside of S3 and SQS": lambda t: t.kms.decrypt(CiphertextBlob=b"x" * 64),
    "read a secret": lambda t: t.secretsmanager.get_secret_value(SecretId="airbridge"),
    "read a parameter": lambda t: t.ssm.get_parameter(Name="/airbridge/ca"),
}


@pytest.fixture(scope="module")
def tried(cloud: Cloud, world: World) -> Tried:
    return Tried(cloud, brokered(world.worker("factory-7")))


@pytest.mark.parametrize("what", DENIALS)
def test_other_call_is_denied(tried: Tried, what: str) -> None:
    """Whatever the role itself may do, the credentials of a worker are refused every other call."""
    with pytest.raises(ClientError) as refused:
        DENIALS[what](tried)
    assert refused.value.response["Error"]["Code"] in DENIED


def test_session_policy_fits_sts(cloud: Cloud) -> None:
    """The policy of the longest names is within the limit of STS."""
    longest = catalogue(cloud.url).region("factory-7")
    assert longest is not None
    region = longest.model_copy(update={"log_bucket": "l" * 63, "bundle_bucket": "b" * 63})
    for pool in region.pools:
        wide = pool.model_copy(update={"queue_url": f"https://sqs.x/{ACCOUNT}/{'q' * 80}"})
        assert len(session_policy(region, wide)) <= LONGEST


# --- who gets them -------------------------------------------------------------------------------


def test_other_pools_get_none(world: World) -> None:
    """A worker whose pool has credentials of its own gets none, and the denial is in the audit trail."""
    worker = world.worker(REGION)
    response = worker.post("credentials", {})
    assert (response.status_code, "its credentials in the catalogue" in response.text) == (403, True)


def test_request_names_no_other_pool(cloud: Cloud, world: World) -> None:
    """Fields of the request that name another pool or role change nothing."""
    worker = world.worker("factory-7")
    asked = {"pool": "press", "region": REGION, "role_arn": OTHER_ROLE, "policy": "{}", "duration": 43_200}
    given = AwsCredentials.model_validate_json(worker.post("credentials", asked).content)
    arn = cloud.client("sts", given).get_caller_identity()["Arn"]
    assert arn == f"arn:aws:sts::{ACCOUNT}:assumed-role/airbridge-workers/{worker.name.worker}"
    assert given.expires_in <= 900


def test_revoked_worker_gets_none(world: World, worker: Worker) -> None:
    """From its revocation on a worker gets no credentials, those of the last minute included."""
    brokered(worker)
    with world.metadata.session() as session:
        revocations.add(session, "worker", worker.name.worker, "stolen", "test")
        session.commit()
    response = worker.post("credentials", {})
    assert (response.status_code, response.json()["reason"]) == (403, "revoked")


def test_caller_without_certificate_gets_none(world: World, worker: Worker) -> None:
    """The access token alone is no identity."""
    token = worker.token
    worker.present(None, token)
    assert worker.post("credentials", {}).status_code == 401


def test_session_is_audited_and_shared(world: World, worker: Worker) -> None:
    """Each session is in the audit trail with its key's id, no secret; requests within a minute get the same."""
    first, second = brokered(worker), brokered(worker)
    assert first.access_key_id == second.access_key_id
    [row] = world.audited("credentials.brokered", worker_id=worker.name.worker)
    assert (row.verdict, row.detail["role"]) == ("granted", ROLE)
    assert row.detail["access_key_id"] == first.access_key_id
    assert first.secret_access_key not in str(row.detail)
    assert first.session_token not in str(row.detail)


def test_missing_right_is_named(world: World) -> None:
    """A role that the gateway may not assume is a 503 that names it, so that the worker tries again."""
    response = world.worker("factory-7", "lonely").post("credentials", {})
    assert response.status_code == 503
    assert UNKNOWN_ROLE in response.json()["detail"]


def test_tasks_get_their_own_role(cloud: Cloud, world: World) -> None:
    """Tasks get what their role has and nothing of the worker's; for an hour, and in the audit trail apart from the worker's."""
    cloud.client("s3", brokered(world.worker("factory-7"))).put_object(
        Bucket="factory-logs", Key="logs/seed", Body=b"1"
    )
    worker = world.worker("factory-7", "press")
    own = brokered(worker)
    tasks = AwsCredentials.model_validate_json(worker.post("credentials", {"for_tasks": True}).content)
    assert tasks.access_key_id != own.access_key_id
    assert 3500 < tasks.expires_in <= 3600
    s3 = cloud.client("s3", tasks)
    with pytest.raises(ClientError) as missing:
        s3.get_object(Bucket="home-dags", Key="data/none")
    assert missing.value.response["Error"]["Code"] in {"NoSuchKey", "404"}
    for denied in (
        lambda: s3.put_object(Bucket="factory-logs", Key="logs/x", Body=b"1"),
        lambda: s3.get_object(Bucket="factory-dags", Key="bundles/x"),
        lambda: cloud.client("sqs", tasks).receive_message(QueueUrl=f"{cloud.url}/{ACCOUNT}/press"),
    ):
        with pytest.raises(ClientError) as refused:
            denied()
        assert refused.value.response["Error"]["Code"] in DENIED
    rows = world.audited("credentials.brokered", worker_id=worker.name.worker)
    assert {(row.detail["of"], row.detail["role"]) for row in rows} == {
        ("worker", ROLE),
        ("tasks", TASK_ROLE),
    }


def test_tasks_of_other_pools_get_none(world: World, worker: Worker) -> None:
    """Without a role for tasks there is nothing for them, whatever the worker itself gets."""
    response = worker.post("credentials", {"for_tasks": True})
    assert (response.status_code, "has no task_role_arn" in response.text) == (403, True)


def test_credentials_are_no_proof_to_join(cloud: Cloud, world: World) -> None:
    """Credentials that a worker leaks enrol nobody: join method aws_iam is off where they are brokered."""
    body = world.worker("factory-7").enrolment("")
    headers = {"Authorization": "AWS4-HMAC-SHA256 x"}
    body["join"] = {"method": "aws_iam", "url": f"{cloud.url}/", "headers": headers, "body": ""}
    response = world.worker("factory-7").post("enrol", body)
    assert (response.status_code, "its credentials are brokered" in response.text) == (403, True)


# --- renewal -------------------------------------------------------------------------------------


@dataclass
class Cuttable:
    """The worker's client, whose way to the gateway can be cut."""

    transfers: Transfers
    cut: bool = False
    asked: int = 0

    def ask(
        self, what: str, request: AwsCredentialsRequest, answer: type[Answer], *, wait_seconds: float = 0.0
    ) -> Answer:
        self.asked += 1
        if self.cut:
            raise GatewayUnreachable("cut")
        return self.transfers.ask(what, request, answer, wait_seconds=wait_seconds)


@dataclass
class Clock:
    """A clock that tests move."""

    seconds: float = 1_000.0

    def __call__(self) -> float:
        return self.seconds


@dataclass
class Agent:
    """Clients of a worker, the cut and the clock."""

    gateway: Cuttable
    clock: Clock
    logs: S3Store
    queue: SqsQueue


@pytest.fixture
def agent(cloud: Cloud, transfers: Transfers) -> Agent:
    gateway, clock = Cuttable(transfers), Clock()
    session = BrokeredSession(gateway, clock).get()
    logs = connect(REGION, "factory-logs", endpoint_url=cloud.url, session=session)
    queue = SqsQueue(sqs_client(REGION, cloud.url, session=session), f"{cloud.url}/{ACCOUNT}/factory")
    return Agent(gateway, clock, logs, queue)


def test_renewed_when_half_is_left(agent: Agent) -> None:
    """All clients share credentials, which are asked for at the first use, and again when half of their time is left."""
    assert agent.gateway.asked == 0
    agent.logs.put("logs/r", b"1")
    agent.queue.receive()
    assert agent.gateway.asked == 1
    agent.clock.seconds += 500
    agent.logs.put("logs/r", b"2")
    assert agent.gateway.asked == 2


def test_used_through_a_cut_until_they_end(agent: Agent) -> None:
    """While the gateway is cut off, work goes on with what there is; at the end calls fail as transient, until it is back."""
    agent.logs.put("logs/c", b"1")
    agent.gateway.cut = True
    agent.clock.seconds += 700
    agent.logs.put("logs/c", b"2")
    agent.queue.receive()
    agent.clock.seconds += 150
    with pytest.raises(StoreError, match="no AWS credentials from the gateway: cut") as caught:
        agent.logs.put("logs/c", b"3")
    assert caught.value.transient
    with pytest.raises(QueueError, match="no AWS credentials from the gateway"):
        agent.queue.receive()
    agent.gateway.cut = False
    agent.clock.seconds += 10
    agent.logs.put("logs/c", b"4")


def test_outage_is_not_hammered(agent: Agent) -> None:
    """While the gateway refuses or is away, it is asked at most every five seconds, however many calls need credentials."""
    agent.gateway.cut = True
    for _ in range(5):
        with pytest.raises(StoreError):
            agent.logs.put("logs/h", b"1")
    assert agent.gateway.asked == 1


def test_host_credentials_are_not_used(
    cloud: Cloud, transfers: Transfers, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No variable, file or metadata service of the host takes the place of the gateway's credentials."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    (tmp_path / "credentials").write_text("[default]\naws_access_key_id=test\naws_secret_access_key=test\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    session = BrokeredSession(transfers).get()
    sts = session.client("sts", region_name=REGION, endpoint_url=cloud.url)
    assert "assumed-role/airbridge-workers/" in sts.get_caller_identity()["Arn"]
