"""Preflight: an account in which nothing is in the way, and faults planted in it one at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from moto import mock_aws
from tests.infra.factories import auth, environment, pool, region

from airbridge.infra import aws_facts, service_secrets
from airbridge.infra import environment as environments
from airbridge.infra.emulator import fixes
from airbridge.infra.emulator.fixes import rds, service_quotas
from airbridge.infra.environment import Environment
from airbridge.infra.preflight import cli, identity, run
from airbridge.infra.preflight.finding import Account, Finding, Outcome

HOME, OTHER = "eu-west-1", "us-west-2"
IMAGES = ("control-plane", "edge-worker")
#: Checks of what this environment does not have; see test_preflight_given.py.
BROUGHT = {"given network", "site"}
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
        "layers": [{"digest": f"sha256:{32 * 'ef'}"}],
    }
)


def client(service: str, where: str) -> Any:
    return boto3.client(service, region_name=where)


def certificate(host: str, ends: datetime) -> str:
    """A certificate that was imported into the home region; its ARN."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(tz=UTC) - timedelta(days=30))
        .not_valid_after(ends)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    answer = client("acm", HOME).import_certificate(
        Certificate=made.public_bytes(serialization.Encoding.PEM), PrivateKey=pem
    )
    return str(answer["CertificateArn"])


@dataclass
class Ready:
    """An account that is ready for `written`; `changes` are made to that before it is looked at."""

    written: dict[str, Any]
    resolves: Callable[[str], bool] = lambda _host: True
    now: Callable[[], datetime] = lambda: datetime.now(tz=UTC)
    calls: list[tuple[str, str]] = field(default_factory=list)

    @property
    def environment(self) -> Environment:
        return environments.parse(self.written, "test.toml")

    def look(self) -> list[Finding]:
        def counted(service: str, where: str) -> Any:
            self.calls.append((service, where))
            return client(service, where)

        return run.look(Account(self.environment, counted, self.resolves, self.now))

    def faults(self) -> list[Finding]:
        return [finding for finding in self.look() if finding.outcome is not Outcome.OK]


@pytest.fixture(scope="module", autouse=True)
def _fixed() -> None:
    fixes.apply(("rds", "service_quotas"))


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ready]:
    """Two regions, in one of them a second pool; everything that people prepare is there."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        for service in identity.LINKED_ROLES:
            client("iam", HOME).create_service_linked_role(AWSServiceName=service)
        for where in (HOME, OTHER):
            for image in IMAGES:
                name = f"airbridge-test/{image}"
                client("ecr", where).create_repository(repositoryName=name)
                pushed = client("ecr", where).put_image(
                    repositoryName=name, imageManifest=MANIFEST, imageTag="1"
                )
                digest = pushed["image"]["imageId"]["imageDigest"]
        for name in service_secrets.described(client_secret=False):
            client("secretsmanager", HOME).create_secret(Name=f"airbridge-test/{name}", SecretString="x")
        plane = environment()["control_plane"]
        plane["certificate_arn"] = certificate("airflow.test", datetime.now(tz=UTC) + timedelta(days=90))
        plane["operator_cidrs"] = ["10.250.0.0/24"]
        written = environment(
            control_plane=plane,
            images={
                name: f"{image}@{digest}"
                for name, image in zip(("control_plane", "worker"), IMAGES, strict=True)
            },
            region=[
                region(HOME, "10.1.0.0/20"),
                region(OTHER, "10.2.0.0/20", pool=[pool(), pool("big", instance_types=["m7i.xlarge"])]),
            ],
        )
        yield Ready(written)


def test_prepared_account_is_ready(account: Ready) -> None:
    """Every check is made, in both regions, and nothing is in the way."""
    found = account.look()
    assert (
        run.as_text([finding for finding in found if finding.outcome is not Outcome.OK])
        == "preflight: 0 checks: 0 failed"
    )
    assert {name for name, _ in run.CHECKS} - BROUGHT == {finding.check for finding in found}
    assert {where for _, where in account.calls} == {HOME, OTHER}
    assert run.as_text(found).endswith(f"preflight: {len(found)} checks: {len(found)} ok, 0 failed")
    assert not run.blocked(found)


def remove_linked_role(service: str) -> None:
    [role] = client("iam", HOME).list_roles(PathPrefix=f"/aws-service-role/{service}/")["Roles"]
    client("iam", HOME).delete_role(RoleName=role["RoleName"])


def in_other_account(account: Ready, _patch: pytest.MonkeyPatch) -> None:
    account.written["account"] = "210987654321"


def not_opted_in(account: Ready, _patch: pytest.MonkeyPatch) -> None:
    account.written["region"].append(region("ap-east-1", "10.3.0.0/20"))


def without_linked_role(_account: Ready, _patch: pytest.MonkeyPatch) -> None:
    remove_linked_role("spot.amazonaws.com")


def few_spot_cpus(_account: Ready, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(service_quotas.QUOTAS, ("ec2", "L-34B43A08"), 16.0)


def few_addresses(_account: Ready, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(service_quotas.QUOTAS, ("ec2", "L-0263D0A3"), 2.0)


def few_vpcs(_account: Ready, _patch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        client("ec2", OTHER).create_vpc(CidrBlock=f"172.{20 + number}.0.0/16")


def without_zone(account: Ready, _patch: pytest.MonkeyPatch) -> None:
    account.written["region"][1]["zones"] = ["az1", "az9"]


def not_offered(account: Ready, _patch: pytest.MonkeyPatch) -> None:
    account.written["region"][0]["pool"][0]["instance_types"] = ["m99g.large"]


def withdrawn_ami(_account: Ready, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        aws_facts, "ecs_ami_parameter", lambda *_, **__: "/aws/service/ecs/optimized-ami/gone/image_id"
    )


def retired_engine(_account: Ready, patch: pytest.MonkeyPatch) -> None:
    patch.setitem(rds.ENGINE_VERSIONS, "postgres", ("18.1",))


def expired_certificate(account: Ready, _patch: pytest.MonkeyPatch) -> None:
    account.now = lambda: datetime.now(tz=UTC) + timedelta(days=91)


def other_name(account: Ready, _patch: pytest.MonkeyPatch) -> None:
    account.written["control_plane"]["auth"] = auth(url="https://other.test")


def other_region(account: Ready, _patch: pytest.MonkeyPatch) -> None:
    arn = "arn:aws:acm:us-east-1:123456789012:certificate/0"
    account.written["control_plane"]["certificate_arn"] = arn


def no_certificate(account: Ready, _patch: pytest.MonkeyPatch) -> None:
    arn = f"arn:aws:acm:{HOME}:123456789012:certificate/6f3c9a52-0000-4000-8000-000000000001"
    account.written["control_plane"]["certificate_arn"] = arn


def no_issuer(account: Ready, _patch: pytest.MonkeyPatch) -> None:
    account.resolves = lambda host: host != "login.test"


def another_digest(account: Ready, _patch: pytest.MonkeyPatch) -> None:
    account.written["images"]["worker"] = f"edge-worker@sha256:{32 * 'ab'}"


def not_in_the_other_region(_account: Ready, _patch: pytest.MonkeyPatch) -> None:
    client("ecr", OTHER).delete_repository(repositoryName="airbridge-test/edge-worker", force=True)
    client("ecr", OTHER).create_repository(repositoryName="airbridge-test/edge-worker")


def empty_secret(_account: Ready, _patch: pytest.MonkeyPatch) -> None:
    manager = client("secretsmanager", HOME)
    manager.delete_secret(SecretId="airbridge-test/fernet-key", ForceDeleteWithoutRecovery=True)
    manager.create_secret(Name="airbridge-test/fernet-key")


def taken_range(_account: Ready, _patch: pytest.MonkeyPatch) -> None:
    client("ec2", OTHER).create_vpc(CidrBlock="10.2.0.0/16")


def operators_within(account: Ready, _patch: pytest.MonkeyPatch) -> None:
    account.written["control_plane"]["operator_cidrs"] = ["10.0.0.0/8"]


FAULTS: dict[str, tuple[Callable[[Ready, pytest.MonkeyPatch], None], str, str]] = {
    "another account": (in_other_account, "credentials: 210987654321: they are of the account 123456789012", "use credentials of 210987654321"),
    "a region that is not enabled": (not_opted_in, "region: ap-east-1: is not-opted-in", "aws account enable-region --region-name ap-east-1"),
    "no service-linked role": (without_linked_role, "service-linked role: spot.amazonaws.com: has none", "create-service-linked-role --aws-service-name spot.amazonaws.com"),
    "too few vCPUs": (few_spot_cpus, f"quota: {OTHER}: vCPUs of Spot instances (L-34B43A08): 24 needed, 0 used by others, 16 allowed", "--quota-code L-34B43A08 --desired-value 24"),
    "too few addresses": (few_addresses, f"quota: {HOME}: Elastic IP addresses: 3 needed", "--quota-code L-0263D0A3"),
    "too few VPCs": (few_vpcs, f"quota: {OTHER}: VPCs: 1 needed, 5 used by others, 5 allowed", "--desired-value 6"),
    "no such zone": (without_zone, f"zone: region {OTHER}: this account has no usw2-az9", "set `zones` to some of usw2-az1"),
    "an instance type that is not offered": (not_offered, f"instance type: {HOME} pool default: no zone of euw1-az1, euw1-az2, euw1-az3 offers m99g.large", "take it out of `instance_types`"),
    "no AMI": (withdrawn_ami, f"AMI: {HOME}: there is no parameter /aws/service/ecs/optimized-ami/gone/image_id", "ECS_AMI_RELEASES"),
    "a retired engine": (retired_engine, f"database engine: {HOME}: RDS offers no PostgreSQL 16; there are 18.1", "change POSTGRES"),
    "an expired certificate": (expired_certificate, "expired at", "renew it"),
    "a certificate of another name": (other_name, "is for airflow.test, and the UI is other.test", "correct control_plane.auth.url"),
    "a certificate of another region": (other_region, f"is in us-east-1, and the UI's balancer is in {HOME}", f"acm request-certificate --region {HOME}"),
    "no certificate": (no_certificate, "there is none", "set control_plane.certificate_arn"),
    "an issuer without an address": (no_issuer, "DNS: login.test: the issuer of sign-ins has no address", "control_plane.auth.issuer"),
    "another digest": (another_digest, f"image: {HOME} airbridge-test/edge-worker@sha256:abababababab…: the repository has no such digest", "airbridge-ci publish"),
    "an image that was not copied": (not_in_the_other_region, f"image: {OTHER} airbridge-test/edge-worker", "airbridge-ci copy test test"),
    "an empty secret": (empty_secret, "secret: airbridge-test/fernet-key: has no value", "tools.secrets fill"),
    "a range that others use": (taken_range, f"address range: region {OTHER} 10.2.0.0/20: overlaps vpc-", "choose another cidr"),
    "operators in the VPC's range": (operators_within, "address range: operator_cidrs 10.0.0.0/8: overlaps control_plane.cidr 10.0.0.0/20", "choose another cidr"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_named(account: Ready, monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    """Each fault blocks, names what is wrong and what to do; nothing else is found."""
    plant, says, remedy = FAULTS[fault]
    plant(account, monkeypatch)
    faults = account.faults()
    assert run.blocked(faults)
    text = run.as_text(faults)
    assert says in text
    assert remedy in text
    failed = {finding.check for finding in faults if finding.outcome is not Outcome.LATER}
    assert failed == {faults[0].check}


def test_empty_account_says_what_comes_later(account: Ready) -> None:
    """Before `foundation` there are neither repositories nor secrets: that is named, and blocks nothing."""
    for where in (HOME, OTHER):
        for image in IMAGES:
            client("ecr", where).delete_repository(repositoryName=f"airbridge-test/{image}", force=True)
    for name in service_secrets.described(client_secret=False):
        client("secretsmanager", HOME).delete_secret(
            SecretId=f"airbridge-test/{name}", ForceDeleteWithoutRecovery=True
        )
    account.resolves = lambda host: host == "login.test"
    faults = account.faults()
    assert {finding.outcome for finding in faults} == {Outcome.LATER}
    assert {finding.check for finding in faults} == {"DNS", "image", "secret"}
    assert not run.blocked(faults)
    assert all(finding.remedy for finding in faults)


def test_unreadable_check_blocks(account: Ready) -> None:
    """A call that AWS refuses is no clean bill: the others are made, and the report says which was not."""
    findings = run.look(Account(account.environment, _without_rds, account.resolves, account.now))
    [unknown] = [finding for finding in findings if finding.outcome is Outcome.UNKNOWN]
    assert unknown.check == "database engine"
    assert "AccessDenied" in unknown.detail
    assert run.blocked(findings)
    assert {name for name, _ in run.CHECKS} - BROUGHT == {finding.check for finding in findings}


def _without_rds(service: str, where: str) -> Any:
    made = client(service, where)
    if service == "rds":

        def refuse(**_: Any) -> None:
            from botocore.exceptions import ClientError

            raise ClientError(
                {"Error": {"Code": "AccessDenied", "Message": "not you"}}, "DescribeDBEngineVersions"
            )

        made.meta.events.register("before-call.rds", refuse)
    return made


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ((HOME,), {HOME: "6 needed", OTHER: None}),
        ((OTHER,), {HOME: "3 needed", OTHER: "3 needed"}),
        ((), {HOME: "3 needed", OTHER: None}),
    ],
)
def test_nat_gateways_of_regions_need_addresses(
    account: Ready, places: tuple[str, ...], expected: dict[str, str | None]
) -> None:
    """Each zone of a network with NAT needs an Elastic IP address: the control plane's and those of regions with `via = "nat"`."""
    for each in account.written["region"]:
        if each["name"] in places:
            each["egress"] = [{"name": "web", "cidr": "0.0.0.0/0", "ports": [443], "via": "nat"}]
    found = {one.subject: one.detail for one in account.look() if "Elastic IP" in one.detail}
    assert expected == {
        where: found[where].split(": ")[1].split(",")[0] if where in found else None
        for where in (HOME, OTHER)
    }


def test_begun_deployment_does_not_count_twice(account: Ready) -> None:
    """Addresses and VPCs with the environment's tag are its own, also without a name; those of an environment whose name begins alike are not."""
    ec2 = client("ec2", HOME)
    own = [{"Key": "airbridge:environment", "Value": "test"}]
    other = [
        {"Key": "airbridge:environment", "Value": "test2"},
        {"Key": "Name", "Value": "airbridge-test2-control-plane"},
    ]
    for tags in (own, own, own, other):
        made = ec2.allocate_address(Domain="vpc")["AllocationId"]
        ec2.create_tags(Resources=[made], Tags=tags)
    for cidr, tags in (("10.0.0.0/20", own), ("10.200.0.0/20", other)):
        vpc = ec2.create_vpc(CidrBlock=cidr)["Vpc"]["VpcId"]
        ec2.create_tags(Resources=[vpc], Tags=tags)
    details = [one.detail for one in account.look() if one.check == "quota" and one.subject == HOME]
    assert "Elastic IP addresses: 3 needed, 1 used by others, 20 allowed" in details
    assert "VPCs: 2 needed, 2 used by others, 5 allowed" in details
    assert not [one for one in account.faults() if one.check == "address range"]


def test_derived_images_are_looked_for(account: Ready) -> None:
    """The image that a pool names is wanted at home, where it is pushed, and in the pool's region."""
    digest = f"sha256:{32 * 'cd'}"
    account.written["images"]["derived"] = {"tools": f"tools@{digest}"}
    account.written["region"][1]["pool"][1]["image"] = "tools"
    subjects = [finding.subject for finding in account.faults()]
    assert subjects == [f"{where} airbridge-test/tools@{digest[:19]}…" for where in (HOME, OTHER)]


def test_command_reports_and_exits(
    account: Ready, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Text or JSON on standard output; 0, 1 if something is in the way, 2 for a wrong file."""
    monkeypatch.setattr(cli, "_resolves", lambda _host: True)
    monkeypatch.setattr(
        environments, "load", lambda path: account.environment if path.stem == "test" else _refuse(path)
    )
    arguments = ["preflight", "test", "--environments", str(tmp_path)]
    assert cli.main(arguments) == 0
    assert "0 failed" in capsys.readouterr().out
    remove_linked_role("rds.amazonaws.com")
    assert cli.main([*arguments, "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["blocked"] is True
    assert [one["subject"] for one in report["findings"] if one["outcome"] == "failed"] == [
        "rds.amazonaws.com"
    ]
    assert cli.main(["preflight", "mars", "--environments", str(tmp_path)]) == 2
    assert "mars.toml" in capsys.readouterr().err


def _refuse(path: Path) -> Environment:
    raise environments.EnvironmentFileError(f"{path}: no such environment")
