"""Connections that the runtime makes: each is let out, let in, and has a way and a right at AWS. No emulator drops a packet.

Groups are followed from what uses them (services, balancers, the database, launch templates), so that a connection is not listed
twice. https://docs.aws.amazon.com/vpc/latest/userguide/security-group-rules.html: without a rule, nothing passes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

from tests.infra.aws_rules.test_compute import resources, scripts
from tests.infra.conftest import ENVIRONMENTS, Stacks

from airbridge.infra import environment as environments

POSTGRES, HTTPS, ANYWHERE = 5432, 443, "0.0.0.0/0"  # a destination of rules, not an address to bind
PUT, TAKE = {"kms:Decrypt", "kms:GenerateDataKey"}, {"kms:Decrypt"}
#: Rights on keys that a call needs which writes or reads something encrypted.
#: https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-key-management.html
#: https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html#require-sse-kms
KEY_RIGHTS = {"sqs:SendMessage": PUT, "sqs:ReceiveMessage": TAKE, "s3:PutObject": PUT, "s3:GetObject": TAKE}
#: Endpoints of the services whose actions a region's roles have; the others' actions are not called on an instance.
ENDPOINTS = {
    "autoscaling": ["autoscaling"],
    "ecr": ["ecr.api", "ecr.dkr"],
    "logs": ["logs"],
    "s3": ["s3"],
    "sqs": ["sqs"],
    "ssm": ["ssm"],
    "ssmmessages": ["ssmmessages"],
    "sts": ["sts"],
}

Resource = dict[str, Any]


def named(reference: str) -> str:
    """Return the name of the resource that a reference is of."""
    return reference.removeprefix("${").split(".")[1]


def path(stack: Resource, kind: str, name: str) -> str:
    return str(stack["resource"][kind][name]["//"]["metadata"]["path"])


def group_path(stack: Resource, group: str) -> str:
    return path(stack, "aws_security_group", named(group))


def passing(stack: Resource, direction: str, group: str, port: int) -> Iterator[Resource]:
    """Yield a group's rules of a direction at a port."""
    for rule in stack["resource"].get(f"aws_vpc_security_group_{direction}_rule", {}).values():
        if rule["security_group_id"] == group and rule["from_port"] <= port <= rule["to_port"]:
            yield rule


def blocked(stack: Resource, source: str, target: str, port: int) -> list[str]:
    """Return what of the groups keeps `source` from `target`."""
    vpc = next(iter(stack["resource"]["aws_vpc"].values()))["cidr_block"]

    def of(rule: Resource, group: str) -> bool:
        network = rule.get("cidr_ipv4")
        inside = network is not None and ip_network(vpc).subnet_of(ip_network(network))
        return rule.get("referenced_security_group_id") == group or inside

    out, into = group_path(stack, source), group_path(stack, target)
    problems = []
    if not any(of(rule, target) for rule in passing(stack, "egress", source, port)):
        problems.append(f"{out}: no rule lets it out to {into} at port {port}")
    if not any(of(rule, source) for rule in passing(stack, "ingress", target, port)):
        problems.append(f"{into}: no rule lets {out} in at port {port}")
    return problems


def tasks(plane: Resource) -> list[Resource]:
    return list(plane["resource"]["aws_ecs_service"].values())


def groups(service: Resource) -> list[str]:
    return list(service["network_configuration"]["security_groups"])


def test_services_reach_the_database(prod: Stacks) -> None:
    """Every service connects to Postgres."""
    plane = prod["control-plane"]
    [database] = plane["resource"]["aws_db_instance"].values()
    for service in tasks(plane):
        for source in groups(service):
            for target in database["vpc_security_group_ids"]:
                assert [] == blocked(plane, source, target, POSTGRES)


def test_balancers_reach_their_targets(prod: Stacks) -> None:
    """Every listener's balancer reaches the container port of the services behind it."""
    plane = prod["control-plane"]
    balancers = plane["resource"]["aws_lb"]
    pairs = 0
    for listener in plane["resource"]["aws_lb_listener"].values():
        balancer = balancers[named(listener["load_balancer_arn"])]
        forwarded = {action["target_group_arn"] for action in listener["default_action"]}
        for service in tasks(plane):
            for joined in service.get("load_balancer", ()):
                if joined["target_group_arn"] not in forwarded:
                    continue
                pairs += 1
                for source in balancer["security_groups"]:
                    for target in groups(service):
                        assert [] == blocked(plane, source, target, joined["container_port"])
    assert pairs == len(plane["resource"]["aws_lb_listener"])


def test_regions_reach_the_gateway(prod: Stacks) -> None:
    """The gateway's balancer sees the private addresses of every region's workers, also over PrivateLink."""
    plane = prod["control-plane"]
    [entrance] = [
        one["security_groups"][0]
        for one in plane["resource"]["aws_lb"].values()
        if one["load_balancer_type"] == "network"
    ]
    rules = [rule.get("cidr_ipv4") for rule in passing(plane, "ingress", entrance, HTTPS)]
    for region in environments.load(ENVIRONMENTS / "prod.toml").regions:
        admitted = any(
            ip_network(str(region.cidr)).subnet_of(ip_network(network)) for network in rules if network
        )
        assert admitted, f"{group_path(plane, entrance)}: no rule lets {region.name} ({region.cidr}) in"


def edges(stacks: Stacks) -> Iterator[tuple[str, Resource]]:
    return ((name, stack) for name, stack in stacks.items() if name.startswith("edge-"))


def test_callers_reach_aws(prod: Stacks) -> None:
    """Services and workers reach every interface endpoint of their network, and workers the gateway's among them."""
    for name, stack in [*edges(prod), ("control-plane", prod["control-plane"])]:
        sources = {
            one
            for service in stack["resource"].get("aws_ecs_service", {}).values()
            for one in groups(service)
        }
        for template in stack["resource"].get("aws_launch_template", {}).values():
            sources |= set(template["network_interfaces"][0]["security_groups"])
        assert sources, name
        for endpoint in stack["resource"]["aws_vpc_endpoint"].values():
            for target in endpoint.get("security_group_ids") or ():
                for source in sources:
                    assert [] == blocked(stack, source, target, HTTPS), endpoint["service_name"]


def test_workers_reach_s3(prod: Stacks) -> None:
    """S3's endpoint is a gateway: rules name its prefix list, and each subnet of a pool has a table that the endpoint is in."""
    for _, stack in edges(prod):
        known = stack["resource"]
        [(name, endpoint)] = [
            one for one in known["aws_vpc_endpoint"].items() if one[1]["service_name"].endswith(".s3")
        ]
        routed = {
            named(one["subnet_id"])
            for one in known["aws_route_table_association"].values()
            if one["route_table_id"] in endpoint["route_table_ids"]
        }
        for group in known["aws_autoscaling_group"].values():
            for subnet in map(named, group["vpc_zone_identifier"]):
                where = path(stack, "aws_subnet", subnet)
                assert subnet in routed, f"{where}: no route to {path(stack, 'aws_vpc_endpoint', name)}"
        for template in known["aws_launch_template"].values():
            for source in template["network_interfaces"][0]["security_groups"]:
                lists = [rule.get("prefix_list_id") for rule in passing(stack, "egress", source, HTTPS)]
                assert f"${{aws_vpc_endpoint.{name}.prefix_list_id}}" in lists, group_path(stack, source)


def test_private_subnets_have_a_way_out(prod: Stacks) -> None:
    """The control plane's tasks reach the issuer of sign-ins and other regions' services through a NAT."""
    plane = prod["control-plane"]
    known = plane["resource"]
    out = {
        named(route["route_table_id"])
        for route in known["aws_route"].values()
        if route.get("destination_cidr_block") == ANYWHERE and "nat_gateway_id" in route
    }
    tables = {
        named(one["subnet_id"]): named(one["route_table_id"])
        for one in known["aws_route_table_association"].values()
    }
    for service in tasks(plane):
        for subnet in map(named, service["network_configuration"]["subnets"]):
            where = path(plane, "aws_subnet", subnet)
            assert tables.get(subnet) in out, f"{where}: its tasks have no route to a NAT"


def statements(policy: Resource) -> list[Resource]:
    found: list[Resource] = json.loads(policy["policy"])["Statement"]
    return found


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def test_called_services_have_an_endpoint(prod: Stacks) -> None:
    """A region without a NAT calls nothing but its endpoints: each service of its roles' actions has one."""
    for name, stack in edges(prod):
        if "aws_nat_gateway" in stack["resource"]:
            continue
        region = name.removeprefix("edge-")
        present = {
            one["service_name"].removeprefix(f"com.amazonaws.{region}.")
            for one in stack["resource"]["aws_vpc_endpoint"].values()
        }
        for policy in stack["resource"]["aws_iam_role_policy"].values():
            for statement in statements(policy):
                for service in {action.split(":")[0] for action in listed(statement["Action"])}:
                    missing = set(ENDPOINTS.get(service, ())) - present
                    assert not missing, (
                        f"{name}: {policy['//']['metadata']['path']} calls {service}; no endpoint {missing}"
                    )


def keys(stack: Resource) -> dict[str, str]:
    """Return the key of each encrypted queue and bucket of a stack, by the reference of its ARN."""
    known = stack["resource"]
    found = {
        f"${{aws_sqs_queue.{name}.arn}}": str(one["kms_master_key_id"])
        for name, one in known.get("aws_sqs_queue", {}).items()
    }
    for one in known.get("aws_s3_bucket_server_side_encryption_configuration", {}).values():
        default = one["rule"][0]["apply_server_side_encryption_by_default"]
        found[f"${{aws_s3_bucket.{named(one['bucket'])}.arn}}"] = str(default["kms_master_key_id"])
    return found


def test_roles_may_use_the_keys_of_their_things(prod: Stacks) -> None:
    """Whoever writes or reads something encrypted needs rights on its key, or is refused by KMS and not by the thing."""
    checked = 0
    for _, stack in edges(prod):
        encrypted = keys(stack)
        for policy in stack["resource"]["aws_iam_role_policy"].values():
            granted = {
                (action, resource)
                for one in statements(policy)
                for action in listed(one["Action"])
                for resource in listed(one["Resource"])
            }
            for action, resource in sorted(granted):
                arn = re.match(r"\$\{[^}]*\}", resource)
                if action not in KEY_RIGHTS or not arn or arn[0] not in encrypted:
                    continue
                checked += 1
                missing = {right for right in KEY_RIGHTS[action] if (right, encrypted[arn[0]]) not in granted}
                where = policy["//"]["metadata"]["path"]
                assert not missing, f"{where}: {action} on {resource} without {sorted(missing)} on its key"
    assert checked > 5


def test_keys_admit_the_services_that_use_them(prod: Stacks) -> None:
    """CloudWatch Logs and alarms use a key in their own name: the key's policy must have them, or the group is refused.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/encrypt-log-data-kms.html
    """
    for name, stack in edges(prod):
        region = name.removeprefix("edge-")
        for key in stack["resource"]["aws_kms_key"].values():
            where = key["//"]["metadata"]["path"]
            admitted = {one["Principal"].get("Service") for one in statements(key)}
            for service in (f"logs.{region}.amazonaws.com", "cloudwatch.amazonaws.com"):
                assert service in admitted, f"{where}: its policy does not admit {service}"


def test_instances_pull_the_digest_that_they_report(prod: Stacks) -> None:
    """The gateway compares the digest that a worker reports with the release: it must be that of the image it runs."""
    templates = [one["//"]["metadata"]["path"] for _, one in resources(prod, "aws_launch_template")]
    for where, script in zip(templates, scripts(prod), strict=True):
        reported = re.findall(r"^AIRBRIDGE_WORKER_IMAGE_DIGEST=(\S+)$", script, re.MULTILINE)
        pulled = re.findall(r"docker pull \S+@(\S+)$", script, re.MULTILINE)
        assert reported == pulled, f"{where}: it reports {reported} and pulls {pulled}"
        assert len(reported) == 1, where
