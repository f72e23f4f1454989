"""Sites of an environment file on the emulator, IAM enforced: queues, buckets, roles and policies are those that the stacks have.

The gateway runs with its role's own policies. What it and the workers of a brokered site do is allowed; everything else is denied.
"""

from __future__ import annotations

import base64
import bz2
import json
import re
import subprocess
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError
from tests.infra.sites import ABROAD, HOME, TOML, policies_of, resolved
from tests.integration.gateway.world import Worker, World, client_context, running
from tests.support import emulator
from tests.support.airflow_home import pointed_at
from tests.support.postgres import Postgres
from tests.unit.ci.tree import ROOT

from airbridge.control_plane.gateway.transfer.sources import Sources, s3_store
from airbridge.core.aws.queue import SqsQueue, sqs_client
from airbridge.core.catalogue import Catalogue
from airbridge.core.protocol import VERSION_HEADER
from airbridge.core.wire.brokering import AwsCredentials
from airbridge.edge_worker.transfer.client import Transfers
from airbridge.edge_worker.transfer.queue import GatewayQueue

PYTHON = ROOT / "infra/.venv/bin/python"
pytestmark = pytest.mark.skipif(not PYTHON.exists(), reason="make infra-install")

#: The account of the emulator, in place of the environment's.
ACCOUNT = "123456789012"
BASE = "airbridge-dev-site"
ROLES = ("gateway", "scheduler", "api-server")
DENIED = {"AccessDenied", "AccessDeniedException", "403", "UnauthorizedOperation"}

Stacks = dict[str, dict[str, Any]]


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Stacks:
    """dev.toml with two sites, synthesised for the emulator's account."""
    folder = tmp_path_factory.mktemp("environments")
    text = (ROOT / "infra/environments/dev.toml").read_text()
    text = re.sub(r'(?<=[":])111111111111(?=[":])', ACCOUNT, text)
    (folder / "dev.toml").write_text(text + TOML)
    options = ["--directory", str(folder), "--out", str(folder / "out"), "dev"]
    subprocess.run([PYTHON, "-m", "airbridge.infra.synth", *options], check=True, cwd=ROOT / "infra")
    regions = {f"edge-{ABROAD}": ABROAD}
    return {
        file.parent.name: resolved(json.loads(file.read_text()), regions.get(file.parent.name, HOME), ACCOUNT)
        for file in (folder / "out").glob("dev/stacks/*/cdk.tf.json")
    }


@dataclass
class Cloud:
    """The emulated account, and the credentials of the services' roles."""

    url: str
    keys: dict[str, AwsCredentials]

    def client(self, service: str, region: str = HOME, keys: AwsCredentials | None = None) -> Any:
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

    def queue(self, name: str) -> str:
        return f"{self.url}/{ACCOUNT}/{BASE}-{name}"

    def make(self, stack: dict[str, Any], region: str) -> None:
        """Make the queues, buckets and roles of a stack, with their policies."""
        known = stack["resource"]
        sqs, s3, iam = self.client("sqs", region), self.client("s3", region), self.client("iam")
        place = {} if region == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": region}}
        for one in known.get("aws_sqs_queue", {}).values():
            sqs.create_queue(QueueName=one["name"])
        for one in known.get("aws_sqs_queue_policy", {}).values():
            url = f"{self.url}/{ACCOUNT}/{one['queue_url'].rpartition('/')[2]}"
            sqs.set_queue_attributes(QueueUrl=url, Attributes={"Policy": one["policy"]})
        for one in known.get("aws_s3_bucket", {}).values():
            s3.create_bucket(Bucket=one["bucket"], **place)
        for one in known.get("aws_s3_bucket_policy", {}).values():
            s3.put_bucket_policy(Bucket=one["bucket"], Policy=one["policy"])
        for one in known.get("aws_iam_role", {}).values():
            iam.create_role(RoleName=one["name"], AssumeRolePolicyDocument=one["assume_role_policy"])
            for number, policy in enumerate(policies_of(stack, one["name"])):
                # What is left refers to keys and log groups, which have names only when they are made.
                text = re.sub(r"\$\{[^}]+\}", f"arn:aws:kms:{region}:{ACCOUNT}:key/1", json.dumps(policy))
                iam.put_role_policy(RoleName=one["name"], PolicyName=f"policy-{number}", PolicyDocument=text)

    def take(self, role: str) -> None:
        """Take a role of a service, as ECS hands it to its task."""
        arn = f"arn:aws:iam::{ACCOUNT}:role/airbridge-dev-{role}"
        given = self.client("sts").assume_role(RoleArn=arn, RoleSessionName=role)["Credentials"]
        self.keys[role] = AwsCredentials(
            access_key_id=given["AccessKeyId"],
            secret_access_key=given["SecretAccessKey"],
            session_token=given["SessionToken"],
            expires_in=900,
            expires_at=given["Expiration"],
        )


@pytest.fixture(scope="module")
def cloud(stacks: Stacks, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """The stacks' resources, IAM enforced; this process has the gateway's role."""
    with (
        emulator.serve(tmp_path_factory.mktemp("emulator")) as url,
        pytest.MonkeyPatch.context() as environment,
    ):
        made = Cloud(url, {})
        made.make(stacks["control-plane"], HOME)
        for region in (HOME, ABROAD):
            made.make(stacks[f"edge-{region}"], region)
        for role in ROLES:
            made.take(role)
        gateway = made.keys["gateway"]
        for name in ("AWS_PROFILE", "AWS_ENDPOINT_URL"):
            environment.delenv(name, raising=False)
        environment.setenv("AWS_ACCESS_KEY_ID", gateway.access_key_id)
        environment.setenv("AWS_SECRET_ACCESS_KEY", gateway.secret_access_key)
        environment.setenv("AWS_SESSION_TOKEN", gateway.session_token)
        enforced = urllib.request.Request(f"{url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"})
        urllib.request.urlopen(enforced, timeout=10).close()
        yield made


def _packed_regions(stacks: Stacks) -> str:
    """Return the catalogue in the gateway's task definition, unpacked as its start command does."""
    definitions = stacks["control-plane"]["resource"]["aws_ecs_task_definition"].values()
    [gateway] = [one for one in definitions if one["family"] == "airbridge-dev-gateway"]
    [main] = [one for one in json.loads(gateway["container_definitions"]) if one["name"] == "gateway"]
    [packed] = [one["value"] for one in main["environment"] if one["name"] == "AIRBRIDGE_FILE_REGIONS_TOML"]
    return bz2.decompress(base64.b64decode(packed)).decode()


@pytest.fixture(scope="module")
def catalogue(stacks: Stacks, cloud: Cloud) -> Catalogue:
    """The catalogue that the services are given, with the emulator's addresses."""
    text = _packed_regions(stacks)
    assert Catalogue.parse(text).names
    for region in (HOME, ABROAD):
        text = text.replace(f"https://sqs.{region}.amazonaws.com", cloud.url)
    return Catalogue.parse(text.replace("[[region]]\n", f'[[region]]\nendpoint_url = "{cloud.url}"\n'))


@pytest.fixture(scope="module")
def world(
    catalogue: Catalogue, postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A gateway with that catalogue, which calls SQS, S3 and STS."""
    name = postgres.create(postgres_template)
    directory = tmp_path_factory.mktemp("gateway")
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(metadata, directory, catalogue, sources=Sources(catalogue)) as it,
    ):
        yield it
    postgres.drop(name)


def transfers_of(worker: Worker) -> Transfers:
    made = Transfers(worker.world.edge_url, timeout_seconds=20.0)
    made.identify(
        client_context(worker.world.ca.certificate_pem, worker.certificate_pem, worker.key),
        {VERSION_HEADER: "1", "Authorization": f"Bearer {worker.token}"},
    )
    return made


def test_worker_receives_through_the_gateway(cloud: Cloud, world: World) -> None:
    """The scheduler's role sends, and a worker behind the gateway receives, returns and deletes the message."""
    scheduler = cloud.client("sqs", ABROAD, cloud.keys["scheduler"])
    scheduler.send_message(QueueUrl=cloud.queue("factory-7-default"), MessageBody="work")
    transfers = transfers_of(world.worker("factory-7"))
    queue = GatewayQueue(transfers)
    [message] = queue.receive(wait_seconds=5)
    queue.release([message.receipt])
    [message] = queue.receive(wait_seconds=5)
    assert message.body == "work"
    queue.delete([message.receipt])
    transfers.close()


def test_gateway_writes_logs_of_its_sites(catalogue: Catalogue, cloud: Cloud) -> None:
    """With its role the gateway reads code, and writes, lists and deletes logs; the api-server's role reads them."""
    site = catalogue.region("factory-7")
    assert site is not None
    cloud.client("s3", ABROAD).put_object(Bucket=site.bundle_bucket, Key="bundles/main/x", Body=b"code")
    assert s3_store(site, site.bundle_bucket).get("bundles/main/x").data == b"code"
    logs = s3_store(site, site.log_bucket)
    logs.put("logs/a/full.log", b"line")
    upload = logs.begin_parts("logs/a/long.log")
    logs.finish_parts("logs/a/long.log", upload, [logs.put_part("logs/a/long.log", upload, 1, b"part")])
    assert sorted(each.key for each in logs.list("logs/a/")) == ["logs/a/full.log", "logs/a/long.log"]
    reader = cloud.client("s3", ABROAD, cloud.keys["api-server"])
    assert reader.get_object(Bucket=site.log_bucket, Key="logs/a/full.log")["Body"].read() == b"line"
    logs.delete(["logs/a/full.log", "logs/a/long.log"])
    assert list(logs.list("logs/a/")) == []


def brokered(world: World, pool: str = "default") -> AwsCredentials:
    response = world.worker("depot-3", pool).post("credentials", {})
    assert response.status_code == 200, response.text
    return AwsCredentials.model_validate_json(response.content)


@pytest.fixture(scope="module")
def keys(world: World) -> AwsCredentials:
    """Credentials of a worker of the brokered site's default pool."""
    return brokered(world)


def test_brokered_worker_works(cloud: Cloud, keys: AwsCredentials) -> None:
    """The gateway's role assumes the pool's: with its credentials a worker receives, reads code, and writes and lists logs."""
    cloud.client("sqs", HOME, cloud.keys["scheduler"]).send_message(
        QueueUrl=cloud.queue("depot-3-default"), MessageBody="work"
    )
    session = boto3.session.Session(keys.access_key_id, keys.secret_access_key, keys.session_token, HOME)
    queue = SqsQueue(sqs_client(HOME, cloud.url, session=session), cloud.queue("depot-3-default"))
    [message] = queue.receive(wait_seconds=5)
    queue.release([message.receipt])
    [message] = queue.receive(wait_seconds=5)
    queue.delete([message.receipt])
    bundles, logs = (f"{BASE}-depot-3-{kind}-{ACCOUNT}" for kind in ("bundles", "logs"))
    cloud.client("s3").put_object(Bucket=bundles, Key="bundles/main/x", Body=b"code")
    s3 = cloud.client("s3", HOME, keys)
    assert s3.get_object(Bucket=bundles, Key="bundles/main/x")["Body"].read() == b"code"
    s3.put_object(Bucket=logs, Key="logs/a", Body=b"line")
    assert s3.list_objects_v2(Bucket=logs, Prefix="logs/")["KeyCount"] == 1
    s3.delete_object(Bucket=logs, Key="logs/a")


def test_xcoms_only_where_they_are_stored(cloud: Cloud, world: World, keys: AwsCredentials) -> None:
    """The pool that stores XComs reaches them; the other pool's role has no such right."""
    xcom = {"Bucket": f"{BASE}-depot-3-logs-{ACCOUNT}", "Key": "xcoms/a"}
    cloud.client("s3", HOME, brokered(world, "press")).put_object(**xcom, Body=b"1")
    with pytest.raises(ClientError, match=r"AccessDenied|Forbidden|Access Denied"):
        cloud.client("s3", HOME, keys).put_object(**xcom, Body=b"1")


@dataclass(frozen=True)
class Tried:
    """Clients under one principal's credentials."""

    cloud: Cloud
    keys: AwsCredentials

    def sqs(self, region: str = HOME) -> Any:
        return self.cloud.client("sqs", region, self.keys)

    def s3(self, region: str = HOME) -> Any:
        return self.cloud.client("s3", region, self.keys)

    def service(self, name: str) -> Any:
        return self.cloud.client(name, HOME, self.keys)

    def receive(self, name: str, region: str = HOME) -> Any:
        return self.sqs(region).receive_message(QueueUrl=self.cloud.queue(name))

    def assume(self, role: str) -> Any:
        arn = f"arn:aws:iam::{ACCOUNT}:role/airbridge-dev-{role}"
        return self.service("sts").assume_role(RoleArn=arn, RoleSessionName="tried")


def bucket(place: str, kind: str) -> str:
    return f"airbridge-dev-{place}-{kind}-{ACCOUNT}"


Attempt = Callable[[Tried], Any]
DEPOT, FACTORY = "site-depot-3", "site-factory-7"
WORKER: dict[str, Attempt] = {
    "send to the own queue": lambda t: t.sqs().send_message(QueueUrl=t.cloud.queue("depot-3-default"), MessageBody="x"),
    "receive from another pool": lambda t: t.receive("depot-3-press"),
    "receive from another site": lambda t: t.receive("factory-7-default", ABROAD),
    "receive dead letters": lambda t: t.receive("depot-3--dead-letters"),
    "purge the own queue": lambda t: t.sqs().purge_queue(QueueUrl=t.cloud.queue("depot-3-default")),
    "delete the own queue": lambda t: t.sqs().delete_queue(QueueUrl=t.cloud.queue("depot-3-default")),
    "write DAG code": lambda t: t.s3().put_object(Bucket=bucket(DEPOT, "bundles"), Key="bundles/y", Body=b""),
    "read beside the code": lambda t: t.s3().get_object(Bucket=bucket(DEPOT, "bundles"), Key="trust/ca.crt"),
    "read a region's code": lambda t: t.s3().get_object(Bucket=bucket(HOME, "bundles"), Key="bundles/x"),
    "read logs": lambda t: t.s3().get_object(Bucket=bucket(DEPOT, "logs"), Key="logs/a"),
    "write beside the logs": lambda t: t.s3().put_object(Bucket=bucket(DEPOT, "logs"), Key="data/x", Body=b""),
    "write a region's logs": lambda t: t.s3().put_object(Bucket=bucket(HOME, "logs"), Key="logs/x", Body=b""),
    "list a region's logs": lambda t: t.s3().list_objects_v2(Bucket=bucket(HOME, "logs"), Prefix="logs/"),
    "list buckets": lambda t: t.s3().list_buckets(),
    "assume the role without limits": lambda t: t.assume("site-depot-3-default"),
    "assume another pool's role": lambda t: t.assume("site-depot-3-press"),
    "assume the gateway's role": lambda t: t.assume("gateway"),
    "widen the role": lambda t: t.service("iam").put_role_policy(RoleName="airbridge-dev-site-depot-3-default", PolicyName="x", PolicyDocument="{}"),
    "read a secret": lambda t: t.service("secretsmanager").get_secret_value(SecretId="airbridge-dev/ca-key"),
}  # fmt: skip
GATEWAY: dict[str, Attempt] = {
    "send to a site's queue": lambda t: t.sqs(ABROAD).send_message(QueueUrl=t.cloud.queue("factory-7-default"), MessageBody="x"),
    "receive from a brokered site": lambda t: t.receive("depot-3-default"),
    "receive dead letters": lambda t: t.receive("factory-7--dead-letters", ABROAD),
    "receive from a region": lambda t: t.sqs(ABROAD).receive_message(QueueUrl=f"{t.cloud.url}/{ACCOUNT}/airbridge-dev-{ABROAD}-default"),
    "purge a site's queue": lambda t: t.sqs(ABROAD).purge_queue(QueueUrl=t.cloud.queue("factory-7-default")),
    "write beside a site's logs": lambda t: t.s3(ABROAD).put_object(Bucket=bucket(FACTORY, "logs"), Key="data/x", Body=b""),
    "read a region's logs": lambda t: t.s3(ABROAD).get_object(Bucket=bucket(ABROAD, "logs"), Key="logs/a"),
    "delete a site's code": lambda t: t.s3(ABROAD).delete_object(Bucket=bucket(FACTORY, "bundles"), Key="bundles/main/x"),
    "open a site's bucket": lambda t: t.s3(ABROAD).put_bucket_policy(Bucket=bucket(FACTORY, "logs"), Policy="{}"),
    "assume a worker's role": lambda t: t.assume(f"{HOME}-default-worker"),
    "assume the scheduler's role": lambda t: t.assume("scheduler"),
}  # fmt: skip
OTHERS: dict[str, tuple[str, Attempt]] = {
    "the scheduler receives": ("scheduler", lambda t: t.receive("factory-7-default", ABROAD)),
    "the scheduler assumes a site's role": ("scheduler", lambda t: t.assume("site-depot-3-default")),
    "the api-server sends": ("api-server", lambda t: t.sqs(ABROAD).send_message(QueueUrl=t.cloud.queue("factory-7-default"), MessageBody="x")),
    "the api-server writes logs": ("api-server", lambda t: t.s3(ABROAD).put_object(Bucket=bucket(FACTORY, "logs"), Key="logs/x", Body=b"")),
}  # fmt: skip


def denied(attempt: Attempt, tried: Tried) -> None:
    with pytest.raises(ClientError) as refused:
        attempt(tried)
    assert refused.value.response["Error"]["Code"] in DENIED


@pytest.mark.parametrize("what", WORKER)
def test_worker_is_denied(cloud: Cloud, keys: AwsCredentials, what: str) -> None:
    """Credentials of a brokered site's worker are refused every other call."""
    denied(WORKER[what], Tried(cloud, keys))


@pytest.mark.parametrize("what", GATEWAY)
def test_gateway_is_denied(cloud: Cloud, what: str) -> None:
    """What the gateway does for sites gives it nothing beside that."""
    denied(GATEWAY[what], Tried(cloud, cloud.keys["gateway"]))


@pytest.mark.parametrize("what", OTHERS)
def test_other_service_is_denied(cloud: Cloud, what: str) -> None:
    """Other services of the control plane do with a site's resources what they do with a region's, and no more."""
    role, attempt = OTHERS[what]
    denied(attempt, Tried(cloud, cloud.keys[role]))


def test_role_alone_is_as_narrow(cloud: Cloud, world: World) -> None:
    """Without the gateway's session policy a site's role still has no rights beyond its own pool's: two limits hold, not one."""
    given = cloud.client("sts", HOME, cloud.keys["gateway"]).assume_role(
        RoleArn=f"arn:aws:iam::{ACCOUNT}:role/{BASE}-depot-3-default", RoleSessionName="wide"
    )["Credentials"]
    wide = AwsCredentials(
        access_key_id=given["AccessKeyId"],
        secret_access_key=given["SecretAccessKey"],
        session_token=given["SessionToken"],
        expires_in=900,
        expires_at=given["Expiration"],
    )
    for attempt in WORKER.values():
        denied(attempt, Tried(cloud, wide))
