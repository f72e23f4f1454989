"""AWS's rules over stacks with sites: what the gateway and workers of a site call has a right, a way and room in the policies."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from tests.infra.aws_rules import test_iam, test_network, test_reachability
from tests.infra.aws_rules.test_compute import resources
from tests.infra.aws_rules.test_limits import LIMITS
from tests.infra.conftest import ENVIRONMENTS, Stacks, read
from tests.infra.sites import ABROAD, HOME, TOML, resolved

from airbridge.infra.app import synthesise
from airbridge.infra.emulator.policies import Decision, Request, decide
from airbridge.infra.settings import Settings

ACCOUNT, BASE = "333333333333", "airbridge-prod-site"
PLANE, EDGES = "control-plane", {f"edge-{ABROAD}": ABROAD, f"edge-{HOME}": HOME}
GATEWAY = "airbridge-prod-gateway"
Rule = Callable[[Stacks], None]


def synthesised(folder: Path, sites: str) -> Stacks:
    (folder / "prod.toml").write_text((ENVIRONMENTS / "prod.toml").read_text() + sites)
    return read(synthesise(Settings("prod", folder), folder / "out"))


@pytest.fixture(scope="module")
def stacks(tmp_path_factory: pytest.TempPathFactory) -> Stacks:
    """Production with a site behind the gateway and one with brokered credentials."""
    return synthesised(tmp_path_factory.mktemp("sites"), TOML)


RULES: list[Rule] = [
    test_iam.only_known_actions,
    test_iam.test_unnamed_actions_have_any_resource,
    test_iam.test_policies_fit_quotas,
    test_iam.test_roles_have_the_boundary,
    test_iam.test_boundary_covers_runtime_actions,
    test_network.test_endpoints_reach_own_account_only,
    test_reachability.test_called_services_have_an_endpoint,
    test_reachability.test_roles_may_use_the_keys_of_their_things,
    test_reachability.test_private_subnets_have_a_way_out,
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds_with_sites(stacks: Stacks, rule: Rule) -> None:
    """Every rule of AWS that stacks without sites keep."""
    rule(stacks)


def test_site_roles_are_of_a_deployment(stacks: Stacks) -> None:
    """The deploy role may make the resources of sites: its patterns of names have them."""
    patterns = {
        pattern for one in test_iam.allowed(stacks, "deploy") for pattern in test_iam.listed(one["Resource"])
    }
    for kind, attribute, arn in (
        ("aws_sqs_queue", "name", "arn:aws:sqs:eu-west-1:{account}:{name}"),
        ("aws_s3_bucket", "bucket", "arn:aws:s3:::{name}"),
        ("aws_iam_role", "name", "arn:aws:iam::{account}:role/{name}"),
    ):
        made = [
            str(one[attribute]) for _, one in resources(stacks, kind) if str(one[attribute]).startswith(BASE)
        ]
        assert made, kind
        for name in made:
            asked = arn.format(account=ACCOUNT, name=name)
            everything = [
                {"Statement": [{"Effect": "Allow", "Action": "x", "Resource": sorted(patterns - {"*"})}]}
            ]
            assert decide(Request("arn:aws:iam::1:role/r", "x", asked), everything) is Decision.ALLOWED, asked


@dataclass(frozen=True)
class Call:
    """A call of the gateway for a site: in which region, of which action, on what."""

    region: str
    action: str
    resource: str
    context: tuple[tuple[str, str], ...] = ()


def calls() -> Iterator[Call]:
    """Yield what the gateway calls for the sites (transfer/sources.py, brokering/sts.py)."""
    queue = f"arn:aws:sqs:{ABROAD}:{ACCOUNT}:{BASE}-factory-7-default"
    for action in ("ReceiveMessage", "DeleteMessage", "ChangeMessageVisibility"):
        yield Call(ABROAD, f"sqs:{action}", queue)
    logs, code = (f"arn:aws:s3:::{BASE}-factory-7-{kind}-{ACCOUNT}" for kind in ("logs", "bundles"))
    for action in ("GetObject", "PutObject", "DeleteObject", "AbortMultipartUpload"):
        yield Call(ABROAD, f"s3:{action}", f"{logs}/logs/a/full.log")
    yield Call(ABROAD, "s3:ListBucket", logs, (("s3:prefix", "logs/a/"),))
    yield Call(ABROAD, "s3:GetObject", f"{code}/bundles/main/x.tar.gz")
    for pool in ("default", "press"):
        yield Call(HOME, "sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/{BASE}-depot-3-{pool}")
    for region in (HOME, ABROAD):
        alias = (("kms:ResourceAliases", f"alias/airbridge-prod-{region}"),)
        for action in ("Decrypt", "GenerateDataKey"):
            yield Call(region, f"kms:{action}", f"arn:aws:kms:{region}:{ACCOUNT}:key/1", alias)


def every_call_has_a_right(stacks: Stacks) -> None:
    """Fail with the first call that IAM, or the queue's own policy, denies the gateway."""
    identity = _policies(stacks)
    role = f"arn:aws:iam::{ACCOUNT}:role/{GATEWAY}"
    for call in calls():
        context = {"aws:ResourceAccount": ACCOUNT, "aws:PrincipalArn": role, "aws:SecureTransport": "true"}
        asked = Request(role, call.action, call.resource, {**context, **dict(call.context)})
        found = decide(asked, identity, _of_queue(stacks, call))
        assert found is Decision.ALLOWED, f"{GATEWAY}: {call.action} on {call.resource} is {found.value}"


def _policies(stacks: Stacks) -> list[dict[str, Any]]:
    return [
        json.loads(one["policy"])
        for path, one in resources(stacks, "aws_iam_role_policy")
        if "/services/gateway/" in path
    ]


def _of_queue(stacks: Stacks, call: Call) -> list[dict[str, Any]]:
    edge = resolved(stacks[f"edge-{call.region}"], call.region, ACCOUNT)
    name = call.resource.rpartition(":")[2]
    found = edge["resource"]["aws_sqs_queue_policy"].values()
    return [json.loads(one["policy"]) for one in found if one["queue_url"].endswith(f"/{name}")]


def every_call_has_a_way(stacks: Stacks) -> None:
    """Fail with the first call that no endpoint of the control plane passes, and that its group does not let out to the internet."""
    plane = stacks[PLANE]
    [service] = [one for one in test_reachability.tasks(plane) if one["name"] == GATEWAY]
    sources = test_reachability.groups(service)
    endpoints = {
        one["service_name"].removeprefix(f"com.amazonaws.{HOME}."): one
        for one in plane["resource"]["aws_vpc_endpoint"].values()
    }
    for call in calls():
        kind = call.action.split(":")[0]
        endpoint = endpoints.get(kind) if call.region == HOME else None
        if endpoint is None:
            out = [
                rule
                for source in sources
                for rule in test_reachability.passing(plane, "egress", source, test_reachability.HTTPS)
                if rule.get("cidr_ipv4") == test_reachability.ANYWHERE
            ]
            assert out, f"{GATEWAY}: no rule lets it out to {kind} of {call.region}"
            continue
        asked = Request("arn:aws:iam::1:role/r", call.action, call.resource, {"aws:ResourceAccount": ACCOUNT})
        passed = decide(asked, [], [json.loads(endpoint["policy"])])
        assert passed is Decision.ALLOWED, f"{kind}'s endpoint does not pass {call.action} on {call.resource}"


def sites_reach_the_gateway(stacks: Stacks) -> None:
    """Fail with the first network of a site that the gateway's balancer does not admit."""
    plane = stacks[PLANE]
    [entrance] = [
        one["security_groups"][0]
        for one in plane["resource"]["aws_lb"].values()
        if one["load_balancer_type"] == "network"
    ]
    rules = test_reachability.passing(plane, "ingress", entrance, test_reachability.HTTPS)
    admitted = [ip_network(rule["cidr_ipv4"]) for rule in rules if rule.get("cidr_ipv4")]
    for network in map(ip_network, ("10.200.0.0/16", "10.201.0.0/24")):
        assert any(network.subnet_of(one) for one in admitted), f"the entrance's group lets {network} not in"  # type: ignore[arg-type]  # both are IPv4


def test_gateway_may_call(stacks: Stacks) -> None:
    """IAM allows the gateway each call for a site, and the queue's policy does not deny it."""
    every_call_has_a_right(stacks)


def test_gateway_has_a_way(stacks: Stacks) -> None:
    """Each call passes an endpoint of its region in the control plane's network, or leaves by the NAT."""
    every_call_has_a_way(stacks)


def test_sites_reach_the_gateway(stacks: Stacks) -> None:
    """The balancer admits the networks that workers of sites come from."""
    sites_reach_the_gateway(stacks)


DENIED = {
    "a region's queue": Call(ABROAD, "sqs:ReceiveMessage", f"arn:aws:sqs:{ABROAD}:{ACCOUNT}:airbridge-prod-{ABROAD}-default"),
    "a brokered site's queue": Call(HOME, "sqs:ReceiveMessage", f"arn:aws:sqs:{HOME}:{ACCOUNT}:{BASE}-depot-3-default"),
    "dead letters": Call(ABROAD, "sqs:ReceiveMessage", f"arn:aws:sqs:{ABROAD}:{ACCOUNT}:{BASE}-factory-7--dead-letters"),
    "forged work": Call(ABROAD, "sqs:SendMessage", f"arn:aws:sqs:{ABROAD}:{ACCOUNT}:{BASE}-factory-7-default"),
    "a region's logs": Call(ABROAD, "s3:GetObject", f"arn:aws:s3:::airbridge-prod-{ABROAD}-logs-{ACCOUNT}/logs/a"),
    "beside the logs": Call(ABROAD, "s3:PutObject", f"arn:aws:s3:::{BASE}-factory-7-logs-{ACCOUNT}/data/a"),
    "a worker's role": Call(HOME, "sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/airbridge-prod-{HOME}-default-worker"),
    "the deploy role": Call(HOME, "sts:AssumeRole", f"arn:aws:iam::{ACCOUNT}:role/airbridge-prod-pipeline-deploy"),
    "the state's key": Call(HOME, "kms:Decrypt", f"arn:aws:kms:{HOME}:{ACCOUNT}:key/1", (("kms:ResourceAliases", "alias/airbridge-prod-state"),)),
}  # fmt: skip


@pytest.mark.parametrize("what", DENIED)
def test_gateway_may_not(stacks: Stacks, what: str) -> None:
    """The patterns of names are of sites alone: the gateway is refused everything beside them."""
    call, role = DENIED[what], f"arn:aws:iam::{ACCOUNT}:role/{GATEWAY}"
    context = {"aws:ResourceAccount": ACCOUNT, "aws:PrincipalArn": role, "aws:SecureTransport": "true"}
    asked = Request(role, call.action, call.resource, {**context, **dict(call.context)})
    assert decide(asked, _policies(stacks), _of_queue(stacks, call)) is not Decision.ALLOWED


def without_statement(sid: str) -> Rule:
    """Return what takes a statement from the gateway's policies."""

    def plant(stacks: Stacks) -> None:
        for path, one in resources(stacks, "aws_iam_role_policy"):
            if "/services/gateway/" in path:
                document = json.loads(one["policy"])
                document["Statement"] = [each for each in document["Statement"] if each["Sid"] != sid]
                one["policy"] = json.dumps(document)

    return plant


def foreign_receiver(stacks: Stacks) -> None:
    for path, one in resources(stacks, "aws_sqs_queue_policy"):
        if "/beside/factory-7/" in path:
            one["policy"] = one["policy"].replace(f":role/{GATEWAY}", ":role/airbridge-prod-worker")


def no_network(stacks: Stacks) -> None:
    rules = stacks[PLANE]["resource"]["aws_vpc_security_group_ingress_rule"]
    [gone] = [name for name, one in rules.items() if one.get("cidr_ipv4") == "10.201.0.0/24"]
    del rules[gone]


def narrow_endpoint(stacks: Stacks) -> None:
    for one in stacks[PLANE]["resource"]["aws_vpc_endpoint"].values():
        if one["service_name"].endswith(".sts"):
            one["policy"] = one["policy"].replace(ACCOUNT, "999999999999")


def no_way_out(stacks: Stacks) -> None:
    rules = stacks[PLANE]["resource"]["aws_vpc_security_group_egress_rule"]
    for name in [name for name, one in rules.items() if one.get("cidr_ipv4") == test_reachability.ANYWHERE]:
        del rules[name]


FAULTS: dict[str, tuple[Rule, Rule, str]] = {
    "no right to receive": (without_statement("ReceiveForSites"), every_call_has_a_right, "sqs:ReceiveMessage on"),
    "no right to logs": (without_statement("UseSiteLogs"), every_call_has_a_right, "s3:GetObject on"),
    "no list of logs": (without_statement("ListSiteLogs"), every_call_has_a_right, "s3:ListBucket on"),
    "no right to roles": (without_statement("BrokerCredentials"), every_call_has_a_right, "sts:AssumeRole on"),
    "no use of keys": (without_statement("EncryptSnapshots"), every_call_has_a_right, "kms:Decrypt on"),
    "a queue that another receives from": (foreign_receiver, every_call_has_a_right, "factory-7-default is denied"),
    "a network that is dropped": (no_network, sites_reach_the_gateway, "10.201.0.0/24"),
    "an endpoint for others' roles": (narrow_endpoint, every_call_has_a_way, "sts's endpoint does not pass sts:AssumeRole"),
    "a gateway without a way out": (no_way_out, every_call_has_a_way, f"no rule lets it out to sqs of {ABROAD}"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(stacks: Stacks, fault: str) -> None:
    """The rule holds on the stacks as they are, fails on those with the fault, and its message names the call."""
    plant, rule, says = FAULTS[fault]
    rule(stacks)
    faulty = copy.deepcopy(stacks)
    plant(faulty)
    with pytest.raises(AssertionError) as found:
        rule(faulty)
    assert says in str(found.value)


def test_forty_sites_fit(tmp_path: Path) -> None:
    """Twenty sites beside each of two regions: names, policies, parameters and groups stay inside AWS's limits."""
    text = "".join(
        f'[[site]]\nname = "site-number-{number}"\nbeside = "{(HOME, ABROAD)[number % 2]}"\n'
        + (
            'transport = "gateway"\n'
            if number % 4 < 2
            else 'transport = "direct"\ncredentials = "brokered"\n'
        )
        + f'networks = ["10.{100 + number}.0.0/16"]\n[[site.pool]]\nslots = 4\n'
        for number in range(40)
    )
    stacks = synthesised(tmp_path, text)
    test_iam.test_policies_fit_quotas(stacks)
    inline = [
        one["policy"]
        for path, one in resources(stacks, "aws_iam_role_policy")
        if "/services/gateway/" in path
    ]
    assert sum(len(json.dumps(json.loads(one), separators=(",", ":"))) for one in inline) <= 10_240
    for kind, (attribute, limit) in LIMITS.items():
        assert not [path for path, one in resources(stacks, kind) if len(one[attribute]) > limit], kind
    for path, one in resources(stacks, "aws_ecs_task_definition"):
        assert len(one["container_definitions"].encode()) <= 65_536, path
