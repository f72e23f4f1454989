"""The small commands: the catalogue, migrations, secrets, the scanner's verdict, IAM's decision."""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import boto3
import pytest
from moto import mock_aws
from tests.infra.conftest import ENVIRONMENTS

from airbridge.infra import catalogue, service_secrets
from airbridge.infra import environment as environments
from airbridge.infra.constructs.iam.policy import Statement
from airbridge.infra.emulator.policies import Decision, Request, decide
from airbridge.infra.exceptions import CatalogueError, CommandFailedError, InfraError, PolicyError
from airbridge.infra.tools import local, migrate, scan, secrets, validate

EDGE = {
    "region_name": "eu-west-1",
    "log_bucket": "logs",
    "bundle_bucket": "bundles",
    "dead_letter_queue_url": "http://dead",
    "queue_urls": {"gpu": "http://gpu", "default": "http://default"},
    "slots": {"gpu": 1, "default": 4},
    "worker_role_arns": {"gpu": "arn:aws:iam::1:role/gpu", "default": "arn:aws:iam::1:role/default"},
    "data": ["s3://data/ü"],
}


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {"value": value, "type": "string"}])
def test_catalogue_is_complete_toml(wrap: Any) -> None:
    """The catalogue is the same from cdktf's outputs file and from `terraform output -json`."""
    outputs = {
        "control-plane": {"home_region": wrap("us-east-1")},
        "edge-eu-west-1": {key: wrap(value) for key, value in EDGE.items()},
    }
    read = tomllib.loads(catalogue.from_outputs(outputs, "http://127.0.0.1:5600"))
    pools = [
        {
            "name": "default",
            "queue_url": "http://default",
            "slots": 4,
            "role_arn": "arn:aws:iam::1:role/default",
        },
        {"name": "gpu", "queue_url": "http://gpu", "slots": 1, "role_arn": "arn:aws:iam::1:role/gpu"},
    ]
    region = {key: EDGE[key] for key in ("log_bucket", "bundle_bucket", "dead_letter_queue_url", "data")}
    region |= {"name": "eu-west-1", "endpoint_url": "http://127.0.0.1:5600", "pool": pools}
    assert read == {"home_region": "us-east-1", "region": [region]}


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        ({}, "deploy the control plane first"),
        ({"control-plane": {"home_region": "r"}}, "there is no edge stack"),
        ({"control-plane": {"home_region": "r"}, "edge-a": {"region_name": "a"}}, "edge-a: there is no output 'log_bucket'"),
    ],
)  # fmt: skip
def test_missing_outputs_are_named(outputs: dict[str, Any], message: str) -> None:
    """The error names the stack to deploy."""
    with pytest.raises(CatalogueError, match=message):
        catalogue.from_outputs(outputs)


class Ecs:
    """ECS as the migration sees it: a task that stops at the second look."""

    def __init__(self, exit_code: int | None = 0, *, starts: bool = True, stops: bool = True) -> None:
        self.looks, self._exit_code, self._starts, self._stops = 0, exit_code, starts, stops

    def run_task(self, **_: Any) -> dict[str, Any]:
        return {"tasks": [{"taskArn": "arn:task"}] if self._starts else [], "failures": ["RESOURCE:CPU"]}

    def describe_tasks(self, **_: Any) -> dict[str, Any]:
        self.looks += 1
        status = "STOPPED" if self._stops and self.looks > 1 else "RUNNING"
        return {"tasks": [{"lastStatus": status, "containers": [{"name": "m", "exitCode": self._exit_code}]}]}


TASK = migrate.MigrationTask("cluster", "definition", ["subnet"], "group")


def test_a_migration_is_waited_for() -> None:
    """The migration is waited for until its task has stopped; an exit code alone does not count."""
    waits: list[float] = []
    assert migrate.run(Ecs(), TASK, sleep=waits.append, clock=lambda: 0.0) == "arn:task"
    assert waits == [migrate.POLL_SECONDS]


def test_a_migration_can_be_run_again_by_the_name_of_its_environment(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Its network is the scheduler's; without a name, the options that are missing are named."""
    network = {"subnets": ["s"], "securityGroups": ["g"], "assignPublicIp": "DISABLED"}
    ecs = Mock()
    ecs.describe_services.return_value = {
        "services": [{"networkConfiguration": {"awsvpcConfiguration": network}}]
    }
    task = migrate.deployed(ecs, "airbridge-dev")
    assert task == migrate.MigrationTask("airbridge-dev", "airbridge-dev-migrate", ["s"], "g")
    ecs.describe_services.return_value = {"services": []}
    with pytest.raises(
        CommandFailedError, match="no service airbridge-dev-scheduler; deploy control-plane first"
    ):
        migrate.deployed(ecs, "airbridge-dev")
    with pytest.raises(SystemExit):
        migrate.main(["--region", "eu-west-1"])
    assert (
        "--cluster, --task-definition, --subnets, --security-group: required without --environment"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("ecs", "message"),
    [
        (Ecs(1), "the migration failed"),
        (Ecs(None), "the migration failed"),
        (Ecs(starts=False), "did not start the migration"),
        (Ecs(stops=False), "still runs after"),
    ],
)
def test_failed_migration_stops_deploy(ecs: Ecs, message: str) -> None:
    """A deploy stops if the migration has a wrong exit code or none, does not start, or does not end."""
    times = iter(range(0, 10**6, 1000))
    with pytest.raises(CommandFailedError, match=message):
        migrate.run(ecs, TASK, sleep=lambda _: None, clock=lambda: float(next(times)))


class Manager:
    """Secrets Manager with one secret that has a value."""

    def __init__(self) -> None:
        self.values = {"p/ca-key": "kept"}

    def describe_secret(self, SecretId: str) -> dict[str, Any]:  # noqa: N803  # AWS's spelling
        return {"VersionIdsToStages": {"1": ["AWSCURRENT"]}} if SecretId in self.values else {}

    def put_secret_value(self, SecretId: str, SecretString: str) -> None:  # noqa: N803
        self.values[SecretId] = SecretString


def test_output_goes_to_a_file(tmp_path: Path) -> None:
    """What a deployment prints is kept in a file; the error of a failed command has its end, and names the file."""
    file = tmp_path / "infra-local.log"
    run = local.logged(file)
    run(["sh", "-c", "echo planned; echo warned >&2"], {})
    assert "planned\nwarned\n" == file.read_text()
    with pytest.raises(CommandFailedError) as failed:
        run(["sh", "-c", "echo refused: no such thing; exit 3"], {})
    assert "exit code 3" in str(failed.value)
    assert str(file) in str(failed.value)
    assert str(failed.value).endswith("refused: no such thing\n")


def test_existing_secret_keeps_value(tmp_path: Path) -> None:
    """Filling twice changes nothing."""
    for name in (
        "ca.crt",
        "ca.key",
        "signing.key",
        "signing.pub.json",
        "token.key",
        "publish.key",
        "publish.pub.json",
    ):
        (tmp_path / name).write_text(name)
    manager = Manager()
    assert len(secrets.fill(manager, "p", secrets.read_values(tmp_path))) == 15
    assert manager.values["p/ca-key"] == "kept"
    assert secrets.fill(manager, "p", secrets.read_values(tmp_path)) == []


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An account without anything in it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        yield


def run_secrets(*words: str) -> int:
    return secrets.main([words[0], "--environment", "local", "--environments", str(ENVIRONMENTS), *words[1:]])


def test_each_step_names_the_stack_before_it(
    cloud: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Filling needs the foundation, publishing a filled secret and the region's bucket; each error names what to deploy."""
    for file in secrets.FILES.values():
        (tmp_path / file).write_text(file)
    fill = ("fill", "--directory", str(tmp_path))
    assert (1, 1) == (run_secrets(*fill), run_secrets("publish"))
    errors = capsys.readouterr().err
    assert "there is no secret airbridge-local/api-secret-key; deploy foundation first" in errors
    assert "airbridge-local/ca-certificate has no value; deploy foundation and run `fill` first" in errors
    manager = boto3.client("secretsmanager", region_name="us-east-1")
    for name in service_secrets.described(client_secret=False):
        manager.create_secret(Name=f"airbridge-local/{name}")
    assert (0, 1) == (run_secrets(*fill), run_secrets("publish"))
    assert "there is no bucket airbridge-local-us-east-1-bundles-" in capsys.readouterr().err
    assert 1 == run_secrets("publish", "--region", "mars-1")
    assert "no region mars-1; there are us-east-1, eu-west-1" in capsys.readouterr().err


def test_certificate_reaches_each_region(cloud: None) -> None:
    """The certificate is read from its secret and put into the bucket of each region, or of the named ones."""
    environment = environments.load(ENVIRONMENTS / "local.toml")
    boto3.client("secretsmanager", region_name="us-east-1").create_secret(
        Name="airbridge-local/ca-certificate", SecretString="the CA"
    )
    clients = {name: boto3.client("s3", region_name=name) for name in ("us-east-1", "eu-west-1")}
    buckets = {name: environment.names.bundle_bucket(name) for name in clients}
    clients["us-east-1"].create_bucket(Bucket=buckets["us-east-1"])
    clients["eu-west-1"].create_bucket(
        Bucket=buckets["eu-west-1"], CreateBucketConfiguration={"LocationConstraint": "eu-west-1"}
    )
    assert 0 == run_secrets("publish", "--region", "eu-west-1")
    found = clients["eu-west-1"].get_object(Bucket=buckets["eu-west-1"], Key="trust/ca.crt")
    assert b"the CA" == found["Body"].read()
    assert not clients["us-east-1"].list_objects_v2(Bucket=buckets["us-east-1"]).get("Contents")
    assert 0 == run_secrets("publish")
    assert clients["us-east-1"].list_objects_v2(Bucket=buckets["us-east-1"])["Contents"]


def test_a_missing_key_file_is_named(tmp_path: Path) -> None:
    """The error names the command that creates the file."""
    with pytest.raises(InfraError, match=r"ca\.crt: .*`airbridge init`"):
        secrets.read_values(tmp_path)


def test_findings_match_acceptances() -> None:
    """A finding without an acceptance fails, and so does an acceptance without a finding."""
    found, stale = scan.ScanFinding("s", "r", "CKV_1", "name"), scan.ScanFinding("s", "r", "CKV_2")
    verdict = scan.judge(5, [found], {stale: "a reason"})
    assert (verdict.clean, [*verdict.unaccepted], [*verdict.unneeded]) == (False, [found], [stale])
    assert scan.judge(5, [found], {scan.ScanFinding("s", "r", "CKV_1"): "a reason"}).clean


@pytest.mark.parametrize(
    ("actions", "resources", "message"),
    [(("s3:*",), ("arn:x",), "is a wildcard"), (("s3:GetObject",), ("*",), "the resource is")],
)
def test_a_broad_statement_is_refused(
    actions: tuple[str, ...], resources: tuple[str, ...], message: str
) -> None:
    """A wildcard action is always refused; a wildcard resource unless the statement has a reason why AWS forces it."""
    with pytest.raises(PolicyError, match=message):
        Statement(sid="Broad", actions=actions, resources=resources)


def _policy(effect: str, **more: Any) -> dict[str, Any]:
    return {
        "Statement": [
            {"Effect": effect, "Action": "sqs:SendMessage", "Resource": "arn:aws:sqs:*:1:q-*", **more}
        ]
    }


SEND = Request("arn:aws:iam::1:role/r", "sqs:SendMessage", "arn:aws:sqs:eu:1:q-a", {"aws:PrincipalArn": "arn:aws:iam::1:role/r"})  # fmt: skip
OTHERS = {
    "Principal": {"AWS": "*"},
    "Condition": {"ArnNotEquals": {"aws:PrincipalArn": "arn:aws:iam::1:role/sender"}},
}


@pytest.mark.parametrize(
    ("identity", "resource", "expected"),
    [
        ([], [], Decision.NOTHING),
        ([_policy("Allow")], [], Decision.ALLOWED),
        ([_policy("Allow"), _policy("Deny")], [], Decision.DENIED),
        ([_policy("Allow")], [_policy("Deny", **OTHERS)], Decision.DENIED),
        ([_policy("Allow", Resource="arn:aws:sqs:eu:1:other")], [], Decision.NOTHING),
        ([_policy("Allow", Condition={"Bool": {"aws:SecureTransport": "true"}})], [], Decision.NOTHING),
    ],
)
def test_iam_decides_as_it_is_documented(
    identity: list[Any], resource: list[Any], expected: Decision
) -> None:
    """An explicit denial wins, also one of the resource's policy; a missing condition key does not match."""
    assert decide(SEND, identity, resource) is expected


def test_synthesised_stack_names_acceptances() -> None:
    """Acceptances are read from the comment that travels with the resource."""
    stack = json.loads(
        '{"resource": {"aws_s3_bucket": {"b": {"//": {"checkov": {"CKV_AWS_18": "because"}}}}}}'
    )
    assert dict(scan.acceptances("s", stack)) == {
        scan.ScanFinding("s", "aws_s3_bucket.b", "CKV_AWS_18"): "because"
    }


@pytest.mark.skipif(shutil.which("terraform") is None, reason="there is no terraform on PATH")
def test_validation_names_what_terraform_finds_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A reference to nothing, with the stack that has it; sound stacks beside it, also of the same name, are counted."""
    for name, value in (
        ("one/stacks/same", "x"),
        ("two/stacks/same", "x"),
        ("two/stacks/broken", "${local.nothing}"),
    ):
        stack = tmp_path / name
        stack.mkdir(parents=True)
        (stack / "cdk.tf.json").write_text(json.dumps({"output": {"it": {"value": value}}}))
    assert validate.main([str(tmp_path / "one"), str(tmp_path / "two")]) == 1
    told = capsys.readouterr().out
    assert "two/stacks/broken: error:" in told
    assert "nothing" in told
    assert told.endswith("2 of 3 stacks are valid\n")


def test_validation_of_nothing_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An environment that was not synthesised cannot be validated."""
    assert validate.main([str(tmp_path)]) == 1
    assert "run make synth first" in capsys.readouterr().err
