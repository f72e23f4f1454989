"""Rules of VPCs, PrivateLink and Fargate that no emulator checks. Each states its source."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tests.infra.aws_rules.test_compute import resources
from tests.infra.conftest import ENVIRONMENTS, Stacks, read

from airbridge.infra import environment as environments
from airbridge.infra.app import synthesise
from airbridge.infra.settings import Settings

FOREIGN = r"prod-[a-z0-9-]+-starport-layer-bucket|al2023-repos-[a-z0-9-]+"
DOCKERFILE = Path(__file__).parents[3] / "images/control-plane.Dockerfile"


def containers(stacks: Stacks) -> list[tuple[str, dict[str, Any]]]:
    definitions = resources(stacks, "aws_ecs_task_definition")
    return [(path, one) for path, task in definitions for one in json.loads(task["container_definitions"])]


def test_writable_folders_are_volumes(prod: Stacks) -> None:
    """Fargate mounts a volume owned by root, mode 0755, unless the image declares a VOLUME at that path.

    https://docs.aws.amazon.com/AmazonECS/latest/developerguide/bind-mounts.html, "Fargate task storage" (read by a
    reviewer; not reached from where this was written).
    """
    [declared] = re.findall(r"^VOLUME (\[.*\])$", DOCKERFILE.read_text(), re.MULTILINE)
    for path, container in containers(prod):
        mounted = {mount["containerPath"] for mount in container["mountPoints"]}
        # The agent of ECS Exec, whose folders these are, is root.
        assert mounted - {"/managed-agents", "/var/lib/amazon", "/var/log/amazon"} <= set(
            json.loads(declared)
        ), path


def test_endpoint_service_admits_regions(prod: Stacks) -> None:
    """A balancer's security group sees the private address of the client behind an endpoint: the regions' networks.

    https://docs.aws.amazon.com/elasticloadbalancing/latest/network/load-balancer-security-groups.html
    """
    environment = environments.load(ENVIRONMENTS / "prod.toml")
    rules = resources(prod, "aws_vpc_security_group_ingress_rule")
    admitted = {
        one["cidr_ipv4"]
        for path, one in rules
        if "entrance-group-in" in path and one["from_port"] == 443 and one.get("cidr_ipv4")
    }
    assert {str(region.cidr) for region in environment.regions} <= admitted


def test_links_avoid_zones_without_remote_access(tmp_path: Path) -> None:
    """AWS refuses the endpoint of a service in another region in some zones; one in a given network is put where it may be.

    "Only the following availability zones are supported for remote access": see aws_facts.UNLINKED_ZONES.
    """
    text = (ENVIRONMENTS / "staging.toml").read_text()
    text = text.replace('home_region = "us-east-1"', 'home_region = "eu-west-1"')
    text = text.replace('name = "ap-southeast-2"', 'name = "ap-northeast-2"')
    given = '[region.network]\nvpc = "vpc-0a1b2c3d"\nsubnets = ["subnet-0000000a", "subnet-0000000b"]\nendpoints = false\n'
    before, after = text.split('data = ["s3://example-staging-data-ap/warehouse"]\n')
    (tmp_path / "staging.toml").write_text(before + given + after)
    stacks = read(synthesise(Settings("staging", tmp_path), tmp_path / "out"))
    links = {
        path.split("/")[0]: one["subnet_ids"]
        for path, one in resources(stacks, "aws_vpc_endpoint")
        if "service_region" in one
    }
    zones = {
        f"${{aws_subnet.{key}.id}}": one["availability_zone_id"]
        for stack in stacks.values()
        for key, one in stack["resource"].get("aws_subnet", {}).items()
        if "private" in key
    }
    assert ["use1-az1", "use1-az2"] == [zones[one] for one in links["edge-us-east-1"]]
    assert 3 == len(links["edge-eu-west-1"])
    [(name, found)] = stacks["edge-ap-northeast-2"]["data"]["aws_subnets"].items()
    assert f"${{data.aws_subnets.{name}.ids}}" == links["edge-ap-northeast-2"]
    filters = {one["name"]: set(one["values"]) for one in found["filter"]}
    assert {"subnet-0000000a", "subnet-0000000b"} == filters["subnet-id"]
    assert {"apne2-az1", "apne2-az3"} <= filters["availability-zone-id"]
    assert not {"apne2-az2", "apne2-az4"} & filters["availability-zone-id"]


def test_endpoint_service_names_its_account(prod: Stacks) -> None:
    """Without principals nobody but the owner may connect; named, a reviewer sees who may."""
    [(_, service)] = resources(prod, "aws_vpc_endpoint_service")
    assert ["arn:aws:iam::333333333333:root"] == service["allowed_principals"]


def test_endpoints_reach_own_account_only(prod: Stacks) -> None:
    """An endpoint without a policy passes any call: a region without internet could write to anybody's bucket.

    Three exceptions, all of them reads: ECR's layers and Amazon Linux's packages lie in buckets of AWS, the region's
    data perhaps in those of another account.
    https://docs.aws.amazon.com/AmazonECR/latest/userguide/vpc-endpoints.html#ecr-setting-up-s3-gateway
    """
    data = {
        prefix.removeprefix("s3://").split("/")[0]
        for region in environments.load(ENVIRONMENTS / "prod.toml").regions
        for prefix in region.data
    }
    found = [one for one in resources(prod, "aws_vpc_endpoint") if "com.amazonaws" in one[1]["service_name"]]
    assert found
    for path, endpoint in found:
        assert "policy" in endpoint, path
        for statement in json.loads(endpoint["policy"])["Statement"]:
            assert "Allow" == statement["Effect"]
            condition = statement.get("Condition", {}).get("StringEquals", {})
            if condition.get("aws:ResourceAccount") == "333333333333":
                continue
            if condition.get("aws:PrincipalAccount") == "333333333333":
                assert {"aws:ResourceAccount": "true"} == statement["Condition"]["Null"], path
                continue
            assert {"s3:GetObject", "s3:ListBucket"} >= set(_listed(statement["Action"])), path
            buckets = {each.removeprefix("arn:aws:s3:::").split("/")[0] for each in statement["Resource"]}
            foreign = {each for each in buckets if not re.fullmatch(FOREIGN, each)}
            assert foreign <= data, path


def test_services_are_checked_by_ecs(prod: Stacks) -> None:
    """Every service has a health check of its own: a process without its database is replaced."""
    services = {one["name"]: one for _, one in containers(prod)}
    for name in ("api-server", "scheduler", "dag-processor", "triggerer", "gateway"):
        assert services[name]["healthCheck"]["command"], name


def test_trigger_logs_are_written(prod: Stacks) -> None:
    """The triggerer uploads the logs of triggers to the home region's log bucket, and to no other."""
    [policy] = [
        json.loads(one["policy"])["Statement"]
        for path, one in resources(prod, "aws_iam_role_policy")
        if path.endswith("/triggerer/role/policy")
    ]
    home = environments.load(ENVIRONMENTS / "prod.toml").home_region
    assert f"arn:aws:s3:::airbridge-prod-{home}-logs-333333333333/logs/*" == policy[0]["Resource"]
    actions = {action for statement in policy for action in _listed(statement["Action"])}
    assert {"s3:PutObject", "kms:GenerateDataKey", "kms:Decrypt"} == actions


def test_old_token_keys_are_delivered(prod: Stacks) -> None:
    """A rotated key of access tokens is accepted until the last of its tokens has ended."""
    [gateway] = [one for path, one in containers(prod) if one["name"] == "gateway"]
    assert "/run/airbridge/token.pub.json" in json.dumps(gateway["command"])


def _listed(value: str | list[str]) -> list[str]:
    return value if isinstance(value, list) else [value]
