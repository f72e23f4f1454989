"""Rules of the first deployment into an empty account: whatever a task needs at its start exists, and is filled, before it."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from moto.ec2.models.availability_zones_and_regions import RegionsAndZonesBackend as KNOWN  # noqa: N814
from tests.infra.aws_rules.test_compute import resources
from tests.infra.conftest import Stacks

from airbridge.infra import aws_facts, service_secrets
from airbridge.infra.tools import secrets, subset

FILLED_BY_HAND = ("aws_secretsmanager_secret", "aws_ecr_repository")
STARTS_TASKS = ("aws_ecs_service", "terraform_data", "aws_autoscaling_group")


def kinds(stack: dict[str, Any]) -> set[str]:
    return set(stack["resource"])


def test_empty_things_have_own_stack(prod: Stacks) -> None:
    """Terraform makes secrets without values and repositories without images: a stack that makes them starts no task.

    ECS fails to start a task whose secret has no value (ResourceInitializationError) or whose image is missing
    (CannotPullContainerError), and the migration runs once.
    """
    making = {name for name, stack in prod.items() if kinds(stack) & set(FILLED_BY_HAND)}
    assert {"foundation"} == making
    assert not kinds(prod["foundation"]) & set(STARTS_TASKS)


def test_foundation_needs_no_other_stack(prod: Stacks) -> None:
    """It is the first stack after bootstrap; the control plane reads its outputs, the regions the control plane's."""
    read = {
        name: set(stack.get("data", {}).get("terraform_remote_state", {})) for name, stack in prod.items()
    }
    assert not read["foundation"]
    assert {"foundation"} == read["control-plane"]
    assert all({"control-plane"} == read[name] for name in read if name.startswith("edge-"))


def test_read_outputs_exist(prod: Stacks) -> None:
    """Every output that a stack reads of another one is an output of it, down to the key in a map."""
    for name, stack in prod.items():
        for other in stack.get("data", {}).get("terraform_remote_state", {}):
            marker = f"${{data.terraform_remote_state.{other}.outputs."
            for piece in json.dumps(stack["resource"]).split(marker)[1:]:
                output, _, key = piece.partition("}")[0].partition(".")
                value = prod[other]["output"][output]["value"]
                assert not key or key in value, f"{name}: {other} has no output {output}.{key}"


def test_secrets_have_a_filler(prod: Stacks) -> None:
    """The command that fills secrets has a value for each secret of the stack, the client's included."""
    made = {
        one["name"].removeprefix("airbridge-prod/") for _, one in resources(prod, "aws_secretsmanager_secret")
    }
    assert set(service_secrets.described(client_secret=True)) == made
    assert made == {*secrets.FILES, *secrets.GENERATED, secrets.CLIENT_SECRET}


def waited_for(stack: dict[str, Any], address: str) -> set[str]:
    """Return what Terraform makes before a resource: by references and `depends_on`, of either's dependencies too."""
    kind, _, name = address.partition(".")
    found: set[str] = set()
    queue = [(kind, name)]
    while queue:
        kind, name = queue.pop()
        for other in subset.references(stack["resource"][kind][name]):
            if not other.startswith("data.") and other not in found:
                found.add(other)
                other_kind, _, other_name = other.partition(".")
                queue.append((other_kind, other_name))
    return found


def starts(stack: dict[str, Any]) -> list[str]:
    return [
        f"{kind}.{name}" for kind in ("aws_ecs_service", "terraform_data") for name in stack["resource"][kind]
    ]


def test_tasks_wait_for_their_network(prod: Stacks) -> None:
    """A task pulls its image and reads its secrets over routes, endpoints and rules, which no reference of it names.

    The migration runs once, while Terraform makes whatever nothing waits for: before the NAT's route it cannot start.
    """
    plane = prod["control-plane"]
    network = {
        f"{kind}.{name}"
        for kind in (
            "aws_nat_gateway",
            "aws_route",
            "aws_route_table_association",
            "aws_vpc_endpoint",
            "aws_vpc_security_group_egress_rule",
            "aws_vpc_security_group_ingress_rule",
        )
        for name in plane["resource"][kind]
    }
    assert len(network) > 20
    for address in starts(plane):
        assert not network - waited_for(plane, address), address


def test_tasks_wait_for_their_roles(prod: Stacks) -> None:
    """A role's policy is a resource of its own: the task that ECS starts before it may neither pull nor read."""
    plane = prod["control-plane"]
    policies = plane["resource"]["aws_iam_role_policy"]
    for address in starts(plane):
        waited = waited_for(plane, address)
        roles = {
            one for one in waited if one.startswith("aws_iam_role.") and "/services/" in path_of(plane, one)
        }
        assert roles
        missing = {
            name
            for name, policy in policies.items()
            if subset.references(policy["role"]) & roles and f"aws_iam_role_policy.{name}" not in waited
        }
        assert not missing, address


def path_of(stack: dict[str, Any], address: str) -> str:
    kind, _, name = address.partition(".")
    return str(stack["resource"][kind][name]["//"]["metadata"]["path"])


def test_services_wait_for_their_listeners(prod: Stacks) -> None:
    """ECS refuses a service whose target group no listener forwards to.

    "The target group ... does not have an associated load balancer", ECS developer guide, service event messages.
    """
    plane = prod["control-plane"]
    for name, service in plane["resource"]["aws_ecs_service"].items():
        targets = {
            one for balanced in service.get("load_balancer", ()) for one in subset.references(balanced)
        }
        forwarding = {
            f"aws_lb_listener.{listener}"
            for listener, one in plane["resource"]["aws_lb_listener"].items()
            if subset.references(one["default_action"]) & targets
        }
        assert len(forwarding) >= len(targets)
        assert forwarding <= waited_for(plane, f"aws_ecs_service.{name}")


def test_apply_waits_for_steady_services(prod: Stacks) -> None:
    """An apply that ends while its services do not start is no success; their own waits are within the time."""
    for _, service in resources(prod, "aws_ecs_service"):
        assert service["wait_for_steady_state"] is True
        assert {"create": "30m", "update": "30m"} == service["timeouts"]


def test_zones_are_named_by_id(prod: Stacks) -> None:
    """Each account has other letters for the same zones: an id names the same zone in all of them.

    https://docs.aws.amazon.com/ram/latest/userguide/working-with-az-ids.html
    """
    subnets = list(resources(prod, "aws_subnet"))
    assert subnets
    for path, subnet in subnets:
        assert "availability_zone" not in subnet, path
        assert re.fullmatch(r"[a-z]+\d-az\d", subnet["availability_zone_id"]), path
    homes = {one["availability_zone_id"] for path, one in subnets if path.startswith("control-plane/")}
    assert {"use1-az1", "use1-az2", "use1-az3"} == homes


@pytest.mark.parametrize("region", sorted(KNOWN.zones))
def test_default_zones_exist(region: str) -> None:
    """The ids are derived from the region's name: those that moto lists have the form, and have the default zones."""
    known = {zone.zone_id for zone in KNOWN.zones[region]}
    chosen = {aws_facts.zone_id(region, zone) for zone in aws_facts.zones(region)}
    assert chosen <= known
    assert min(3, len(known)) == len(chosen)
