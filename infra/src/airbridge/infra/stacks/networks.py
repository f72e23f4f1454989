"""The network that an environment gives, in place of one that the stacks make."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Network
from typing import TypedDict

from airbridge.infra.cdk import Construct
from airbridge.infra.constructs.network.existing_network import ExistingNetwork, ExistingNetworkProps
from airbridge.infra.environment import GivenNetwork


class Common(TypedDict, total=False):
    """Properties of both kinds of network."""

    name: str
    region: str
    account: str
    cidr: IPv4Network
    foreign_buckets: Sequence[str]
    written_buckets: Sequence[str]


def existing(
    scope: Construct, given: GivenNetwork, endpoints: Sequence[str], common: Common
) -> ExistingNetwork:
    """Take the VPC and subnets that an environment gives; `endpoints` are made unless it has them."""
    return ExistingNetwork(
        scope,
        "network",
        ExistingNetworkProps(
            **common,
            endpoints=endpoints,
            vpc_id=given.vpc,
            subnet_ids=given.subnets,
            public_subnet_ids=given.public_subnets,
            route_table_ids=given.route_tables,
            makes_endpoints=given.endpoints,
        ),
    )
