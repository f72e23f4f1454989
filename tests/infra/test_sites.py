"""Sites of environment files: what the stacks make for them, and which entries are refused."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from tests.infra.aws_rules.test_compute import resources
from tests.infra.conftest import ENVIRONMENTS, Stacks, read
from tests.infra.factories import environment, region
from tests.infra.sites import ABROAD, HOME, TOML, brokered, policies_of, resolved, site
from tests.infra.task_files import regions

from airbridge.infra import catalogue
from airbridge.infra import environment as environments
from airbridge.infra.app import synthesise
from airbridge.infra.exceptions import EnvironmentFileError, UnsafeStackError
from airbridge.infra.settings import Settings

ACCOUNT = "111111111111"
BASE = "airbridge-dev-site"
GATEWAY = f"arn:aws:iam::{ACCOUNT}:role/airbridge-dev-gateway"


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Stacks:
    """dev.toml with two sites."""
    folder: Path = tmp_path_factory.mktemp("sites")
    (folder / "dev.toml").write_text((ENVIRONMENTS / "dev.toml").read_text() + TOML)
    made = read(synthesise(Settings("dev", folder), folder / "out"))
    regions = {f"edge-{name}": name for name in (HOME, ABROAD)}
    return {name: resolved(stack, regions.get(name, HOME), ACCOUNT) for name, stack in made.items()}


def named(stacks: Stacks, kind: str, attribute: str) -> dict[str, str]:
    """Return the names of the sites' resources of a kind, with the stack of each."""
    found = ((path.split("/")[0], str(one[attribute])) for path, one in resources(stacks, kind))
    return {name: stack for stack, name in found if name.startswith(BASE)}


def test_stack_beside_makes_resources(stacks: Stacks) -> None:
    """Queues, dead letters, buckets and, for brokered credentials, roles are in the stack of the region beside; no other has any."""
    assert named(stacks, "aws_sqs_queue", "name") == {
        f"{BASE}-factory-7-default": f"edge-{ABROAD}",
        f"{BASE}-factory-7--dead-letters": f"edge-{ABROAD}",
        f"{BASE}-depot-3-default": f"edge-{HOME}",
        f"{BASE}-depot-3-press": f"edge-{HOME}",
        f"{BASE}-depot-3--dead-letters": f"edge-{HOME}",
    }
    assert named(stacks, "aws_s3_bucket", "bucket") == {
        f"{BASE}-{name}-{kind}-{ACCOUNT}": stack
        for name, stack in (("factory-7", f"edge-{ABROAD}"), ("depot-3", f"edge-{HOME}"))
        for kind in ("logs", "bundles")
    }
    assert named(stacks, "aws_iam_role", "name") == {
        f"{BASE}-depot-3-{pool}": f"edge-{HOME}" for pool in ("default", "press")
    }
    assert named(stacks, "aws_autoscaling_group", "name") == {}


def test_resources_have_the_regions_key(stacks: Stacks) -> None:
    """Queues and buckets are encrypted with the key of the region beside, logs end after `log_days`, and unfinished uploads too."""
    edge = stacks[f"edge-{ABROAD}"]["resource"]
    [key] = edge["aws_kms_key"]
    keys = {one["kms_master_key_id"] for one in edge["aws_sqs_queue"].values()}
    for one in edge["aws_s3_bucket_server_side_encryption_configuration"].values():
        keys.add(one["rule"][0]["apply_server_side_encryption_by_default"]["kms_master_key_id"])
    assert keys == {f"${{aws_kms_key.{key}.arn}}"}
    rules = {one["bucket"]: one["rule"][0] for one in edge["aws_s3_bucket_lifecycle_configuration"].values()}
    logs = rules[f"{BASE}-factory-7-logs-{ACCOUNT}"]
    assert logs["expiration"] == [{"days": 30}]
    assert logs["abort_incomplete_multipart_upload"] == [{"days_after_initiation": 7}]


def queue_policy(stacks: Stacks, queue: str) -> dict[str, Any]:
    policies = [
        one for _, one in resources(stacks, "aws_sqs_queue_policy") if one["queue_url"].endswith(f"/{queue}")
    ]
    [policy] = policies
    return {one["Sid"]: one for one in json.loads(policy["policy"])["Statement"]}


@pytest.mark.parametrize(
    ("queue", "receiver"),
    [
        (f"{BASE}-factory-7-default", GATEWAY),
        (f"{BASE}-depot-3-default", f"arn:aws:iam::{ACCOUNT}:role/{BASE}-depot-3-default"),
        (f"{BASE}-depot-3-press", f"arn:aws:iam::{ACCOUNT}:role/{BASE}-depot-3-press"),
    ],
)
def test_queue_policy_restricts_principals(stacks: Stacks, queue: str, receiver: str) -> None:
    """The scheduler sends; the gateway receives, or the pool's role that it hands out; every other principal is denied."""
    statements = queue_policy(stacks, queue)
    assert statements.keys() == {"TlsOnly", "OnlyTheControlPlaneSends", "OnlyThisPoolReceives"}
    who = {
        sid: statements[sid]["Condition"]["ArnNotEquals"]["aws:PrincipalArn"]
        for sid in ("OnlyTheControlPlaneSends", "OnlyThisPoolReceives")
    }
    sender = f"arn:aws:iam::{ACCOUNT}:role/airbridge-dev-scheduler"
    assert who == {"OnlyTheControlPlaneSends": sender, "OnlyThisPoolReceives": receiver}


@pytest.mark.parametrize(("pool", "xcoms"), [("default", False), ("press", True)])
def test_role_has_the_documented_rights(stacks: Stacks, pool: str, xcoms: bool) -> None:
    """A role trusts the gateway's role alone, and has the rights of the how-to's table on its own pool's queue and its site's buckets."""
    edge, name = stacks[f"edge-{HOME}"], f"{BASE}-depot-3-{pool}"
    [role] = [one for one in edge["resource"]["aws_iam_role"].values() if one["name"] == name]
    [trust] = json.loads(role["assume_role_policy"])["Statement"]
    assert (trust["Principal"], trust["Action"]) == ({"AWS": GATEWAY}, "sts:AssumeRole")
    assert role["permissions_boundary"].endswith(":policy/airbridge-dev-boundary")
    [policy] = policies_of(edge, name)
    rights = {
        (action, one["Resource"], json.dumps(one.get("Condition", {})))
        for one in policy["Statement"]
        for action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])
    }
    queue = f"arn:aws:sqs:{HOME}:{ACCOUNT}:{BASE}-depot-3-{pool}"
    logs, code = (f"arn:aws:s3:::{BASE}-depot-3-{kind}-{ACCOUNT}" for kind in ("logs", "bundles"))
    [key] = edge["resource"]["aws_kms_key"]
    via = {"StringEquals": {"kms:ViaService": [f"{one}.{HOME}.amazonaws.com" for one in ("s3", "sqs")]}}
    receiving = ("ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility", "GetQueueAttributes")
    assert rights == {
        *((f"sqs:{action}", queue, "{}") for action in receiving),
        ("s3:GetObject", f"{code}/bundles/*", "{}"),
        *((f"s3:{action}", f"{logs}/logs/*", "{}") for action in ("PutObject", "DeleteObject", "AbortMultipartUpload")),
        ("s3:ListBucket", code, json.dumps({"StringLike": {"s3:prefix": "bundles/*"}})),
        ("s3:ListBucket", logs, json.dumps({"StringLike": {"s3:prefix": "logs/*"}})),
        *((f"s3:{action}", f"{logs}/xcoms/*", "{}") for action in ("GetObject", "PutObject") if xcoms),
        *((f"kms:{action}", f"${{aws_kms_key.{key}.arn}}", json.dumps(via)) for action in ("Decrypt", "GenerateDataKey")),
    }  # fmt: skip


def test_outputs_make_the_same_catalogue(stacks: Stacks) -> None:
    """What the stacks put out is the catalogue that the control plane reads, sites included."""
    outputs = {
        name: {key: one["value"] for key, one in stack.get("output", {}).items()}
        for name, stack in stacks.items()
    }
    read = tomllib.loads(catalogue.from_outputs(outputs))
    assert read == tomllib.loads(regions(stacks))
    assert [one["name"] for one in read["region"]] == ["depot-3", ABROAD, "factory-7", HOME]


def test_alarms_and_charts_have_sites(stacks: Stacks) -> None:
    """A site's pools have the alarms of every pool; what SQS measures is watched beside it, and told to the region's topic."""
    alarms = {
        one["alarm_name"]: (path, one) for path, one in resources(stacks, "aws_cloudwatch_metric_alarm")
    }
    assert len(alarms) == sum(1 for _ in resources(stacks, "aws_cloudwatch_metric_alarm"))
    path, letters = alarms[f"{BASE}-factory-7-DeadLetters"]
    assert path.startswith(f"edge-{ABROAD}/")
    assert letters["dimensions"] == {"QueueName": f"{BASE}-factory-7--dead-letters"}
    [topic] = list(stacks[f"edge-{ABROAD}"]["resource"]["aws_sns_topic"])
    assert letters["alarm_actions"] == [f"${{aws_sns_topic.{topic}.arn}}"]
    path, silent = alarms[f"{BASE}-depot-3-press-PoolWithoutHeartbeat"]
    assert (path.split("/")[0], silent["dimensions"]) == (
        f"edge-{HOME}",
        {"Region": "depot-3", "Pool": "press"},
    )
    assert alarms[f"{BASE}-factory-7-default-RegionSilent"][0].startswith("control-plane/")
    [board] = [one for _, one in resources(stacks, "aws_cloudwatch_dashboard")]
    lines = [
        line
        for one in json.loads(board["dashboard_body"])["widgets"]
        for line in one["properties"]["metrics"]
    ]
    of_site = [line for line in lines if "factory-7" in line]
    assert of_site
    assert all({"region": ABROAD} in line for line in of_site if isinstance(line[-1], dict))


def test_gateway_admits_networks_once(stacks: Stacks) -> None:
    """The networks of sites reach the gateway's balancer; one that two sites have is one rule."""
    rules = [
        one["cidr_ipv4"]
        for path, one in resources(stacks, "aws_vpc_security_group_ingress_rule")
        if "entrance-group-in-sites" in path
    ]
    assert sorted(rules) == ["10.200.0.0/16", "10.201.0.0/24"]


def test_gateway_has_no_rights_without_sites(prod: Stacks) -> None:
    """Rights that only sites need are given only where there are any."""
    written = json.dumps(prod["control-plane"]["resource"]["aws_iam_role_policy"])
    assert not [sid for sid in ("ReceiveForSites", "UseSiteLogs", "BrokerCredentials") if sid in written]


@pytest.mark.parametrize(("one", "kept", "left"), [(site(), "ReceiveForSites", "BrokerCredentials"), (brokered(), "BrokerCredentials", "ReceiveForSites")])  # fmt: skip
def test_gateway_has_what_its_sites_need(one: dict[str, Any], kept: str, left: str) -> None:
    """A site behind the gateway gives it no right to roles, and one with brokered credentials none to queues."""
    from airbridge.infra.iam import regions as iam_regions

    made = environments.parse(environment(site=[one]), "test.toml")
    sids = [each.sid for each in iam_regions.statements(made.names, "gateway", made.sites)]
    assert kept in sids
    assert left not in sids


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("an odd name", site("Factory_7"), "site[0].name: String should match"),
    ("another way", site(transport="carrier-pigeon"), "site[0].transport: Input should be 'gateway' or 'direct'"),
    ("no way", {key: value for key, value in site().items() if key != "transport"}, "site[0].transport: Field required"),
    ("no place", {key: value for key, value in site().items() if key != "beside"}, "site[0].beside: Field required"),
    ("credentials of a host", brokered(credentials="host"), "site[0].credentials: Input should be 'brokered'"),
    ("data without a scheme", site(data=["/data/press"]), "site[0].data[0]: data is named by a URI such as s3://bucket/prefix, gs://bucket, file:///data"),
    ("no pool", site(pool=[]), "site[0].pool: Tuple should have at least 1 item"),
    ("no slots", site(pool=[{"slots": 0}]), "site[0].pool[0].slots"),
    ("a machine", site(pool=[{"slots": 1, "instance_types": ["m7g.large"]}]), "site[0].pool[0].instance_types: Extra inputs are not permitted"),
    ("no network", site(networks=["factory"]), "site[0].networks[0]"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "one", "message"), WRONG, ids=[what for what, _, _ in WRONG])
def test_wrong_value_is_named(what: str, one: dict[str, Any], message: str) -> None:
    """The error names the key."""
    with pytest.raises(EnvironmentFileError) as refusal:
        environments.parse(environment(site=[one]), "test.toml")
    assert f"test.toml: {message}" in str(refusal.value)


UNSAFE: list[tuple[str, list[dict[str, Any]], str]] = [
    ("an unknown region", [site(beside="eu-central-1")], "site factory-7: beside: eu-central-1 has no [[region]] entry (there are eu-west-1); name one of them"),
    ("the name of a region", [site("eu-west-1")], "site eu-west-1: name: has the form of AWS's regions"),
    ("the name of an unused region", [site("us-gov-west-1")], "site us-gov-west-1: name: has the form of AWS's regions"),
    ("a name twice", [site(), site()], "site: factory-7 is given 2 times; each is given once"),
    ("a pool twice", [site(pool=[{"slots": 1}, {"slots": 2}])], "site factory-7: pool: default is given 2 times"),
    ("a long name", [site("f" * 23)], f"site {'f' * 23}: name: makes the name airbridge-test-site-{'f' * 23}-bundles-123456789012 of 64 characters, and AWS takes 63; shorten it by 1"),
    ("a queue of two pools", [site("a", pool=[{"name": "b-c", "slots": 1}]), site("a-b", pool=[{"name": "c", "slots": 1}])], "site: pool b-c of site a and pool c of site a-b would both have the queue airbridge-test-site-a-b-c; rename one of them"),
    ("direct without credentials", [site(transport="direct")], 'site factory-7: credentials: is missing, and a host outside AWS has no role; give credentials = "brokered"'),
    ("credentials through the gateway", [site(credentials="brokered")], 'site factory-7: credentials: through the gateway workers need no AWS credentials; leave it out, or give transport = "direct"'),
    ("stored XComs through the gateway", [site(pool=[{"slots": 1, "xcom_inline_bytes": 0}])], 'site factory-7: xcom_inline_bytes: needs transport = "direct"'),
    ("strict through the gateway", [site(residency="strict")], 'site factory-7: residency: strict needs transport = "direct"'),
    ("previews of what stays", [brokered(residency="strict", xcom_preview_bytes=9)], "site depot-3: xcom_inline_bytes and xcom_preview_bytes are 0 or left out where residency is strict"),
    ("arguments of no backend", [site(pool=[{"slots": 1, "secrets_backend_kwargs": {"a": "b"}}])], "site factory-7: pool default: secrets_backend_kwargs: there is no secrets_backend"),
    ("a public network", [site(networks=["203.0.113.0/24"])], "site factory-7: networks: 203.0.113.0/24 is public, and the gateway's balancer is internal"),
    ("the control plane's network", [site(networks=["10.0.0.0/8"])], "site factory-7: networks: 10.0.0.0/8 overlaps control_plane.cidr 10.0.0.0/20"),
    ("many networks", [site(networks=[f"10.200.{number}.0/24" for number in range(60)])], "site: networks: the gateway's balancer would have 64 rules (1 regions, 60 networks of sites, 1 operator_cidrs, 2 others)"),
    ("a region's data", [site(data=["s3://data/sales/2026"])], "data: s3://data/sales/2026/ (site factory-7) and s3://data/sales/ (region eu-west-1) overlap"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "sites", "message"), UNSAFE, ids=[what for what, _, _ in UNSAFE])
def test_values_that_do_not_agree(what: str, sites: list[dict[str, Any]], message: str) -> None:
    """The error names the site and the key, what is wrong and what would be right."""
    changes = environment(site=sites, region=[region(data=["s3://data/sales"])])
    with pytest.raises(UnsafeStackError) as refusal:
        environments.parse(changes, "test.toml")
    assert f"test.toml: {message}" in str(refusal.value)


def test_longest_accepted_name_fits(tmp_path: Path) -> None:
    """The longest name that is accepted, with the longest pool, gives names that AWS takes."""
    made = environments.parse(
        environment(site=[brokered("f" * 22, pool=[{"name": "p" * 20, "slots": 1}])]), "test.toml"
    )
    [entry] = [one for one in catalogue.expected(made) if one.place]
    assert max(len(entry.log_bucket), len(entry.bundle_bucket)) == 63
    assert all(len(arn.rpartition("/")[2]) <= 64 for arn in entry.role_arns.values())
    assert all(len(url.rpartition("/")[2]) <= 80 for url in entry.queue_urls.values())


def test_tasks_of_a_site_have_a_role_of_their_own(tmp_path: Path) -> None:
    """Statements of a site's pool make a role that the gateway alone may assume, that the catalogue names, and that it may assume.

    A site behind the gateway has no role of its workers; its tasks may have one all the same.
    """
    given = TOML.replace(
        "max_absence_days = 90\n",
        "max_absence_days = 90\n"
        'task_statements = [{ actions = ["s3:GetObject"], resources = ["arn:aws:s3:::example-press/*"] }]\n',
    )
    (tmp_path / "dev.toml").write_text((ENVIRONMENTS / "dev.toml").read_text() + given)
    made = read(synthesise(Settings("dev", tmp_path), tmp_path / "out"))
    edge = resolved(made[f"edge-{ABROAD}"], ABROAD, ACCOUNT)
    name = f"{BASE}-factory-7-default-tasks"
    [role] = [one for one in edge["resource"]["aws_iam_role"].values() if one["name"].startswith(BASE)]
    [trust] = json.loads(role["assume_role_policy"])["Statement"]
    assert (role["name"], trust["Principal"]) == (name, {"AWS": GATEWAY})
    [policy] = policies_of(edge, name)
    rights = [(one["Action"], one["Resource"]) for one in policy["Statement"]]
    assert rights == [("s3:GetObject", "arn:aws:s3:::example-press/*")]
    outputs = {key: one["value"] for key, one in edge["output"].items()}
    [entry] = outputs["sites"]
    assert entry["keeps"]["default"]["task_role_arn"] == f"arn:aws:iam::{ACCOUNT}:role/{name}"


def test_role_of_tasks_has_a_name_that_aws_takes() -> None:
    """Of a long pool's name the role of tasks is the longest name that a site makes."""
    statement = {"actions": ["s3:GetObject"], "resources": ["arn:aws:s3:::b/*"]}
    name, pool = "f" * 20, {"name": "p" * 20, "slots": 1}
    assert environments.parse(environment(site=[site(name, pool=[pool])]), "t.toml")
    over = site(name, pool=[{**pool, "task_statements": [statement]}])
    with pytest.raises(
        UnsafeStackError, match=r"p-tasks of 67 characters, and AWS takes 64; shorten it by 3"
    ):
        environments.parse(environment(site=[over]), "t.toml")


def test_tasks_share_no_role_with_workers() -> None:
    """A pool that is called as another one's role of tasks is refused: its workers' credentials would be those tasks'."""
    statement = {"actions": ["s3:GetObject"], "resources": ["arn:aws:s3:::b/*"]}
    pools = [
        {"name": "press", "slots": 1, "task_statements": [statement]},
        {"name": "press-tasks", "slots": 1},
    ]
    with pytest.raises(
        UnsafeStackError, match=r"would both have the role airbridge-test-site-depot-3-press-tasks"
    ):
        environments.parse(environment(site=[brokered(pool=pools)]), "t.toml")
