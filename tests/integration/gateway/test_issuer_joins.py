"""Joining by a token of an issuer: a CI's, and a Kubernetes cluster's of which the gateway has the keys in a file."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from jwt.algorithms import RSAAlgorithm
from sqlalchemy import text
from tests.integration.gateway.world import VERSIONS, Worker, World, running
from tests.support.airflow_home import pointed_at
from tests.support.oidc_issuer import Issuer, issuing, segment
from tests.support.postgres import Postgres

from airbridge.control_plane.exceptions import Refused, Unavailable
from airbridge.control_plane.gateway.server import utc_now
from airbridge.control_plane.identity.oidc.issuers import JoinIssuers
from airbridge.control_plane.identity.oidc.joins import TokenJoins
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.protocol import Credentials, EnrolRequest, JoinByKubernetes, JoinByOidc
from airbridge.edge_worker.gateway_client.join import join_method
from airbridge.edge_worker.settings import load

CLUSTER = "https://kubernetes.default.svc.cluster.local"
AUDIENCE = "airbridge.example.com"
CATALOGUE = Catalogue.parse(
    """
    home_region = "ci"
    [[region]]
    name = "ci"
    aws_region = "eu-central-1"
    transport = "gateway"
    log_bucket = "ci-logs"
    bundle_bucket = "ci-dags"
    [[region.pool]]
    queue_url = "http://127.0.0.1:1/ci"
    [[region.pool]]
    name = "named"
    queue_url = "http://127.0.0.1:1/named"
    [[region]]
    name = "gke"
    aws_region = "eu-central-1"
    transport = "gateway"
    log_bucket = "gke-logs"
    bundle_bucket = "gke-dags"
    [[region.pool]]
    queue_url = "http://127.0.0.1:1/gke"
    [[region.pool]]
    name = "other"
    queue_url = "http://127.0.0.1:1/other"
    """
)


def file_of(issuer: Issuer, jwks: Path) -> str:
    """The text of a ``join_issuers_file``."""
    return f"""
    [[issuer]]
    name = "actions"
    method = "oidc"
    issuer = "{issuer.url}"
    audience = "{AUDIENCE}"
    [[issuer.rule]]
    region = "ci"
    claims = {{ repository = "acme/etl", ref = ["refs/heads/main", "refs/heads/release"], protected = true }}
    [[issuer.rule]]
    region = "ci"
    pool = "named"
    claims = {{ sub = "machine-7" }}
    worker_claim = "host"

    [[issuer]]
    name = "gke"
    method = "kubernetes"
    audience = "{AUDIENCE}"
    jwks_file = "{jwks}"
    [[issuer.rule]]
    region = "gke"
    namespace = "airbridge"
    service_account = "worker"
    """


@dataclass
class Joins:
    """A gateway, its issuer, and a cluster's key."""

    world: World
    ci: Issuer
    cluster_key: rsa.RSAPrivateKey

    def ci_token(self, **changes: Any) -> str:
        """A token as a CI's job gets it; changes of the claims, header or key make others."""
        claims: dict[str, Any] = {
            "aud": AUDIENCE,
            "sub": "repo:acme/etl:ref:refs/heads/main",
            "repository": "acme/etl",
            "ref": "refs/heads/main",
            "protected": True,
        }
        return self.ci.token(**(claims | changes))

    def pod_token(
        self, pod: str, *, key: Any = None, header: dict[str, Any] | None = None, **changes: Any
    ) -> str:
        """A token as a kubelet projects it into a pod."""
        now = int(time.time())
        claims = {
            "iss": CLUSTER,
            "aud": [AUDIENCE],
            "sub": "system:serviceaccount:airbridge:worker",
            "iat": now,
            "nbf": now,
            "exp": now + 600,
            "jti": f"{time.monotonic_ns()}",
            "kubernetes.io": {
                "namespace": "airbridge",
                "pod": {"name": pod, "uid": "3d4a"},
                "serviceaccount": {"name": "worker", "uid": "77aa"},
            },
        } | changes
        kept = {name: value for name, value in claims.items() if value is not None}
        return jwt.encode(
            kept, key or self.cluster_key, "RS256", headers={"kid": "cluster-1", **(header or {})}
        )

    def join(
        self,
        token: str,
        *,
        method: str = "oidc",
        region: str = "ci",
        pool: str = "default",
        name: str | None = None,
    ) -> httpx.Response:
        return self.send(self.host(region, pool, name), token, method)

    def host(self, region: str = "ci", pool: str = "default", name: str | None = None) -> Worker:
        return Worker(self.world, region, pool, name or f"job-{next(self.world.number)}")

    def send(self, worker: Worker, token: str, method: str = "oidc") -> httpx.Response:
        body = worker.enrolment("") | {"join": {"method": method, "token": token}}
        response = worker.post("enrol", body)
        if response.status_code == 200:
            worker.use(Credentials.model_validate_json(response.content))
        return response

    def pod(self, token: str, name: str, **more: str) -> httpx.Response:
        return self.join(token, **{"method": "kubernetes", "region": "gke", "name": name, **more})


def jwks_of(key: rsa.RSAPrivateKey, kid: str = "cluster-1") -> str:
    return json.dumps(
        {"keys": [json.loads(RSAAlgorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"}]}
    )


@pytest.fixture(scope="module")
def joins(
    postgres: Postgres, postgres_template: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Joins]:
    name = postgres.create(postgres_template)
    directory = tmp_path_factory.mktemp("gateway")
    key = rsa.generate_private_key(65_537, 2_048)
    (directory / "jwks.json").write_text(jwks_of(key))
    with issuing() as issuer:
        (directory / "issuers.toml").write_text(file_of(issuer, directory / "jwks.json"))
        with (
            pointed_at(postgres.url(name)) as metadata,
            running(metadata, directory, CATALOGUE, join_issuers_file=directory / "issuers.toml") as world,
        ):
            yield Joins(world, issuer, key)
    postgres.drop(name)


@pytest.fixture(scope="module")
def world(joins: Joins) -> World:
    return joins.world


def refusal(response: httpx.Response) -> str:
    assert response.status_code == 403, response.text
    detail: str = response.json()["detail"]
    return detail


# --- OpenID Connect ------------------------------------------------------------------------------


def test_job_joins_by_its_token(joins: Joins) -> None:
    """A CI's job joins the pool of its repository, works under its identity, and the audit trail names issuer and subject."""
    worker = joins.host()
    assert joins.send(worker, joins.ci_token()).status_code == 200
    worker.beat()
    [row] = joins.world.audited("worker.enrolled", worker_id=worker.name.worker)
    assert row.rule == "join method oidc, issuer actions"
    assert row.detail["owner"] == "repo:acme/etl:ref:refs/heads/main"


@dataclass(frozen=True)
class At:
    """Time of a claim, in seconds from when its token is made: tests run long after they are collected."""

    seconds: int


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "expired": ({"iat": At(-900), "exp": At(-300)}, "expired"),
    "not valid yet": ({"nbf": At(900)}, "not valid yet"),
    "issued in the future": (
        {"iat": At(900), "exp": At(1_500)},
        "not valid yet",
    ),
    "too long": ({"exp": At(90 * 60)}, "issuer 'actions' allows 70"),
    "without an end": ({"exp": None}, "malformed"),
    "an end that is no time": ({"exp": True}, "malformed|no time"),
    "other audience": ({"aud": "https://example.com"}, "not for audience 'airbridge.example.com'"),
    "no audience": ({"aud": None}, "malformed"),
    "several audiences": ({"aud": [AUDIENCE, "vault"]}, "for other audiences too"),
    "other issuer": ({"iss": "https://token.example.com"}, "no issuer of join method oidc"),
    "no issuer": ({"iss": None}, "names no issuer"),
    "other repository": ({"repository": "acme/other"}, "no rule of issuer 'actions' admits"),
    "repository with a suffix": ({"repository": "acme/etl2"}, "no rule"),
    "repository missing": ({"repository": None}, "no rule"),
    "branch of a stranger": ({"ref": "refs/pull/7/merge"}, "no rule"),
    "text for a truth": ({"protected": "true"}, "no rule"),
    "number for a truth": ({"protected": 1}, "no rule"),
    "no subject": ({"sub": None}, "malformed"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_token_is_refused(joins: Joins, what: str) -> None:
    """A token that is not of now, not for this deployment, or not of a job that a rule admits is refused with the reason."""
    template, reason = BAD[what]
    now = int(time.time())
    changes = {name: now + each.seconds if isinstance(each, At) else each for name, each in template.items()}
    assert re.search(reason, refusal(joins.join(joins.ci_token(**changes))))


def forged(joins: Joins) -> dict[str, str]:
    """Tokens with good claims that the issuer's key has not signed."""
    claims = joins.ci.claims(
        aud=AUDIENCE, sub="x", repository="acme/etl", ref="refs/heads/main", protected=True
    )
    good = joins.ci_token()
    head, _, signature = good.split(".")
    pem = joins.ci.key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return {
        "another key": joins.ci_token(key=rsa.generate_private_key(65_537, 2_048)),
        "unsigned": f"{segment({'alg': 'none', 'kid': 'rsa-1'})}.{segment(claims)}.",
        "unsigned, with a signature": f"{segment({'alg': 'none', 'kid': 'rsa-1'})}.{segment(claims)}.{signature}",
        "public key as a secret": _hs256(claims, pem),
        "claims exchanged": f"{head}.{segment(claims | {'sub': 'y'})}.{signature}",
        "other algorithm than its key's": joins.ci_token(header={"kid": "ec-1"}),
        "unknown key": joins.ci_token(header={"kid": "rsa-9"}),
        "key in the header": joins.ci_token(header={"kid": "rsa-1", "crit": ["jwk"], "jwk": {}}),
        "an access token": joins.ci_token(header={"typ": "at+jwt"}),
        "a cluster's token": joins.pod_token("x"),
        "empty": "x",
        "too long": "a.b." + "c" * 16_000,
    }


def _hs256(claims: dict[str, Any], secret: bytes) -> str:
    signed = f"{segment({'alg': 'HS256', 'kid': 'rsa-1'})}.{segment(claims)}"
    return f"{signed}.{segment(hmac.new(secret, signed.encode(), hashlib.sha256).digest())}"


FORGED = (
    "another key", "unsigned", "unsigned, with a signature", "public key as a secret", "claims exchanged",
    "other algorithm than its key's", "unknown key", "key in the header", "an access token", "a cluster's token",
    "empty", "too long",
)  # fmt: skip


@pytest.mark.parametrize("what", FORGED)
def test_forged_token_is_refused(joins: Joins, what: str) -> None:
    """Tokens of other keys, of no key, and of a public key that is used as a secret are refused, whatever they claim."""
    tokens = forged(joins)
    assert tokens.keys() == set(FORGED)
    refusal(joins.join(tokens[what]))


def test_rule_is_of_its_pool_alone(joins: Joins) -> None:
    """A token admits to the pools of its rules alone, by its own join method alone."""
    assert "no rule of issuer" in refusal(joins.join(joins.ci_token(), pool="named"))
    assert "no issuer of join method oidc" in refusal(joins.join(joins.ci_token(), region="gke"))
    assert "no issuer of join method kubernetes" in refusal(joins.join(joins.ci_token(), method="kubernetes"))


def test_claim_names_the_worker(joins: Joins) -> None:
    """Where a claim names the worker, the token is good for that name, and for one that ends with it."""
    asked = {"sub": "machine-7", "host": "press-7"}
    assert joins.join(joins.ci_token(**asked), pool="named", name="press-7").status_code == 200
    assert joins.join(joins.ci_token(**asked), pool="named", name="eu-press-7").status_code == 200
    detail = refusal(joins.join(joins.ci_token(**asked), pool="named", name="xpress-7"))
    assert "must enrol under that name" in detail
    assert "no claim 'host'" in refusal(joins.join(joins.ci_token(sub="machine-7"), pool="named"))


def test_token_is_good_for_one_name(joins: Joins) -> None:
    """A token that is seen by others admits no second name; the worker itself may join with it again, until it expires."""
    token, worker = joins.ci_token(), joins.host()
    assert joins.send(worker, token).status_code == 200
    assert "another worker has joined with this token" in refusal(joins.join(token))
    worker.present(None, "")
    assert joins.send(worker, token).status_code == 200


def test_used_token_stays_bound(joins: Joins) -> None:
    """Joins by other methods, which forget their own used proofs after minutes, do not free an issuer's token."""
    token = joins.ci_token(exp=int(time.time()) + 3_600)
    assert joins.join(token).status_code == 200
    with joins.world.metadata.session() as session:
        session.execute(text("UPDATE airbridge_join_proof SET used_at = used_at - INTERVAL '30 minutes'"))
        session.commit()
    joins.world.worker("ci")
    assert "another worker has joined" in refusal(joins.join(token))


def test_races_admit_one_name(joins: Joins) -> None:
    """Of several names that use one token at once, one gets in."""
    token = joins.ci_token()
    hosts = [joins.host() for _ in range(6)]
    with ThreadPoolExecutor(6) as threads:
        answers = list(threads.map(lambda host: joins.send(host, token).status_code, hosts))
    assert sorted(answers) == [200, 403, 403, 403, 403, 403]


def test_holder_takes_no_live_name(joins: Joins) -> None:
    """A good token of another job does not take over the name of a worker that is alive."""
    worker = joins.host()
    assert joins.send(worker, joins.ci_token()).status_code == 200
    worker.beat()
    response = joins.join(joins.ci_token(), name=worker.name.worker)
    assert response.json()["reason"] == "name_in_use"


def test_refusal_is_audited(joins: Joins) -> None:
    """A refused token is in the audit trail, with the rule and without the token."""
    token = joins.ci_token(aud="x")
    refusal(joins.join(token))
    row = joins.world.audited("request.refused")[-1]
    assert row.rule == "join method oidc"
    assert token.split(".")[1] not in str(row.detail)


# --- Kubernetes ----------------------------------------------------------------------------------


def test_pod_joins_under_its_own_name(joins: Joins) -> None:
    """A pod of the service account joins under the pod's name, or one that ends with it, and under no other pod's."""
    assert joins.pod(joins.pod_token("worker-0"), "worker-0").status_code == 200
    assert joins.pod(joins.pod_token("worker-1"), "gke-worker-1").status_code == 200
    assert "must enrol under that name" in refusal(joins.pod(joins.pod_token("worker-2"), "worker-3"))
    [row] = joins.world.audited("worker.enrolled", worker_id="worker-0")
    assert (row.rule, row.detail["owner"]) == (
        "join method kubernetes, issuer gke",
        "system:serviceaccount:airbridge:worker",
    )


def bound(**changes: Any) -> dict[str, Any]:
    inside = {"namespace": "airbridge", "pod": {"name": "p"}, "serviceaccount": {"name": "worker"}}
    return {"kubernetes.io": {name: value for name, value in (inside | changes).items() if value is not None}}


BAD_PODS: dict[str, tuple[dict[str, Any], str]] = {
    "other namespace": (bound(namespace="default"), "no rule"),
    "other account": (bound(serviceaccount={"name": "default"}), "no rule"),
    "subject of another account": ({"sub": "system:serviceaccount:default:worker"}, "no rule"),
    "legacy secret, bound to no pod": (bound(pod=None), "bound to no pod"),
    "no claims of Kubernetes": ({"kubernetes.io": None}, "no rule"),
    "claims of another kind": ({"kubernetes.io": "airbridge"}, "no rule"),
    "for the API server": ({"aud": [CLUSTER]}, "not for audience"),
    "for the API server too": ({"aud": [AUDIENCE, CLUSTER]}, "for other audiences too"),
    "of a year": ({"exp": int(time.time()) + 31_536_000}, "max_token_minutes"),
    "other cluster": ({"iss": "https://other.example.com"}, "no issuer of join method kubernetes"),
    "expired": ({"iat": int(time.time()) - 900, "exp": int(time.time()) - 300}, "expired"),
}


@pytest.mark.parametrize("what", BAD_PODS)
def test_bad_pod_is_refused(joins: Joins, what: str) -> None:
    """Pods of other namespaces, accounts and clusters, and tokens that are not projected for this deployment, are refused."""
    changes, reason = BAD_PODS[what]
    assert reason in refusal(joins.pod(joins.pod_token("p", **changes), "p"))


def test_pod_of_another_pool_is_refused(joins: Joins) -> None:
    """The service account admits to the pools of its rules alone."""
    assert "no issuer of join method kubernetes" in refusal(
        joins.pod(joins.pod_token("q"), "q", pool="other")
    )


def test_worker_reads_the_projected_token(joins: Joins, tmp_path: Path) -> None:
    """The worker's own code reads the token anew at each enrolment: the kubelet replaces it."""
    settings = load(
        None,
        gateway_url="https://unused",
        ca_file=tmp_path / "ca",
        region="gke",
        name="worker-7",
        state_dir=tmp_path,
        join_method="kubernetes",
        join_token_file=tmp_path / "token",
    )
    join, host_key = join_method(settings), Ed25519PrivateKey.generate()
    for _ in range(2):
        (tmp_path / "token").write_text(joins.pod_token("worker-7") + "\n")
        proof = asyncio.run(join.proof("unused"))
        worker = joins.host("gke", name="worker-7")
        worker.rejoin_key = host_key
        body = worker.enrolment("") | {"join": proof.model_dump()}
        assert worker.post("enrol", body).status_code == 200


# --- keys ----------------------------------------------------------------------------------------


@dataclass
class Monotonic:
    seconds: float = 1_000.0

    def __call__(self) -> float:
        return self.seconds


def request_of(region: str, join: JoinByOidc | JoinByKubernetes, name: str = "p") -> EnrolRequest:
    return EnrolRequest(region=region, pool="default", worker=name, csr_pem="x", join=join, versions=VERSIONS)


def test_rotated_file_is_read(joins: Joins, tmp_path: Path) -> None:
    """After the keys in jwks_file are replaced, tokens of the new key are admitted, and those of the old one end within minutes."""
    jwks, clock, fresh = tmp_path / "jwks.json", Monotonic(), rsa.generate_private_key(65_537, 2_048)
    jwks.write_text(jwks_of(joins.cluster_key))
    (tmp_path / "issuers.toml").write_text(file_of(joins.ci, jwks))

    async def scenario() -> None:
        it = TokenJoins(JoinIssuers.read(tmp_path / "issuers.toml", CATALOGUE), utc_now, clock)

        async def proves(token: str) -> str:
            join = JoinByKubernetes(token=token)
            return (await it.verification(request_of("gke", join), join))().issuer

        old = joins.pod_token("p")
        new = joins.pod_token("p", key=fresh, header={"kid": "cluster-2"})
        assert await proves(old) == "gke"
        jwks.write_text(jwks_of(fresh, "cluster-2"))
        clock.seconds += 31
        assert await proves(new) == "gke"
        with pytest.raises(Refused, match="has no key 'cluster-1'"):
            await proves(old)
        await it.close()

    asyncio.run(scenario())


def test_missing_file_is_no_refusal(joins: Joins, tmp_path: Path) -> None:
    """While the keys cannot be read, workers are asked to come back; they are not refused."""
    (tmp_path / "issuers.toml").write_text(file_of(joins.ci, tmp_path / "none.json"))

    async def scenario() -> None:
        it = TokenJoins(JoinIssuers.read(tmp_path / "issuers.toml", CATALOGUE), utc_now)
        join = JoinByKubernetes(token=joins.pod_token("p"))
        with pytest.raises(Unavailable):
            await it.verification(request_of("gke", join), join)
        await it.close()

    asyncio.run(scenario())


def test_token_lives_by_the_gateways_clock(joins: Joins) -> None:
    """Times are judged by the gateway's clock."""
    token = joins.ci_token()
    joins.world.clock.ahead = timedelta(minutes=10)
    try:
        assert "expired" in refusal(joins.join(token))
    finally:
        joins.world.clock.ahead = timedelta(0)


# --- the file ------------------------------------------------------------------------------------

ISSUER = '[[issuer]]\nname = "a"\nmethod = "oidc"\nissuer = "https://a.example.com"\naudience = "x"\n'
RULE = '[[issuer.rule]]\nregion = "ci"\nclaims = { sub = "s" }\n'
FAULTS = {
    "no rule": (ISSUER, "rule: Field required"),
    "http": (ISSUER.replace("https", "http") + RULE, "must be an https URL"),
    "no such pool": (ISSUER + RULE.replace("ci", "cj"), "there is no region 'cj'"),
    "everybody": (ISSUER + RULE.replace("sub", "aud"), "admit everybody"),
    "no claims": (ISSUER + '[[issuer.rule]]\nregion = "ci"\nclaims = {}\n', "claims"),
    "empty claim": (ISSUER + RULE.replace('"s"', '""'), "must have a value"),
    "misspelt": (ISSUER + "audiense = 1\n" + RULE, "audiense"),
    "no method": (ISSUER.replace('method = "oidc"\n', "") + RULE, "method"),
    "twice": (ISSUER + RULE + ISSUER + RULE, "is there twice"),
    "same place": (
        ISSUER + RULE + ISSUER.replace('"a"', '"b"') + RULE,
        "2 issuers https://a.example.com have rules",
    ),
    "two sources": (ISSUER + 'jwks_url = "https://a/k"\njwks_file = "/k"\n' + RULE, "cannot both be set"),
    "no TOML": ("[", "it must be a TOML file"),
}


@pytest.mark.parametrize("what", FAULTS)
def test_faulty_file_is_named(tmp_path: Path, what: str) -> None:
    """What is wrong with the file stops the gateway's start, with the entry and what would be right."""
    content, reason = FAULTS[what]
    (tmp_path / "issuers.toml").write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        JoinIssuers.read(tmp_path / "issuers.toml", CATALOGUE)
    assert "[airbridge] join_issuers_file" in str(caught.value)
    assert reason in str(caught.value)
