"""Faults planted in the stacks one at a time: a rule finds each, and names the resource.

Faults of an account are planted in tests/infra/test_preflight.py.
"""

from __future__ import annotations

import base64
import copy
import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from tests.infra.aws_rules import test_compute, test_first_deploy, test_iam, test_network, test_reachability
from tests.infra.conftest import Stacks

Plant = Callable[[Stacks], None]
EDGE, PLANE = "edge-eu-west-1", "control-plane"


def at(stacks: Stacks, kind: str, path: str, section: str = "resource") -> dict[str, Any]:
    """Return a resource by its path."""
    known: dict[str, dict[str, Any]] = stacks[path.split("/", maxsplit=1)[0]][section][kind]
    [found] = [one for one in known.values() if one["//"]["metadata"]["path"] == path]
    return found


def without(kind: str, path: str) -> Plant:
    """Return what takes a resource out of its stack."""

    def plant(stacks: Stacks) -> None:
        known = stacks[path.split("/", maxsplit=1)[0]]["resource"][kind]
        [name] = [name for name, one in known.items() if one["//"]["metadata"]["path"] == path]
        del known[name]

    return plant


def no_secret(stacks: Stacks) -> None:
    del stacks["foundation"]["output"]["secret_arns"]["value"]["fernet-key"]


def other_digest(stacks: Stacks) -> None:
    template = at(stacks, "aws_launch_template", f"{EDGE}/pool-default/template")
    script = base64.b64decode(template["user_data"]).decode()
    wrong = re.sub(r"(docker pull \S+@sha256:)[0-9a-f]{64}", rf"\g<1>{32 * 'ab'}", script)
    template["user_data"] = base64.b64encode(wrong.encode()).decode()


def no_key_grant(stacks: Stacks) -> None:
    policy = at(stacks, "aws_iam_role_policy", f"{EDGE}/default-role/policy")
    document = json.loads(policy["policy"])
    document["Statement"] = [one for one in document["Statement"] if one["Sid"] != "UseKey"]
    policy["policy"] = json.dumps(document)


def key_without_logs(stacks: Stacks) -> None:
    key = at(stacks, "aws_kms_key", f"{EDGE}/key/key")
    document = json.loads(key["policy"])
    document["Statement"] = [one for one in document["Statement"] if one["Sid"] != "UseLogs"]
    key["policy"] = json.dumps(document)


def unknown_ami(stacks: Stacks) -> None:
    parameter = at(stacks, "aws_ssm_parameter", f"{EDGE}/image-default", "data")
    parameter["name"] = re.sub(r"2023\.0\.\d+", "2023.0.20250805", parameter["name"])


def retired_engine(stacks: Stacks) -> None:
    at(stacks, "aws_db_instance", f"{PLANE}/database/instance")["engine_version"] = "16.8"


def open_endpoint(stacks: Stacks) -> None:
    del at(stacks, "aws_vpc_endpoint", f"{EDGE}/network/s3")["policy"]


def misspelt_action(stacks: Stacks) -> None:
    policy = at(stacks, "aws_iam_role_policy", f"{EDGE}/default-role/policy")
    policy["policy"] = policy["policy"].replace("sqs:ReceiveMessage", "sqs:RecieveMessage")


def no_boundary(stacks: Stacks) -> None:
    del at(stacks, "aws_iam_role", f"{EDGE}/default-role/role")["permissions_boundary"]


def zone_by_letter(stacks: Stacks) -> None:
    at(stacks, "aws_subnet", f"{EDGE}/network/private-az1")["availability_zone"] = "eu-west-1a"


RULES: dict[str, tuple[Plant, Callable[[Stacks], None], str]] = {
    "a missing secret": (no_secret, test_first_deploy.test_read_outputs_exist, "control-plane: foundation has no output secret_arns.fernet-key"),
    "a closed security group": (without("aws_vpc_security_group_ingress_rule", f"{PLANE}/network/database-group-in-from-services-group"), test_reachability.test_services_reach_the_database, f"{PLANE}/network/database-group: no rule lets {PLANE}/network/services-group in at port 5432"),
    "a group that lets nothing out": (without("aws_vpc_security_group_egress_rule", f"{EDGE}/network/workers-default-group-out-gateway"), test_reachability.test_callers_reach_aws, f"{EDGE}/network/workers-default-group: no rule lets it out to {EDGE}/network/gateway-group at port 443"),
    "a balancer before a closed port": (without("aws_vpc_security_group_ingress_rule", f"{PLANE}/network/gateways-group-in-entrance-8444"), test_reachability.test_balancers_reach_their_targets, f"{PLANE}/network/gateways-group: no rule lets {PLANE}/network/entrance-group in at port 8444"),
    "a region that PrivateLink drops": (without("aws_vpc_security_group_ingress_rule", f"{PLANE}/network/entrance-group-in-workers-eu-west-1"), test_reachability.test_regions_reach_the_gateway, f"{PLANE}/network/entrance-group: no rule lets eu-west-1"),
    "no NAT behind a subnet": (without("aws_route", f"{PLANE}/network/private-az1-out"), test_reachability.test_private_subnets_have_a_way_out, f"{PLANE}/network/private-az1: its tasks have no route to a NAT"),
    "a missing endpoint": (without("aws_vpc_endpoint", f"{EDGE}/network/endpoint-sqs"), test_reachability.test_called_services_have_an_endpoint, f"{EDGE}/default-role/policy calls sqs; no endpoint {{'sqs'}}"),
    "a wrong digest": (other_digest, test_reachability.test_instances_pull_the_digest_that_they_report, f"{EDGE}/pool-default/template: it reports"),
    "a missing KMS grant": (no_key_grant, test_reachability.test_roles_may_use_the_keys_of_their_things, f"{EDGE}/default-role/policy: s3:GetObject on"),
    "a key without CloudWatch Logs": (key_without_logs, test_reachability.test_keys_admit_the_services_that_use_them, f"{EDGE}/key/key: its policy does not admit logs.eu-west-1.amazonaws.com"),
    "an unknown AMI": (unknown_ami, test_compute.test_machine_images_were_released, f"{EDGE}/image-default: "),
    "a retired engine": (retired_engine, test_compute.test_database_version_can_be_created, f"{PLANE}/database/instance"),
    "an endpoint for any bucket": (open_endpoint, test_network.test_endpoints_reach_own_account_only, f"{EDGE}/network/s3"),
    "a misspelt action": (misspelt_action, test_iam.only_known_actions, f"{EDGE}/default-role/policy', 'sqs:RecieveMessage"),
    "a role without a boundary": (no_boundary, test_iam.test_roles_have_the_boundary, f"{EDGE}/default-role/role"),
    "a zone by its letter": (zone_by_letter, test_first_deploy.test_zones_are_named_by_id, f"{EDGE}/network/private-az1"),
}  # fmt: skip


@pytest.mark.parametrize("fault", RULES)
def test_planted_fault_is_found(prod: Stacks, fault: str) -> None:
    """The rule holds on the stacks as they are, fails on those with the fault, and its message names the resource."""
    plant, rule, says = RULES[fault]
    rule(prod)
    stacks = copy.deepcopy(prod)
    plant(stacks)
    with pytest.raises(AssertionError) as found:
        rule(stacks)
    assert says in str(found.value)
