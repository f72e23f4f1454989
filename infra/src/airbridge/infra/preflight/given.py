"""Checks of networks that an environment brings: the VPC, its subnets, their free addresses and their ways to AWS and beyond."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import IPv4Network, ip_network
from typing import Any

from botocore.exceptions import ClientError

from airbridge.infra import aws_facts
from airbridge.infra.environment import Egress, GivenNetwork, RegionConfig
from airbridge.infra.preflight.finding import Account, Finding, failed, ok

_CHECK = "given network"
_ANYWHERE = IPv4Network("0.0.0.0/0")
#: Addresses that a balancer may come to need in each subnet: "Subnets for your load balancer" of the Elastic Load Balancing user guides.
_BALANCER = 8
#: Addresses of the control plane in each subnet beside its services: both balancers, and the database.
_PLANE = 2 * _BALANCER + 1
_MISSING = {"InvalidVpcID.NotFound", "InvalidSubnetID.NotFound", "InvalidRouteTableID.NotFound"}


@dataclass(frozen=True)
class _Network:
    """A given network, where it is, and what the stacks put into it."""

    where: str
    region: str
    cidr: IPv4Network
    given: GivenNetwork
    services: Sequence[str]
    #: Machines and tasks that are in the private subnets at one time, at most.
    machines: int
    #: Addresses in each subnet beside machines and endpoints.
    fixed: int
    egress: Sequence[Egress]
    #: Whether its machines call what has no endpoint here: other regions, the issuer of sign-ins.
    needs_way_out: bool

    @property
    def key(self) -> str:
        """The start of its keys in the environment file."""
        return f"{self.where}.network" if self.where == "control_plane" else f"{self.where}: network"


def networks(account: Account) -> Iterator[Finding]:
    """Each given network is as the file has it, and has what the stacks do not make in it."""
    for network in _given(account):
        yield from _Look(account, network).findings()


def _given(account: Account) -> Iterator[_Network]:
    environment = account.environment
    plane = environment.control_plane
    if plane.network:
        counts = {"api-server": plane.api_servers, "scheduler": plane.schedulers, "gateway": plane.gateways}
        # While a deployment replaces them there are twice as many; dag-processor, triggerer and migration have one each.
        tasks = 2 * (sum(counts.values()) + 2) + 1
        yield _Network(
            where="control_plane",
            region=account.home,
            cidr=plane.cidr,
            given=plane.network,
            services=aws_facts.CONTROL_PLANE_ENDPOINTS,
            machines=tasks,
            fixed=_PLANE,
            egress=(),
            needs_way_out=True,
        )
    for region in environment.regions:
        if region.network:
            yield _edge(region, region.network)


def _edge(region: RegionConfig, given: GivenNetwork) -> _Network:
    return _Network(
        where=f"region {region.name}",
        region=region.name,
        cidr=region.cidr,
        given=given,
        services=(*aws_facts.WORKER_ENDPOINTS, *region.endpoints),
        machines=sum(pool.max_instances for pool in region.pools),
        # The endpoint that leads to the gateway.
        fixed=1,
        egress=region.egress,
        needs_way_out=False,
    )


class _Look:
    """Look at one network."""

    def __init__(self, account: Account, network: _Network) -> None:
        self._account, self._ec2 = account, account.client("ec2", network.region)
        self._network, self._given = network, network.given

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong with it, or that nothing is. Of a VPC or subnets that do not exist nothing else is said."""
        problems = list(self._vpc_problems()) or list(self._subnet_problems())
        if not problems:
            problems = [
                *self._link_problems(),
                *self._address_problems(),
                *self._way_problems(),
                *self._endpoint_problems(),
            ]
        subject = f"{self._network.where} {self._given.vpc}"
        for detail, remedy in problems:
            yield failed(_CHECK, subject, detail, remedy)
        if not problems:
            count = len(self._given.subnets) + len(self._given.public_subnets)
            yield ok(
                _CHECK,
                subject,
                f"{self._network.cidr}, {count} subnets, with free addresses and their ways out",
            )

    def _vpc_problems(self) -> Iterator[tuple[str, str]]:
        key, region, vpc = self._network.key, self._network.region, self._given.vpc
        [found] = self._described("describe_vpcs", "Vpcs", VpcIds=[vpc]) or [None]
        if found is None:
            yield f"there is no such VPC in {region}", f"correct {key}.vpc, or `account` and region"
            return
        blocks = [block["CidrBlock"] for block in found["CidrBlockAssociationSet"]]
        if str(self._network.cidr) not in blocks:
            yield (
                f"its ranges are {', '.join(blocks)}, and `cidr` is {self._network.cidr}",
                f"set `cidr` of {self._network.where} to the VPC's range: security groups admit it",
            )
        for attribute, name in (
            ("enableDnsSupport", "EnableDnsSupport"),
            ("enableDnsHostnames", "EnableDnsHostnames"),
        ):
            if not self._ec2.describe_vpc_attribute(VpcId=vpc, Attribute=attribute)[name]["Value"]:
                yield (
                    f"has {attribute} off, and endpoints have no private names without it",
                    f"aws ec2 modify-vpc-attribute --region {region} --vpc-id {vpc} --{_dashed(attribute)} '{{\"Value\": true}}'",
                )

    def _subnet_problems(self) -> Iterator[tuple[str, str]]:
        for kind, ids in (("subnets", self._given.subnets), ("public_subnets", self._given.public_subnets)):
            key = f"{self._network.key}.{kind}"
            if missing := [each for each in ids if each not in self._subnets]:
                yield f"there is no {', '.join(missing)} in {self._network.region}", f"correct {key}"
                continue
            found = [self._subnets[each] for each in ids]
            strangers = [
                f"{one['SubnetId']} ({one['VpcId']})" for one in found if one["VpcId"] != self._given.vpc
            ]
            if strangers:
                yield (
                    f"{', '.join(strangers)} is of another VPC",
                    f"name subnets of {self._given.vpc} in {key}",
                )
            zones = [one["AvailabilityZoneId"] for one in found]
            if len(set(zones)) < len(zones):
                yield (
                    f"{kind} are in the zones {', '.join(sorted(zones))}: endpoints and balancers take one subnet of a zone",
                    f"name one subnet of each zone in {key}",
                )

    def _link_problems(self) -> Iterator[tuple[str, str]]:
        """Yield that the endpoint of the gateway has no subnet to be in."""
        region = self._network.region
        closed = {
            aws_facts.zone_id(region, zone) for zone in aws_facts.unlinked_zones(region, self._account.home)
        }
        zones = {self._subnets[each]["AvailabilityZoneId"] for each in self._given.subnets}
        if zones <= closed:
            yield (
                f"its subnets are in {', '.join(sorted(zones))}, where AWS has no endpoint of a service in another region",
                f"name a subnet of another zone in {self._network.key}.subnets",
            )

    def _address_problems(self) -> Iterator[tuple[str, str]]:
        network, made = self._network, len(self._network.services) if self._given.endpoints else 0
        share = -(-network.machines // len(self._given.subnets))
        for each in self._given.subnets:
            free, needed = int(self._subnets[each]["AvailableIpAddressCount"]), share + made + network.fixed
            if free + (ours := self._taken_by_us(each)) < needed:
                yield (
                    f"{each} has {free} free addresses, and {needed - ours} are needed: {share} of machines, {made} of endpoints, {network.fixed} others",
                    f"free some, name larger subnets in {network.key}.subnets, or lower max_instances",
                )
        for each in self._given.public_subnets:
            if (free := int(self._subnets[each]["AvailableIpAddressCount"])) < _BALANCER:
                yield (
                    f"{each} has {free} free addresses, and the UI's balancer needs {_BALANCER}",
                    f"free some, or name larger subnets in {network.key}.public_subnets",
                )

    def _way_problems(self) -> Iterator[tuple[str, str]]:
        """Yield routes that the file takes to be there."""
        network = self._network
        for each in network.egress:
            lacking = [one for one in self._given.subnets if not self._routes_to(one, each.cidr)]
            if lacking:
                yield (
                    f"{', '.join(lacking)} has no route to {each.cidr} (egress {each.name})",
                    "add the route to its table: an existing network's routes stay as they are",
                )
        if network.needs_way_out and (
            lacking := [one for one in self._given.subnets if not self._way_out(one)]
        ):
            yield (
                f"{', '.join(lacking)} has no route to 0.0.0.0/0: services call other regions and the issuer of sign-ins",
                "add a route to a NAT gateway, or to a network that has one",
            )
        closed = [one for one in self._given.public_subnets if not self._is_public(one)]
        if closed:
            yield (
                f"{', '.join(closed)} has no route to an internet gateway, and the UI's balancer is public",
                f"add the route, or name public subnets in {network.key}.public_subnets",
            )

    def _endpoint_problems(self) -> Iterator[tuple[str, str]]:
        yield from self._made_endpoint_problems() if self._given.endpoints else self._own_endpoint_problems()

    def _made_endpoint_problems(self) -> Iterator[tuple[str, str]]:
        """Yield what endpoints of the stacks would collide with, or lack."""
        key = self._network.key
        if taken := sorted({*self._network.services} & {*self._private_endpoints}):
            yield (
                f"has endpoints to {', '.join(taken)} with private names, and a VPC takes one of each",
                f"set {key}.endpoints to false, once it has all that the reference lists",
            )
        named = set(self._given.route_tables)
        if missing := sorted(named - {*self._tables}):
            yield f"there is no route table {', '.join(missing)} in it", f"correct {key}.route_tables"
        needed = {
            self._table_of(each)["RouteTableId"] for each in self._given.subnets if self._table_of(each)
        }
        if unnamed := sorted(needed - named):
            yield (
                f"S3's endpoint would not be reached from subnets of {', '.join(unnamed)}",
                f"name {'it' if len(unnamed) == 1 else 'them'} in {key}.route_tables",
            )

    def _own_endpoint_problems(self) -> Iterator[tuple[str, str]]:
        """Yield services that machines reach neither by an endpoint of the VPC nor by a route out of it."""
        network = self._network
        closed = [each for each in self._given.subnets if not self._way_out(each)]
        if not closed:
            return
        if missing := sorted({*network.services} - {*self._private_endpoints}):
            yield (
                f"has no endpoint with a private name to {', '.join(missing)}, and {', '.join(closed)} no route out",
                f"make the endpoints, or set {network.key}.endpoints to true",
            )
        reached = {table for one in self._gateways for table in one["RouteTableIds"]}
        lost = [each for each in closed if (self._table_of(each) or {}).get("RouteTableId") not in reached]
        if lost:
            yield (
                f"{', '.join(lost)} has no route to an endpoint of S3",
                "add its route table to the VPC's endpoint of S3, of the type Gateway",
            )

    @cached_property
    def _subnets(self) -> dict[str, Any]:
        ids = (*self._given.subnets, *self._given.public_subnets)
        # One unknown id refuses the whole call.
        found = [
            one for each in ids for one in self._described("describe_subnets", "Subnets", SubnetIds=[each])
        ]
        return {one["SubnetId"]: one for one in found}

    @cached_property
    def _tables(self) -> dict[str, Any]:
        pages = self._ec2.get_paginator("describe_route_tables").paginate(Filters=[self._of_vpc])
        return {one["RouteTableId"]: one for page in pages for one in page["RouteTables"]}

    @cached_property
    def _endpoints(self) -> list[Any]:
        pages = self._ec2.get_paginator("describe_vpc_endpoints").paginate(Filters=[self._of_vpc])
        found = [one for page in pages for one in page["VpcEndpoints"]]
        return [one for one in found if not self._account.owns(one)]

    def _taken_by_us(self, subnet: str) -> int:
        """Count the addresses of a deployment that was begun: its interfaces are in groups of its name."""
        filters = [{"Name": "subnet-id", "Values": [subnet]}]
        pages = self._ec2.get_paginator("describe_network_interfaces").paginate(Filters=filters)
        groups = [one.get("Groups", ()) for page in pages for one in page["NetworkInterfaces"]]
        base = self._account.environment.names.base
        return sum(any(group["GroupName"].startswith(f"{base}-") for group in each) for each in groups)

    @property
    def _private_endpoints(self) -> list[str]:
        prefix = f"com.amazonaws.{self._network.region}."
        return [
            one["ServiceName"].removeprefix(prefix)
            for one in self._endpoints
            if one["VpcEndpointType"] == "Interface" and one.get("PrivateDnsEnabled")
        ]

    @property
    def _gateways(self) -> list[Any]:
        s3 = f"com.amazonaws.{self._network.region}.s3"
        return [
            one for one in self._endpoints if one["VpcEndpointType"] == "Gateway" and one["ServiceName"] == s3
        ]

    @property
    def _of_vpc(self) -> dict[str, Any]:
        return {"Name": "vpc-id", "Values": [self._given.vpc]}

    def _described(self, call: str, what: str, **ids: list[str]) -> list[Any]:
        try:
            found: list[Any] = getattr(self._ec2, call)(**ids)[what]
        except ClientError as error:
            if error.response["Error"]["Code"] not in _MISSING:
                raise
            return []
        return found

    def _table_of(self, subnet: str) -> Any:
        """Return a subnet's own route table, or the VPC's main one."""
        of_subnet = [(one, joined) for one in self._tables.values() for joined in one["Associations"]]
        own = [one for one, joined in of_subnet if joined.get("SubnetId") == subnet]
        main = [one for one, joined in of_subnet if joined.get("Main")]
        return next(iter([*own, *main]), None)

    def _routes(self, subnet: str) -> Iterator[tuple[IPv4Network, Any]]:
        for route in (self._table_of(subnet) or {"Routes": ()})["Routes"]:
            if route.get("State") != "blackhole" and "DestinationCidrBlock" in route:
                yield IPv4Network(ip_network(route["DestinationCidrBlock"])), route

    def _routes_to(self, subnet: str, cidr: IPv4Network) -> bool:
        return any(
            cidr.subnet_of(network) and route.get("GatewayId") != "local"
            for network, route in self._routes(subnet)
        )

    def _way_out(self, subnet: str) -> bool:
        """Return whether a subnet has a default route; machines without public addresses do not leave by an internet gateway."""
        return any(
            network == _ANYWHERE and not str(route.get("GatewayId", "")).startswith("igw-")
            for network, route in self._routes(subnet)
        )

    def _is_public(self, subnet: str) -> bool:
        return any(
            network == _ANYWHERE and str(route.get("GatewayId", "")).startswith("igw-")
            for network, route in self._routes(subnet)
        )


def _dashed(name: str) -> str:
    return "".join(f"-{letter.lower()}" if letter.isupper() else letter for letter in name)
