"""Environment files: refusals of faulty ones, with place and reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.infra.conftest import ENVIRONMENTS
from tests.infra.factories import DIGEST, auth, environment, pool, region
from tests.infra.sites import site

from airbridge.infra import environment as environments
from airbridge.infra.exceptions import EnvironmentFileError, InfraError, UnsafeStackError
from airbridge.infra.settings import Settings
from airbridge.infra.validation import architecture


@pytest.mark.parametrize("name", ["local", "dev", "staging", "prod"])
def test_shipped_environments_are_valid(name: str) -> None:
    """The files that ship load, and their names match their contents."""
    assert name == environments.load(ENVIRONMENTS / f"{name}.toml").name


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("an image by tag", {"images": {"control_plane": "control-plane:1.2", "worker": f"w@sha256:{DIGEST}"}}, "images.control_plane: an image is named by digest"),
    ("an image by tag and digest", {"images": {"control_plane": f"c:1@sha256:{DIGEST}", "worker": f"w@sha256:{DIGEST}"}}, "images.control_plane: an image is named by digest"),
    ("an unknown key", {"colour": "red"}, "colour: Extra inputs are not permitted"),
    ("a missing key", {"region": [{"name": "eu-west-1", "cidr": "10.1.0.0/20"}]}, "region[0].pool: Field required"),
    ("an odd instance type", {"region": [region(pool=[pool(instance_types=["big"])])]}, "region[0].pool[0].instance_types[0]: unknown instance type pattern"),
    ("a region of another partition", {"region": [region(name="us-iso-east-1")]}, "region[0].name: us-iso-east-1 is in the partition aws-iso, and the stacks are for aws and aws-us-gov"),
    ("a region of China", {"home_region": "cn-north-1"}, "home_region: cn-north-1 is in the partition aws-cn"),
    ("a direction that AWS lacks", {"region": [region(name="eu-middle-1")]}, "region[0].name: eu-middle-1 is no region that AWS has: 'middle' is no direction"),
    ("a network too small", {"region": [region(cidr="10.1.0.0/28")]}, "region[0].cidr: a region's network is a /16 to /22"),
    ("a public network", {"region": [region(cidr="8.8.0.0/16")]}, "region[0].cidr: a region's network is a private one"),
    ("an odd region", {"region": [region(name="Ireland")]}, "region[0].name: String should match"),
    ("an option of the stacks", {"control_plane": {**environment()["control_plane"], "airflow": {"core.executor": "LocalExecutor"}}}, "control_plane.airflow: core.executor is set by the stacks"),
    ("a secret option", {"control_plane": {**environment()["control_plane"], "airflow": {"smtp.smtp_password": "x"}}}, "control_plane.airflow: smtp.smtp_password looks like a secret"),
    ("an option without a section", {"control_plane": {**environment()["control_plane"], "airflow": {"parallelism": "1"}}}, "control_plane.airflow: 'parallelism' is no option; expected section.option"),
    ("an auth manager by option", {"control_plane": {**environment()["control_plane"], "airflow": {"core.auth_manager": "x.Y"}}}, "control_plane.airflow: core.auth_manager is set by [control_plane.auth]"),
    ("a role that Airflow lacks", {"control_plane": {**environment()["control_plane"], "auth": auth(roles={"staff": "root"})}}, "control_plane.auth.roles.staff: Input should be 'viewer', 'user', 'op' or 'admin'"),
    ("an auth manager without an issuer", {"control_plane": {**environment()["control_plane"], "auth": {"url": "https://airflow.test"}}}, "control_plane.auth: OidcAuthManager needs issuer, client_id, roles"),
    ("settings of another auth manager", {"control_plane": {**environment()["control_plane"], "auth": auth(manager="acme.Manager")}}, "control_plane.auth: issuer, client_id, roles are settings of airbridge.control_plane.sign_in.auth_manager.OidcAuthManager"),
    ("FAB's auth manager", {"control_plane": {**environment()["control_plane"], "auth": {"url": "https://airflow.test", "manager": "airflow.providers.fab.auth_manager.fab_auth_manager.FabAuthManager"}}}, "control_plane.auth.manager: the FAB provider is not in the control plane's image"),
    ("a UI without TLS", {"control_plane": {**environment()["control_plane"], "auth": auth(url="http://airflow.test")}}, "control_plane.auth.url: String should match"),
    ("a variable of the stacks", {"control_plane": {**environment()["control_plane"], "environment": {"PGUSER": "x"}}}, "control_plane.environment: PGUSER is set by the stacks"),
    ("a secret of tasks", {"region": [region(pool=[pool(task_env={"API_TOKEN": "x"})])]}, "region[0].pool[0].task_env: API_TOKEN looks like a secret"),
    ("a place that is no bucket", {"region": [region(pool=[pool(data_write=["gs://x/y"])])]}, "region[0].pool[0].data_write[0]: String should match"),
    ("a size that Fargate lacks", {"control_plane": {**environment()["control_plane"], "sizes": {"gateway": {"cpu": 512, "memory": 8192}}}}, "control_plane.sizes.gateway: Fargate has no tasks of 512 CPU units and 8192 MiB; there are 1024 to 4096 MiB"),
    ("half a CPU", {"control_plane": {**environment()["control_plane"], "sizes": {"api-server": {"cpu": 500}}}}, "control_plane.sizes.api-server: Fargate has no tasks of 500 CPU units"),
    ("a name too long for a balancer", {"name": "production1"}, "name: String should match"),
    ("a derived image by tag", {"images": {**environment()["images"], "derived": {"tools": "tools:1"}}}, "images.derived.tools: an image is named by digest"),
    ("a derived image of another name", {"images": {**environment()["images"], "derived": {"tools": f"jq@sha256:{DIGEST}"}}}, "images.derived: tools is an image of jq; expected tools@sha256:<digest>"),
    ("a derived image with the platform's name", {"images": {**environment()["images"], "derived": {"worker": f"worker@sha256:{DIGEST}"}}}, "images.derived: 'worker' is no name of a derived image"),
    ("no region", {"region": []}, "region: Tuple should have at least 1 item"),
    ("a pool that would collide with the dead letters", {"region": [region(pool=[pool("-dead-letters")])]}, "region[0].pool[0].name"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "changes", "message"), REFUSED, ids=[what for what, _, _ in REFUSED])
def test_wrong_key_is_named(what: str, changes: dict[str, Any], message: str) -> None:
    """The error names the file, the key, and the valid values."""
    with pytest.raises(EnvironmentFileError) as refusal:
        environments.parse(environment(**changes), "test.toml")
    assert f"test.toml: {message}" in str(refusal.value)


def plane(**changes: Any) -> dict[str, Any]:
    return {"control_plane": {**environment()["control_plane"], **changes}}


def networks(count: int) -> list[str]:
    return [f"10.200.{number}.0/24" for number in range(count)]


UNSAFE: list[tuple[str, dict[str, Any], str]] = [
    ("two partitions", {"region": [region(), region(name="us-gov-west-1", cidr="10.2.0.0/20")]}, "region us-gov-west-1: is in the partition aws-us-gov, and home_region eu-west-1 in aws"),
    ("a certificate of another partition", {"home_region": "us-gov-west-1", "region": [region(name="us-gov-west-1")]}, "control_plane.certificate_arn: arn:aws:acm:us-east-1:123456789012:certificate/0 is not of the partition aws-us-gov"),
    ("a region twice", {"region": [region(), region(cidr="10.2.0.0/20")]}, "region: eu-west-1 is given 2 times"),
    ("a pool twice", {"region": [region(pool=[pool(), pool()])]}, "region eu-west-1: pool: default is given 2 times"),
    ("overlapping networks", {"region": [region(), region("us-west-2", "10.1.8.0/22")]}, "cidr: region eu-west-1 has 10.1.0.0/20 and region us-west-2 has 10.1.8.0/22"),
    ("a region over the control plane", {"region": [region(cidr="10.0.0.0/16")]}, "cidr: control_plane has 10.0.0.0/20"),
    ("a prefix in two regions", {"region": [region(data=["s3://data/a"]), region("us-west-2", "10.2.0.0/20", data=["s3://data/a/b"])]}, "data: s3://data/a/ (region eu-west-1) and s3://data/a/b/ (region us-west-2) overlap"),
    ("a team twice", {"team": [{"name": "a", "bundles": ["x"]}, {"name": "a", "bundles": ["y"]}]}, "team: a is given 2 times"),
    ("a bundle of two teams", {"team": [{"name": "a", "bundles": ["x"]}, {"name": "b", "bundles": ["x"]}]}, "team: bundles: x is given 2 times"),
    ("a team without bundles", {"team": [{"name": "a"}]}, "team a: bundles: is empty; name those whose tasks are the team's own"),
    ("a quota of no pool", {"team": [{"name": "a", "bundles": ["x"], "quota": {"gpu@eu-west-1": 2}}]}, "team a: quota: 'gpu@eu-west-1' is no queue (there are eu-west-1)"),
    ("a price of no region", {"prices": {"egress": {"eu-west-9": 1}}}, "prices.egress: 'eu-west-9' is no region (there are eu-west-1)"),
    ("a price of no queue", {"prices": {"slot_hour": {"gpu@eu-west-1": 1}}}, "prices.slot_hour: 'gpu@eu-west-1' is no queue (there are eu-west-1)"),
    ("two architectures in a pool", {"region": [region(pool=[pool(instance_types=["m7g.large", "m7i.large"])])]}, "region eu-west-1: pool default: instance_types mix arm64 and x86_64"),
    ("an image outside the release", {"region": [region(pool=[pool(image="tools")])]}, "region eu-west-1: pool default: image: the release has no derived image 'tools' (images.derived has none)"),
    ("an image without a release", {"images": {"control_plane": f"control-plane@sha256:{DIGEST}", "worker": f"edge-worker@sha256:{32 * 'ab'}", "derived": {"tools": f"tools@sha256:{64 * '0'}"}}, "region": [region(pool=[pool(image="tools")])]}, "region eu-west-1: pool default: image: tools has a repository, and no image yet"),
    ("more at least than at most", {"region": [region(pool=[pool(min_instances=9)])]}, "region eu-west-1: pool default: min_instances 9 is above max_instances 4"),
    ("a home without an entry", {"home_region": "us-east-1"}, "home_region: us-east-1 has no [[region]] entry (there are eu-west-1)"),
    ("no auth manager", {"control_plane": {name: value for name, value in environment()["control_plane"].items() if name != "auth"}}, "control_plane.auth: is missing, and Airflow's SimpleAuthManager is for the local tier alone"),
    ("passwords in a file", {"control_plane": {**environment()["control_plane"], "auth": {"url": "https://airflow.test", "manager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager"}}}, "control_plane.auth.manager: SimpleAuthManager is for the local tier alone"),
    ("production unprotected", {"tier": "production", "protection": {"deletion": False}}, "protection.deletion: is false"),
    ("production in the development shape", {"tier": "production", "shape": "development"}, "shape: is development; production has private networks"),
    ("more pools than a dead-letter queue takes", {"region": [region(pool=[pool(f"p{number}") for number in range(11)])]}, "region eu-west-1: pool: there are 11 pools, and their dead-letter queue takes 10; use fewer"),
    ("more pools of a site", {"site": [site(beside="eu-west-1", pool=[{"name": f"p{number}", "slots": 1} for number in range(11)])]}, "site factory-7: pool: there are 11 pools, and their dead-letter queue takes 10"),
    ("many operators without a site", plane(operator_cidrs=networks(58)), "site: networks: the gateway's balancer would have 61 rules (1 regions, 0 networks of sites, 58 operator_cidrs, 2 others)"),
    ("many networks of the UI", plane(ui_cidrs=networks(61)), "control_plane.ui_cidrs: 61 networks are above the 60 rules"),
    ("many ports of ways out", {"region": [region(egress=[{"name": "erp", "cidr": "10.99.0.0/24", "ports": list(range(1, 59)), "via": "nat"}])]}, "region eu-west-1: egress: 58 ports of networks and 3 ways of its own are above the 60 rules"),
    ("production without a standby", {"tier": "production", "control_plane": {**environment()["control_plane"], "database": {"multi_az": False}}}, "control_plane.database.multi_az: is false"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "changes", "message"), UNSAFE, ids=[what for what, _, _ in UNSAFE])
def test_unsafe_environment_is_refused(what: str, changes: dict[str, Any], message: str) -> None:
    """Values that are valid one by one, but not together, are refused; the error names file and key."""
    with pytest.raises(UnsafeStackError) as refusal:
        environments.parse(environment(**changes), "test.toml")
    assert f"test.toml: {message}" in str(refusal.value)


def test_neighbouring_prefixes_are_two_prefixes() -> None:
    """`sales` does not claim `sales-archive`."""
    regions = [
        region(data=["s3://data/sales"]),
        region("us-west-2", "10.2.0.0/20", data=["s3://data/sales-archive"]),
    ]
    assert len(environments.parse(environment(region=regions), "test.toml").regions) == 2


def test_every_problem_is_reported_at_once() -> None:
    """All problems of a file are reported in one error."""
    wrong = environment(account="1", home_region="home", trust_domain="?")
    with pytest.raises(EnvironmentFileError) as refusal:
        environments.parse(wrong, "test.toml")
    assert [":".join(line.split(":")[:2]) for line in str(refusal.value).splitlines()] == [
        "test.toml: account",
        "test.toml: home_region",
        "test.toml: trust_domain",
    ]


def test_missing_file_error_lists_others() -> None:
    """The error for a misspelt environment lists the existing ones."""
    with pytest.raises(EnvironmentFileError, match=r"there are: dev, local, prod, staging"):
        environments.load(ENVIRONMENTS / "production.toml")


def test_invalid_toml_is_named(tmp_path: Path) -> None:
    """A syntax error names the file and the place."""
    file = tmp_path / "broken.toml"
    file.write_text("name = ")
    with pytest.raises(EnvironmentFileError, match=r"broken.toml: Invalid value"):
        environments.load(file)


@pytest.mark.parametrize(
    ("instance_type", "expected"),
    [
        ("m7g.large", "arm64"),
        ("c7gn.16xlarge", "arm64"),
        ("a1.metal", "arm64"),
        ("g5g.xlarge", "arm64"),
        ("g5.xlarge", "x86_64"),
        ("m7i-flex.large", "x86_64"),
        ("r7iz.metal-16xl", "x86_64"),
    ],
)
def test_architecture_follows_from_name(instance_type: str, expected: str) -> None:
    """Graviton is a `g` after the generation, not in the family."""
    assert expected == architecture(instance_type)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({}, "AIRBRIDGE_ENV is not set"),
        ({"AIRBRIDGE_ENV": "dev", "AIRBRIDGE_ALLOW_DESTROY": "prod"}, "they must agree"),
        ({"AIRBRIDGE_ENV": "dev", "AIRBRIDGE_STATE": "disk"}, "AIRBRIDGE_STATE is 'disk'"),
    ],
)
def test_wrong_settings_name_the_variable(variables: dict[str, str], message: str) -> None:
    """Destroying requires the environment's name twice."""
    with pytest.raises(InfraError, match=message):
        Settings.read(variables)
