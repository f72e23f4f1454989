"""What a platform team brings: its networks, ways out of a region, rights of tasks, machine images, names, who is told."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path
from typing import Any

import pytest
from tests.infra import task_files
from tests.infra.aws_rules.test_compute import resources
from tests.infra.conftest import ENVIRONMENTS, Stacks, read
from tests.infra.factories import environment, pool, region

from airbridge.infra import environment as environments
from airbridge.infra.app import synthesise
from airbridge.infra.exceptions import EnvironmentFileError, UnsafeStackError
from airbridge.infra.settings import Settings

VPC, TRANSIT, PEERING = "vpc-0a1b2c3d", "tgw-0123456789abcdef0", "pcx-0123456789abcdef0"
SUBNETS = ["subnet-0000000a", "subnet-0000000b"]
GIVEN = {"vpc": VPC, "subnets": SUBNETS}
STATEMENT = {"actions": ["dynamodb:GetItem"], "resources": ["arn:aws:dynamodb:*:222222222222:table/orders"]}


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Stacks:
    """Staging with a region in an existing network, one with ways out, and one as the stacks make it."""
    folder: Path = tmp_path_factory.mktemp("given")
    text = (ENVIRONMENTS / "staging.toml").read_text()
    network = f'vpc = "{VPC}"\nsubnets = {json.dumps(SUBNETS)}\n'
    plane = f'[control_plane.network]\n{network}public_subnets = ["subnet-0000000c", "subnet-0000000d"]\n'
    dns = '[control_plane.dns]\nzone = "Z0123456789ABC"\ndomain = "staging.example.com"\n'
    told = '[[alarm_subscription]]\nprotocol = "email"\nendpoint = "oncall@example.com"\n'
    text = text.replace("[images]", f"{plane}{dns}{told}[images]")
    here, there = text.split('data = ["s3://example-staging-data-us/warehouse"]\n')
    given = f"[region.network]\n{network}endpoints = false\n"
    given += '[[region.egress]]\nname = "erp"\ncidr = "10.99.0.0/24"\nports = [5432, 8443]\n'
    text = f"{here}{given}{there}"
    here, there = text.split('data = ["s3://example-staging-data-eu/warehouse"]\n')
    ways = 'endpoints = ["dynamodb"]\n'
    for name, cidr, via in (
        ("factory", "10.98.0.0/16", TRANSIT),
        ("lake", "10.97.0.0/16", PEERING),
        ("internet", "0.0.0.0/0", "nat"),
    ):
        ways += f'[[region.egress]]\nname = "{name}"\ncidr = "{cidr}"\nports = [443]\nvia = "{via}"\n'
    more = f'ami = "ami-0123456789abcdef0"\ntask_statements = [{{ actions = {STATEMENT["actions"]}, resources = {STATEMENT["resources"]} }}]\n'
    there = there.replace('name = "default"\n', f'name = "default"\n{more}', 1)
    (folder / "staging.toml").write_text(f"{here}{ways}{there}")
    return read(synthesise(Settings("staging", folder), folder / "out"))


def of(stacks: Stacks, stack: str, kind: str) -> list[dict[str, Any]]:
    return [one for path, one in resources(stacks, kind) if path.startswith(f"{stack}/")]


@pytest.mark.parametrize("stack", ["control-plane", "edge-us-east-1"])
def test_existing_network_stays_as_it_is(stacks: Stacks, stack: str) -> None:
    """No VPC, subnet, route or flow log is made in it, and what is made stands in its subnets."""
    for kind in (
        "vpc",
        "subnet",
        "route",
        "route_table",
        "nat_gateway",
        "flow_log",
        "default_security_group",
    ):
        assert not of(stacks, stack, f"aws_{kind}"), kind
    groups = of(stacks, stack, "aws_security_group")
    assert {VPC} == {group["vpc_id"] for group in groups}
    for kind, key in (("lb", "subnets"), ("db_subnet_group", "subnet_ids"), ("vpc_endpoint", "subnet_ids")):
        for one in of(stacks, stack, f"aws_{kind}"):
            assert set(one.get(key, [])) <= {*SUBNETS, "subnet-0000000c", "subnet-0000000d"}, kind
    for one in of(stacks, stack, "aws_autoscaling_group"):
        assert one["vpc_zone_identifier"] == SUBNETS


def test_existing_endpoints_are_used(stacks: Stacks) -> None:
    """Where a VPC has endpoints, only the gateway's is made, and workers reach the VPC's range and S3."""
    [endpoint] = of(stacks, "edge-us-east-1", "aws_vpc_endpoint")
    assert "gateway_service_name" in endpoint["service_name"]
    rules = of(stacks, "edge-us-east-1", "aws_vpc_security_group_egress_rule")
    assert {(rule.get("cidr_ipv4"), rule["from_port"]) for rule in rules if rule.get("cidr_ipv4")} == {
        ("10.32.96.0/20", 443),
        ("10.99.0.0/24", 5432),
        ("10.99.0.0/24", 8443),
    }
    assert any("data.aws_prefix_list" in rule.get("prefix_list_id", "") for rule in rules)


def test_ways_out_of_a_region(stacks: Stacks) -> None:
    """Every private subnet routes a network's range to where it is; workers may open its ports, and no others."""
    routes = {
        (route["destination_cidr_block"], way): value
        for route in of(stacks, "edge-eu-west-1", "aws_route")
        for way in ("transit_gateway_id", "vpc_peering_connection_id", "nat_gateway_id", "gateway_id")
        if (value := route.get(way))
    }
    assert routes[("10.98.0.0/16", "transit_gateway_id")] == TRANSIT
    assert routes[("10.97.0.0/16", "vpc_peering_connection_id")] == PEERING
    assert ("0.0.0.0/0", "nat_gateway_id") in routes
    [attached] = of(stacks, "edge-eu-west-1", "aws_ec2_transit_gateway_vpc_attachment")
    assert (attached["transit_gateway_id"], len(attached["subnet_ids"])) == (TRANSIT, 3)
    opened = {
        rule["cidr_ipv4"]
        for rule in of(stacks, "edge-eu-west-1", "aws_vpc_security_group_egress_rule")
        if rule.get("cidr_ipv4")
    }
    assert opened == {"10.98.0.0/16", "10.97.0.0/16", "0.0.0.0/0"}
    names = {one["service_name"] for one in of(stacks, "edge-eu-west-1", "aws_vpc_endpoint")}
    assert "com.amazonaws.eu-west-1.dynamodb" in names
    [group] = of(stacks, "edge-eu-west-1", "aws_autoscaling_group")
    assert all("private" in subnet for subnet in group["vpc_zone_identifier"])
    assert not of(stacks, "edge-ap-southeast-2", "aws_nat_gateway")


def test_tasks_of_a_pool_may_more(stacks: Stacks) -> None:
    """The pool's task role has the statement, no other role has, and the boundary of all roles lets it pass."""
    granted = [
        path for path, one in resources(stacks, "aws_iam_role_policy") if "dynamodb:GetItem" in one["policy"]
    ]
    assert [path for path in granted if "edge-eu-west-1/default-task-role" not in path] == []
    assert len(granted) == 1
    [boundary] = [one for one in of(stacks, "bootstrap", "aws_iam_policy") if "boundary" in one["name"]]
    assert "dynamodb:*" in boundary["policy"]


def test_pool_has_its_machine_image(stacks: Stacks) -> None:
    """A pool's machine image is the one named, and the AMI's parameter is not read."""
    [template] = of(stacks, "edge-eu-west-1", "aws_launch_template")
    assert "ami-0123456789abcdef0" == template["image_id"]
    assert "aws_ssm_parameter" not in stacks["edge-eu-west-1"].get("data", {})


def test_names_point_at_the_balancers(stacks: Stacks) -> None:
    """The UI's host is in the domain and has a record; the gateway's, of another domain, has none."""
    records = of(stacks, "control-plane", "aws_route53_record")
    assert [(one["name"], one["zone_id"]) for one in records] == [
        ("airflow.staging.example.com", "Z0123456789ABC")
    ]


def test_every_topic_tells(stacks: Stacks) -> None:
    """The address hears of the alarms of the home region and of each edge region."""
    told = [path.split("/")[0] for path, _ in resources(stacks, "aws_sns_topic_subscription")]
    assert sorted(told) == ["control-plane", "edge-ap-southeast-2", "edge-eu-west-1", "edge-us-east-1"]


#: What Terraform takes for templates, in a value of each kind that takes any text.
TEMPLATES = """
task_statements = [{ actions = ["s3:GetObject"], resources = ["arn:aws:s3:::lake/${aws:PrincipalTag/team}/*"], conditions = { StringLike = { "s3:prefix" = ["%{if true}${x}", "${aws:userid}/*"] } } }]
task_env = { GREETING = "${NAME} %{time}" }
secrets_backend = "airflow.providers.amazon.aws.secrets.secrets_manager.SecretsManagerBackend"
secrets_backend_kwargs = { connections_prefix = "${prefix}" }
data_write = ["s3://example-out/${year}"]
"""


def test_values_are_no_templates(tmp_path: Path) -> None:
    """`${` and `%{` of an environment file reach AWS as they are written; the stacks' own references stay references."""
    (tmp_path / "environments").mkdir()
    (tmp_path / "policies").mkdir()
    text = (ENVIRONMENTS / "dev.toml").read_text()
    text = text.replace('name = "default"\n', f'name = "default"{TEMPLATES}', 1)
    text = text.replace(
        "[images]",
        '[control_plane.airflow]\n"logging.log_format" = "%{x} ${y}"\n[control_plane.environment]\nLINE = "${z}"\n[images]',
    )
    text += '[[team]]\nname = "a"\nbundles = ["${bundle}"]\n[[alarm_subscription]]\nprotocol = "https"\nendpoint = "https://x.test/${hook}"\n'
    (tmp_path / "environments/dev.toml").write_text(text)
    policy = 'schema = 1\n[[rule]]\nname = "all"\ndags = ["${dag}"]\n'
    (tmp_path / "policies/dev.toml").write_text(policy)
    stacks = read(synthesise(Settings("dev", tmp_path / "environments"), tmp_path / "out"))
    whole = json.dumps(stacks)
    known = r"(?:aws_|data\.|terraform_data\.|formatdate\()"
    assert [] == re.findall(rf"(?<!\$)\$\{{(?!{known}).{{20}}", whole)
    assert [] == re.findall(r"(?<!%)%\{.{20}", whole)
    [granted] = [
        one["policy"]
        for _, one in resources(stacks, "aws_iam_role_policy")
        if "PrincipalTag" in one["policy"]
    ]
    assert "arn:aws:s3:::lake/$${aws:PrincipalTag/team}/*" in granted
    assert policy == task_files.files(stacks, "gateway")["POLICY_TOML"]
    assert '"${prefix}"' in task_files.regions(stacks)
    outputs = stacks["edge-us-east-1"]["output"]
    assert (
        "$${prefix}" == outputs["keeps"]["value"]["default"]["secrets_backend_kwargs"]["connections_prefix"]
    )


def egress(**changes: Any) -> dict[str, Any]:
    return {"name": "erp", "cidr": "10.99.0.0/24", "ports": [443], "via": TRANSIT, **changes}


def plane(**changes: Any) -> dict[str, Any]:
    return {"control_plane": {**environment()["control_plane"], **changes}}


WRONG: list[tuple[str, dict[str, Any], str]] = [
    ("a right that changes rights", {"region": [region(pool=[pool(task_statements=[{**STATEMENT, "actions": ["iam:PassRole"]}])])]}, "region[0].pool[0].task_statements[0].actions[0]: iam:PassRole changes who may do what; no task gets it"),
    ("a right to everything", {"region": [region(pool=[pool(task_statements=[{**STATEMENT, "actions": ["s3:*"]}])])]}, "region[0].pool[0].task_statements[0].actions[0]: String should match"),
    ("a right on everything", {"region": [region(pool=[pool(task_statements=[{**STATEMENT, "resources": ["*"]}])])]}, "region[0].pool[0].task_statements[0].resources[0]: String should match"),
    ("no machine image", {"region": [region(pool=[pool(ami="latest")])]}, "region[0].pool[0].ami: String should match"),
    ("an odd way", {"region": [region(egress=[egress(via="igw-1")])]}, "region[0].egress[0].via: String should match"),
    ("no port", {"region": [region(egress=[egress(ports=[])])]}, "region[0].egress[0].ports"),
    ("one subnet", {"region": [region(network={"vpc": VPC, "subnets": SUBNETS[:1]})]}, "region[0].network.subnets: Tuple should have at least 2 items"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "changes", "message"), WRONG, ids=[what for what, _, _ in WRONG])
def test_wrong_value_is_named(what: str, changes: dict[str, Any], message: str) -> None:
    """The error names the key."""
    with pytest.raises(EnvironmentFileError) as refusal:
        environments.parse(environment(**changes), "test.toml")
    assert f"test.toml: {message}" in str(refusal.value)


UNSAFE: list[tuple[str, dict[str, Any], str]] = [
    ("no way there", {"region": [region(egress=[egress(via=None)])]}, "region eu-west-1: egress erp: via: is missing, and the network routes nothing there"),
    ("the region itself", {"region": [region(egress=[egress(cidr="10.1.0.0/24")])]}, "region eu-west-1: egress erp: cidr: 10.1.0.0/24 overlaps the region's own 10.1.0.0/20"),
    ("two ways", {"region": [region(egress=[egress(), egress(name="lake", via=PEERING)])]}, "region eu-west-1: egress erp: via: 10.99.0.0/24 has another way in lake"),
    ("a name twice", {"region": [region(egress=[egress(), egress(cidr="10.98.0.0/24")])]}, "region eu-west-1: egress: erp is given 2 times"),
    ("a route of somebody else", {"region": [region(network=GIVEN, egress=[egress()])]}, "region eu-west-1: egress erp: via: the existing network's own routes lead there"),
    ("a way of the cheap shape", {"shape": "development", "region": [region(egress=[egress()])]}, "region eu-west-1: egress erp: via: machines of the development shape"),
    ("a network of the cheap shape", {"shape": "development", "region": [region(network=GIVEN)]}, "region eu-west-1: network: the development shape makes networks of its own"),
    ("a public side", {"region": [region(network={**GIVEN, "public_subnets": SUBNETS})]}, "region eu-west-1: network.public_subnets: nothing of an edge region is public"),
    ("no public side", plane(network=GIVEN), "control_plane.network.public_subnets: the UI's balancer needs two or more"),
    ("no zone for the link", {"region": [region(), region(name="ap-northeast-2", cidr="10.2.0.0/20", zones=["az2", "az4"])]}, "region ap-northeast-2: zones: AWS has no endpoint of another region in az2 and az4"),
    ("an endpoint twice", {"region": [region(endpoints=["sqs"])]}, "region eu-west-1: endpoints: sqs is made for every region"),
    ("a foreign domain", plane(dns={"zone": "Z0123456789ABC", "domain": "example.com"}), "control_plane.dns.domain: example.com has neither of the names there are, airflow.test and gateway.airbridge.test"),
    ("no address", {"alarm_subscription": [{"protocol": "email", "endpoint": "oncall"}]}, "alarm_subscription: endpoint: 'oncall' is not an address, which email needs"),
]  # fmt: skip


@pytest.mark.parametrize(("what", "changes", "message"), UNSAFE, ids=[what for what, _, _ in UNSAFE])
def test_values_that_do_not_agree(what: str, changes: dict[str, Any], message: str) -> None:
    """The error names the key, and what would be right."""
    with pytest.raises(UnsafeStackError) as refusal:
        environments.parse(environment(**changes), "test.toml")
    assert f"test.toml: {message}" in str(refusal.value)


@pytest.fixture(scope="module")
def government(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Staging in GovCloud's two regions; the directory of its stacks."""
    folder: Path = tmp_path_factory.mktemp("government")
    text = (ENVIRONMENTS / "staging.toml").read_text().replace("arn:aws:", "arn:aws-us-gov:")
    text = "[[region]]".join(part for part in text.split("[[region]]") if "ap-southeast-2" not in part)
    for before, after in (("us-east-1", "us-gov-east-1"), ("eu-west-1", "us-gov-west-1")):
        text = text.replace(before, after)
    (folder / "staging.toml").write_text(text)
    return synthesise(Settings("staging", folder), folder / "out")


def test_stacks_of_another_partition_name_it_alone(government: Path) -> None:
    """Every ARN is of the partition of the regions: in policies, in the catalogue, and in what instances start with."""
    text = "".join(file.read_text() for file in government.glob("stacks/*/cdk.tf.json"))
    templates = resources(read(government), "aws_launch_template")
    text += "".join(base64.b64decode(one["user_data"]).decode() for _, one in templates)
    text += task_files.regions(read(government))
    assert set(re.findall(r"arn:aws[a-z-]*:", text)) == {"arn:aws-us-gov:"}
    assert "us-gov-west-1" in text
