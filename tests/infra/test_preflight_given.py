"""Preflight of what an environment brings: networks that exist, and names of sites that must not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from tests.infra.factories import pool, region
from tests.infra.sites import brokered, site
from tests.infra.test_preflight import HOME, OTHER, Ready, _fixed, account, client

from airbridge.infra import aws_facts
from airbridge.infra.preflight import run
from airbridge.infra.preflight.finding import Account, Finding, Outcome
from airbridge.infra.preflight.given import networks
from airbridge.infra.preflight.sites import names

__all__ = ["_fixed", "account"]  # fixtures


@dataclass
class Given:
    """An account with a network for the control plane and one for a region; faults are planted in them."""

    ready: Ready
    #: Ids by what they are of: `plane.vpc`, `edge.private`, `edge.table`.
    ids: dict[str, Any]

    def ec2(self, where: str) -> Any:
        return client("ec2", HOME if where == "plane" else OTHER)

    def faults(self) -> list[Finding]:
        """What the check finds wrong."""
        account = Account(self.ready.environment, client, self.ready.resolves, self.ready.now)
        return [finding for finding in networks(account) if finding.outcome is not Outcome.OK]

    def network(self, where: str) -> dict[str, Any]:
        written = self.ready.written
        place = written["control_plane"] if where == "plane" else written["region"][1]
        network: dict[str, Any] = place["network"]
        return network


def network(ec2: Any, cidr: str, blocks: list[str], zones: str) -> tuple[str, list[str], str]:
    """Make a VPC with subnets, one of each zone, in one route table of their own."""
    vpc = ec2.create_vpc(CidrBlock=cidr)["Vpc"]["VpcId"]
    ec2.modify_vpc_attribute(VpcId=vpc, EnableDnsHostnames={"Value": True})
    table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    subnets = []
    for block, zone in zip(blocks, zones, strict=True):
        made = ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=f"{ec2.meta.region_name}{zone}")
        subnets.append(made["Subnet"]["SubnetId"])
        ec2.associate_route_table(RouteTableId=table, SubnetId=subnets[-1])
    return vpc, subnets, table


def nat(ec2: Any, subnet: str, table: str) -> None:
    address = ec2.allocate_address(Domain="vpc")["AllocationId"]
    gateway = ec2.create_nat_gateway(SubnetId=subnet, AllocationId=address)["NatGateway"]["NatGatewayId"]
    ec2.create_route(RouteTableId=table, DestinationCidrBlock="0.0.0.0/0", NatGatewayId=gateway)


@pytest.fixture
def given(account: Ready) -> Given:
    """The control plane's network has public subnets and a NAT; the region's has neither, and a peering to its data."""
    ec2 = client("ec2", HOME)
    vpc, private, table = network(ec2, "10.0.0.0/20", ["10.0.0.0/24", "10.0.1.0/24"], "ab")
    public_table = ec2.create_route_table(VpcId=vpc)["RouteTable"]["RouteTableId"]
    gateway = ec2.create_internet_gateway()["InternetGateway"]["InternetGatewayId"]
    ec2.attach_internet_gateway(InternetGatewayId=gateway, VpcId=vpc)
    ec2.create_route(RouteTableId=public_table, DestinationCidrBlock="0.0.0.0/0", GatewayId=gateway)
    public = []
    for block, zone in (("10.0.8.0/24", "a"), ("10.0.9.0/24", "b")):
        made = ec2.create_subnet(VpcId=vpc, CidrBlock=block, AvailabilityZone=f"{HOME}{zone}")
        public.append(made["Subnet"]["SubnetId"])
        ec2.associate_route_table(RouteTableId=public_table, SubnetId=public[-1])
    nat(ec2, public[0], table)
    ids = {"plane.vpc": vpc, "plane.private": private, "plane.public": public, "plane.table": table}
    ids["plane.public_table"] = public_table
    plane = {"vpc": vpc, "subnets": private, "public_subnets": public, "route_tables": [table]}
    account.written["control_plane"]["network"] = plane

    ec2 = client("ec2", OTHER)
    vpc, private, table = network(ec2, "10.2.0.0/20", ["10.2.0.0/24", "10.2.1.0/24"], "ab")
    other = ec2.create_vpc(CidrBlock="10.99.0.0/16")["Vpc"]["VpcId"]
    peering = ec2.create_vpc_peering_connection(VpcId=vpc, PeerVpcId=other)["VpcPeeringConnection"]
    ec2.create_route(
        RouteTableId=table,
        DestinationCidrBlock="10.99.0.0/16",
        VpcPeeringConnectionId=peering["VpcPeeringConnectionId"],
    )
    ids |= {"edge.vpc": vpc, "edge.private": private, "edge.table": table}
    edge = region(OTHER, "10.2.0.0/20", pool=[pool()])
    edge["network"] = {"vpc": vpc, "subnets": private, "route_tables": [table]}
    edge["egress"] = [{"name": "erp", "cidr": "10.99.0.0/24", "ports": [5432]}]
    account.written["region"][1] = edge
    return Given(account, ids)


def faults(ready: Ready) -> str:
    return run.as_text(ready.faults())


def test_given_networks_are_ready(given: Given) -> None:
    """Nothing is in the way of networks as the file has them, and none of them counts as one that others have taken."""
    found = [one for one in given.ready.look() if one.check == "given network"]
    assert [(one.outcome, one.subject) for one in found] == [
        ("ok", f"control_plane {given.ids['plane.vpc']}"),
        ("ok", f"region {OTHER} {given.ids['edge.vpc']}"),
    ]
    assert faults(given.ready) == "preflight: 0 checks: 0 failed"


def test_own_endpoints_are_enough(given: Given) -> None:
    """A network with endpoints of its own, S3's in the subnets' table, is ready; a route out takes the place of endpoints."""
    given.network("edge")["endpoints"] = False
    ec2, ids = given.ec2("edge"), given.ids
    for service in aws_facts.WORKER_ENDPOINTS:
        endpoint(given, service)
    s3 = f"com.amazonaws.{OTHER}.s3"
    ec2.create_vpc_endpoint(
        VpcId=ids["edge.vpc"], ServiceName=s3, VpcEndpointType="Gateway", RouteTableIds=[ids["edge.table"]]
    )
    given.network("plane")["endpoints"] = False
    assert given.faults() == []


def endpoint(given: Given, service: str, *, private: bool = True) -> None:
    given.ec2("edge").create_vpc_endpoint(
        VpcId=given.ids["edge.vpc"],
        ServiceName=f"com.amazonaws.{OTHER}.{service}",
        VpcEndpointType="Interface",
        SubnetIds=given.ids["edge.private"],
        PrivateDnsEnabled=private,
    )


def test_link_needs_a_subnet(given: Given, monkeypatch: pytest.MonkeyPatch) -> None:
    """A region whose given subnets are all in zones without endpoints of other regions cannot reach the gateway; one is enough."""
    monkeypatch.setitem(aws_facts.UNLINKED_ZONES, OTHER, ("az1",))
    assert given.faults() == []
    monkeypatch.setitem(aws_facts.UNLINKED_ZONES, OTHER, ("az1", "az2"))
    [found] = given.faults()
    assert (
        "its subnets are in usw2-az1, usw2-az2, where AWS has no endpoint of a service in another region"
        in found.detail
    )
    assert f"name a subnet of another zone in region {OTHER}: network.subnets" in found.remedy


def no_vpc(given: Given) -> None:
    given.network("edge")["vpc"] = "vpc-0a1b2c3d"


def other_range(given: Given) -> None:
    given.ready.written["region"][1]["cidr"] = "10.3.0.0/20"


def no_names(given: Given) -> None:
    given.ec2("edge").modify_vpc_attribute(VpcId=given.ids["edge.vpc"], EnableDnsHostnames={"Value": False})


def no_subnet(given: Given) -> None:
    given.network("edge")["subnets"] = [given.ids["edge.private"][0], "subnet-0a1b2c3d"]


def subnet_of_another(given: Given) -> None:
    ec2 = given.ec2("edge")
    _, strangers, _ = network(ec2, "10.4.0.0/20", ["10.4.0.0/24"], "b")
    given.network("edge")["subnets"] = [given.ids["edge.private"][0], *strangers]


def one_zone(given: Given) -> None:
    ec2, ids = given.ec2("edge"), given.ids
    made = ec2.create_subnet(VpcId=ids["edge.vpc"], CidrBlock="10.2.3.0/24", AvailabilityZone=f"{OTHER}a")
    ec2.associate_route_table(RouteTableId=ids["edge.table"], SubnetId=made["Subnet"]["SubnetId"])
    given.network("edge")["subnets"] = [ids["edge.private"][0], made["Subnet"]["SubnetId"]]


def few_addresses(given: Given) -> None:
    ec2, ids = given.ec2("edge"), given.ids
    made = ec2.create_subnet(VpcId=ids["edge.vpc"], CidrBlock="10.2.3.0/28", AvailabilityZone=f"{OTHER}b")
    ec2.associate_route_table(RouteTableId=ids["edge.table"], SubnetId=made["Subnet"]["SubnetId"])
    given.network("edge")["subnets"] = [ids["edge.private"][0], made["Subnet"]["SubnetId"]]


def few_public_addresses(given: Given) -> None:
    ec2, ids = given.ec2("plane"), given.ids
    made = ec2.create_subnet(VpcId=ids["plane.vpc"], CidrBlock="10.0.10.0/28", AvailabilityZone=f"{HOME}b")
    subnet = made["Subnet"]["SubnetId"]
    ec2.associate_route_table(RouteTableId=ids["plane.public_table"], SubnetId=subnet)
    for _ in range(5):
        ec2.create_network_interface(SubnetId=subnet)
    given.network("plane")["public_subnets"] = [ids["plane.public"][0], subnet]


def no_route_to_data(given: Given) -> None:
    given.ready.written["region"][1]["egress"][0]["cidr"] = "10.98.0.0/24"


def no_way_out(given: Given) -> None:
    given.ec2("plane").delete_route(RouteTableId=given.ids["plane.table"], DestinationCidrBlock="0.0.0.0/0")


def not_public(given: Given) -> None:
    given.ec2("plane").delete_route(
        RouteTableId=given.ids["plane.public_table"], DestinationCidrBlock="0.0.0.0/0"
    )


def an_endpoint_of_the_name(given: Given) -> None:
    endpoint(given, "sqs")


def no_table(given: Given) -> None:
    given.network("edge")["route_tables"] = [given.ids["edge.table"], "rtb-0a1b2c3d"]


def tables_left_out(given: Given) -> None:
    given.network("edge")["route_tables"] = []


def endpoints_missing(given: Given) -> None:
    given.network("edge")["endpoints"] = False
    for service in set(aws_facts.WORKER_ENDPOINTS) - {"sqs", "kms"}:
        endpoint(given, service)
    endpoint(given, "kms", private=False)
    given.ec2("edge").create_vpc_endpoint(
        VpcId=given.ids["edge.vpc"],
        ServiceName=f"com.amazonaws.{OTHER}.s3",
        VpcEndpointType="Gateway",
        RouteTableIds=[given.ids["edge.table"]],
    )


def s3_missing(given: Given) -> None:
    given.network("edge")["endpoints"] = False
    for service in aws_facts.WORKER_ENDPOINTS:
        endpoint(given, service)


FAULTS: dict[str, tuple[Callable[[Given], None], str, str]] = {
    "no VPC": (no_vpc, f"region {OTHER} vpc-0a1b2c3d: there is no such VPC in {OTHER}", f"correct region {OTHER}: network.vpc"),
    "another range": (other_range, "its ranges are 10.2.0.0/20, and `cidr` is 10.3.0.0/20", f"set `cidr` of region {OTHER}"),
    "no private names": (no_names, "has enableDnsHostnames off", "modify-vpc-attribute --region us-west-2"),
    "no subnet": (no_subnet, f"there is no subnet-0a1b2c3d in {OTHER}", f"correct region {OTHER}: network.subnets"),
    "a subnet of another VPC": (subnet_of_another, "is of another VPC", f"in region {OTHER}: network.subnets"),
    "two subnets of a zone": (one_zone, "subnets are in the zones usw2-az2, usw2-az2", "name one subnet of each zone"),
    "a small subnet": (few_addresses, "has 11 free addresses, and 14 are needed: 2 of machines, 11 of endpoints, 1 others", "or lower max_instances"),
    "a small public subnet": (few_public_addresses, "has 6 free addresses, and the UI's balancer needs 8", "control_plane.network.public_subnets"),
    "no route to the data": (no_route_to_data, "has no route to 10.98.0.0/24 (egress erp)", "add the route to its table"),
    "no way out": (no_way_out, "has no route to 0.0.0.0/0: services call other regions", "a route to a NAT gateway"),
    "a public subnet without a gateway": (not_public, "has no route to an internet gateway", "add the route"),
    "an endpoint that is there": (an_endpoint_of_the_name, "has endpoints to sqs with private names", f"set region {OTHER}: network.endpoints to false"),
    "no route table": (no_table, "there is no route table rtb-0a1b2c3d in it", f"correct region {OTHER}: network.route_tables"),
    "route tables left out": (tables_left_out, "S3's endpoint would not be reached from subnets of rtb-", f"name it in region {OTHER}: network.route_tables"),
    "endpoints that are not there": (endpoints_missing, "has no endpoint with a private name to kms, sqs, and subnet-", f"or set region {OTHER}: network.endpoints to true"),
    "no endpoint of S3": (s3_missing, "has no route to an endpoint of S3", "add its route table to the VPC's endpoint"),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_named(given: Given, fault: str) -> None:
    """Each fault blocks, names what is wrong and what to do; the other network stays ready."""
    plant, says, remedy = FAULTS[fault]
    plant(given)
    found = given.faults()
    assert run.blocked(found)
    text = run.as_text(found)
    assert says in text
    assert remedy in text
    assert len({one.subject for one in found}) == 1


def test_begun_deployment_is_no_obstacle(given: Given) -> None:
    """Addresses and endpoints that a deployment has taken already are not counted as missing or foreign."""
    ec2, ids = given.ec2("edge"), given.ids
    made = ec2.create_subnet(VpcId=ids["edge.vpc"], CidrBlock="10.2.3.0/27", AvailabilityZone=f"{OTHER}b")
    small = made["Subnet"]["SubnetId"]
    ec2.associate_route_table(RouteTableId=ids["edge.table"], SubnetId=small)
    given.network("edge")["subnets"] = [ids["edge.private"][0], small]
    group = ec2.create_security_group(
        GroupName=f"airbridge-test-{OTHER}-endpoints", Description="x", VpcId=ids["edge.vpc"]
    )["GroupId"]
    for _ in range(14):
        ec2.create_network_interface(SubnetId=small, Groups=[group])
    made = ec2.create_vpc_endpoint(
        VpcId=ids["edge.vpc"],
        ServiceName=f"com.amazonaws.{OTHER}.sqs",
        VpcEndpointType="Interface",
        PrivateDnsEnabled=True,
    )["VpcEndpoint"]["VpcEndpointId"]
    ec2.create_tags(Resources=[made], Tags=[{"Key": "airbridge:environment", "Value": "test"}])
    assert given.faults() == []


SITE = "airbridge-test-site"
TAGS = {"airbridge:stack": f"edge-{HOME}", "airbridge:environment": "test"}


@pytest.fixture
def ready(account: Ready) -> Ready:
    """Two sites beside the home region, of which nothing exists."""
    account.written["site"] = [site(beside=HOME), brokered(beside=HOME)]
    return account


def make_bucket(tags: dict[str, str]) -> None:
    name = f"{SITE}-factory-7-logs-123456789012"
    s3 = client("s3", HOME)
    s3.create_bucket(Bucket=name, CreateBucketConfiguration={"LocationConstraint": HOME})
    if tags:
        pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
        s3.put_bucket_tagging(Bucket=name, Tagging={"TagSet": pairs})


def make_queue(tags: dict[str, str]) -> None:
    client("sqs", HOME).create_queue(QueueName=f"{SITE}-factory-7-default", tags=tags)


def make_role(tags: dict[str, str]) -> None:
    pairs = [{"Key": key, "Value": value} for key, value in tags.items()]
    name = f"{SITE}-depot-3-default"
    client("iam", HOME).create_role(RoleName=name, AssumeRolePolicyDocument="{}", Tags=pairs)


def test_free_names_are_ready(ready: Ready) -> None:
    """Each site has a line of its own."""
    found = [one.subject for one in ready.look() if one.check == "site"]
    assert found == [f"factory-7 beside {HOME}", f"depot-3 beside {HOME}"]
    assert faults(ready) == "preflight: 0 checks: 0 failed"


def taken(ready: Ready) -> list[Finding]:
    account = Account(ready.environment, client, ready.resolves, ready.now)
    return [finding for finding in names(account) if finding.outcome is not Outcome.OK]


MADE: dict[str, tuple[Callable[[dict[str, str]], None], str]] = {
    "bucket": (make_bucket, f"the bucket {SITE}-factory-7-logs-123456789012"),
    "queue": (make_queue, f"the queue {SITE}-factory-7-default"),
    "role": (make_role, f"the role {SITE}-depot-3-default"),
}


@pytest.mark.parametrize("what", MADE)
def test_taken_name_is_named(ready: Ready, what: str) -> None:
    """What exists, made by hand or by another stack, blocks with a remedy; the stack's own does not."""
    make, says = MADE[what]
    make({})
    [fault] = taken(ready)
    assert (fault.check, fault.detail) == ("site", f"{says} is there, and edge-{HOME} has not made it")
    assert f"`terraform import` it into edge-{HOME}, or rename the site" in fault.remedy


@pytest.mark.parametrize("what", MADE)
def test_own_resource_is_no_obstacle(ready: Ready, what: str) -> None:
    """A deployment that was begun is not in its own way."""
    make, _ = MADE[what]
    make(TAGS)
    assert taken(ready) == []
