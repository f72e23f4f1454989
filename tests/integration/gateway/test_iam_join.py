"""Joining as an AWS role, against moto's STS with its signatures and permissions enforced."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from tests.integration.gateway.world import VERSIONS, Worker, World, csr_pem, running
from tests.support import moto as motos
from tests.support.airflow_home import pointed_at
from tests.support.moto import Moto
from tests.support.postgres import Postgres

from airbridge.control_plane.identity.iam import BODY
from airbridge.core.catalogue import Catalogue
from airbridge.core.protocol import JoinByAwsIam
from airbridge.edge_worker.gateway_client.join import AUDIENCE_HEADER, CSR_HEADER, AwsIamJoin

REGION = "eu-west-1"
ALLOW = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}]}
TRUST = {
    "Version": "2012-10-17",
    "Statement": [{"Effect": "Allow", "Principal": {"AWS": "*"}, "Action": "sts:AssumeRole"}],
}


@dataclass(frozen=True)
class Cloud:
    """An AWS account: a role that the pool's hosts have, and one that they do not."""

    url: str
    edge: Credentials
    other: Credentials
    user: Credentials


@pytest.fixture(scope="module")
def cloud() -> Iterator[Cloud]:
    """moto, in which a wrong signature is refused from here on."""
    with pytest.MonkeyPatch.context() as environment:
        # As many actions are free; `reset-auth` ends that.
        environment.setenv("INITIAL_NO_AUTH_ACTION_COUNT", "1000")
        yield from _cloud()


def _cloud() -> Iterator[Cloud]:
    with motos.serve() as moto:
        iam = moto.client("iam")
        found = {name: _role(moto, iam, name) for name in ("edge-eu", "other")}
        iam.create_user(UserName="ann")
        iam.put_user_policy(UserName="ann", PolicyName="all", PolicyDocument=json.dumps(ALLOW))
        key = iam.create_access_key(UserName="ann")["AccessKey"]
        strict = urllib.request.Request(
            f"{moto.url}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}
        )
        urllib.request.urlopen(strict).close()
        user = Credentials(key["AccessKeyId"], key["SecretAccessKey"])
        yield Cloud(moto.url, found["edge-eu"], found["other"], user)


def _role(moto: Moto, iam: Any, name: str) -> Credentials:
    role = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps(TRUST))["Role"]
    iam.put_role_policy(RoleName=name, PolicyName="all", PolicyDocument=json.dumps(ALLOW))
    got = moto.client("sts", REGION).assume_role(RoleArn=role["Arn"], RoleSessionName="i-0abc")["Credentials"]
    return Credentials(got["AccessKeyId"], got["SecretAccessKey"], got["SessionToken"])


@pytest.fixture(scope="module")
def world(
    cloud: Cloud, postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[World]:
    """A gateway whose catalogue gives one pool a role, and whose AWS is moto."""
    catalogue = Catalogue.parse(
        f"""
        home_region = "{REGION}"
        [[region]]
        name = "{REGION}"
        log_bucket = "logs"
        bundle_bucket = "dags"
        endpoint_url = "{cloud.url}"
        [[region.pool]]
        queue_url = "{cloud.url}/eu"
        role_arn = "arn:aws:iam::123456789012:role/edge-eu"
        [[region.pool]]
        name = "plain"
        queue_url = "{cloud.url}/plain"
        """
    )
    name = postgres.create(postgres_template)
    with (
        pointed_at(postgres.url(name)) as metadata,
        running(metadata, tmp_path_factory.mktemp("gateway"), catalogue) as it,
    ):
        yield it
    postgres.drop(name)


def signed(
    cloud: Cloud,
    worker: Worker,
    who: Credentials,
    *,
    audience: str = "127.0.0.1",
    url: str | None = None,
    body: str = BODY,
    region: str = REGION,
    age: timedelta = timedelta(0),
    csr: str | None = None,
    unsigned: tuple[str, ...] = (),
) -> dict[str, Any]:
    """A join request, as the worker makes it, with what an attacker might do to it."""
    url = url or f"{cloud.url}/"
    asked = csr or csr_pem(worker.key)
    bound = {AUDIENCE_HEADER: audience, CSR_HEADER: hashlib.sha256(asked.encode()).hexdigest()}
    headers = {name: value for name, value in bound.items() if name not in unsigned}
    request = AWSRequest(method="POST", url=url, data=body, headers=headers)
    request.headers["Content-Type"] = "application/x-www-form-urlencoded; charset=utf-8"
    _AgedAuth(who, region, age).add_auth(request)
    sent = {name: str(value) for name, value in request.headers.items()} | bound
    sent.setdefault("Host", url.split("/")[2])
    join = JoinByAwsIam(url=url, headers=sent, body=body)
    return {
        "region": worker.name.region,
        "pool": worker.name.pool,
        "worker": worker.name.worker,
        "csr_pem": asked,
        "join": join.model_dump(),
        "versions": VERSIONS.model_dump(),
    }


class _AgedAuth(SigV4Auth):
    """Signs with a clock that is wrong by `age`."""

    def __init__(self, who: Credentials, region: str, age: timedelta) -> None:
        super().__init__(who.get_frozen_credentials(), "sts", region)
        self._age = age

    def add_auth(self, request: Any) -> None:
        at = datetime.now(UTC) - self._age
        request.context["timestamp"] = at.strftime("%Y%m%dT%H%M%SZ")
        # What botocore's `add_auth` does, with another time.
        self._modify_request_before_signing(request)
        text = self.canonical_request(request)
        self._inject_signature_to_request(
            request, self.signature(self.string_to_sign(request, text), request)
        )


def new_worker(world: World, pool: str = "default") -> Worker:
    # Ends with the instance id of the role session, as the gateway requires.
    return Worker(world, REGION, pool, f"host-{next(world.number)}-i-0abc")


def refused(world: World, worker: Worker, body: dict[str, Any]) -> str:
    """Return the reason of a refused join, and check that it is audited and that no worker is enrolled."""
    response = worker.post("enrol", body)
    assert response.status_code == 403, response.text
    detail: str = response.json()["detail"]
    assert world.audited("request.refused")[-1].detail["why"] == detail
    assert world.audited("worker.enrolled", worker_id=worker.name.worker) == []
    return detail


def test_host_with_pool_role_joins(world: World, cloud: Cloud) -> None:
    """AWS identifies the signer; the worker gets its identity without any secret of ours, and the audit names role and session."""
    worker = new_worker(world)
    response = worker.post("enrol", signed(cloud, worker, cloud.edge))
    assert response.status_code == 200, response.text
    [row] = world.audited("worker.enrolled", worker_id=worker.name.worker)
    assert (row.rule, row.detail["owner"]) == ("join as arn:aws:iam::123456789012:role/edge-eu", "i-0abc")


def test_worker_join_method_is_accepted(world: World, cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gateway accepts the request that `join_method = "aws_iam"` sends."""
    for name in [each for each in os.environ if each.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_ENDPOINT_URL", cloud.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", cloud.edge.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", cloud.edge.secret_key)
    monkeypatch.setenv("AWS_SESSION_TOKEN", cloud.edge.token or "")
    worker = new_worker(world)
    csr = csr_pem(worker.key)
    proof = asyncio.run(AwsIamJoin(REGION, "127.0.0.1").proof(csr))
    worker.enrol("", csr_pem=csr, join=proof.model_dump())
    worker.beat()


def test_other_signer_is_refused(world: World, cloud: Cloud) -> None:
    """Another role of the account, and a user, are not the pool's role."""
    worker = new_worker(world)
    for who, arn in ((cloud.other, "assumed-role/other/i-0abc"), (cloud.user, "user/ann")):
        said = refused(world, worker, signed(cloud, worker, who))
        assert arn in said
        assert "is not the role of pool default@eu-west-1" in said


def test_forged_signature_is_refused(world: World, cloud: Cloud) -> None:
    """A request signed with the key's id but without its secret is refused."""
    worker = new_worker(world)
    forged = Credentials(cloud.edge.access_key, "wrong" * 8, cloud.edge.token)
    assert "STS does not accept the request" in refused(world, worker, signed(cloud, worker, forged))


def test_a_request_is_good_once(world: World, cloud: Cloud) -> None:
    """A captured request is refused when it is replayed; the worker that it enrolled keeps its identity."""
    worker, body = new_worker(world), {}
    body = signed(cloud, worker, cloud.edge)
    assert worker.post("enrol", body).status_code == 200
    again = worker.post("enrol", body)
    assert (again.status_code, "was used before" in again.json()["detail"]) == (403, True)
    elsewhere = new_worker(world)
    stolen = body | {"worker": elsewhere.name.worker}
    assert "was used before" in refused(world, elsewhere, stolen)


@pytest.mark.parametrize(
    ("attack", "said"),
    [
        ({"age": timedelta(minutes=6)}, "it must be at most 300 s old"),
        # in the future, beyond the tolerated skew
        ({"age": timedelta(minutes=-3)}, "it must be at most 300 s old"),
        (
            {"audience": "gateway.example.com"},
            "signed for gateway 'gateway.example.com', which is not this one",
        ),
        ({"url": "http://127.0.0.1:9/"}, "the signed request is for 'http://127.0.0.1:9/'"),
        ({"url": "https://sts.amazonaws.com/"}, "the signed request is for 'https://sts.amazonaws.com/'"),
        ({"body": "Action=GetSessionToken&Version=2011-06-15"}, "is not GetCallerIdentity"),
        ({"region": "us-east-1"}, "signed for region us-east-1, not eu-west-1"),
        (
            {"unsigned": (AUDIENCE_HEADER,)},
            "these headers of the request must be signed: x-airbridge-audience",
        ),
        ({"unsigned": (CSR_HEADER,)}, "must be signed: x-airbridge-csr-sha256"),
    ],
)
def test_misdirected_request_is_refused(
    world: World, cloud: Cloud, attack: dict[str, Any], said: str
) -> None:
    """An old one, one for another gateway, endpoint, region or action, or with something unsigned that must be signed."""
    worker = new_worker(world)
    assert said in refused(world, worker, signed(cloud, worker, cloud.edge, **attack))


def test_a_request_is_for_one_key(world: World, cloud: Cloud) -> None:
    """A captured request does not give a certificate over the thief's key; headers and host cannot be changed either."""
    worker, thief = new_worker(world), new_worker(world)
    body = signed(cloud, worker, cloud.edge)
    assert "signed for another key" in refused(
        world, thief, body | {"csr_pem": csr_pem(thief.key), "worker": thief.name.worker}
    )
    headers = body["join"]["headers"]
    for changed, said in (
        ({"Host": "evil.example.com"}, "signed for host 'evil.example.com'"),
        ({"X-Forwarded-Host": "x"}, "headers that it must not have: x-forwarded-host"),
        ({"host": headers["Host"]}, "headers that it must not have: one given twice"),
        ({"Authorization": "Bearer x"}, "no AWS Signature Version 4"),
        ({"X-Amz-Date": "yesterday"}, "X-Amz-Date must read like"),
    ):
        join = body["join"] | {"headers": headers | changed}
        assert said in refused(world, thief, body | {"join": join, "worker": thief.name.worker})


def test_pool_without_role_requires_token(world: World, cloud: Cloud) -> None:
    """The method is enabled only where the region catalogue enables it."""
    worker = new_worker(world, "plain")
    assert "is not enabled for pool plain@eu-west-1" in refused(
        world, worker, signed(cloud, worker, cloud.edge)
    )


def test_instance_joins_under_its_own_id(world: World, cloud: Cloud) -> None:
    """A role session of an instance enrols that instance: not another one's name, nor a name that only begins with its id."""
    for name in ("i-0abd", "i-0abc-2", "host-7", "xi-0abc"):
        worker = Worker(world, REGION, "default", name)
        assert "instance i-0abc must enrol as 'i-0abc'" in refused(
            world, worker, signed(cloud, worker, cloud.edge)
        )
    own = Worker(world, REGION, "default", "i-0abc")
    assert own.post("enrol", signed(cloud, own, cloud.edge)).status_code == 200
