"""Networks: what a region's tasks reach, networks and hosted zones that exist."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Annotated

from pydantic import Field

from airbridge.infra.environment.values import Model, PoolName

SubnetId = Annotated[str, Field(pattern=r"^subnet-[0-9a-f]{8,17}$")]
EndpointName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*(\.[a-z0-9-]+)*$")]


class Egress(Model):
    """A network beyond AWS's services that tasks of a region reach: a database, an API, a data centre."""

    name: PoolName = Field(description="name of the network, unique in its region")
    cidr: IPv4Network = Field(description="its range")
    ports: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65535)], ...], Field(min_length=1, description="TCP ports there")
    ]
    via: Annotated[
        str | None,
        Field(
            pattern=r"^(nat|tgw-[0-9a-f]{17}|pcx-[0-9a-f]{8,17})$",
            description="the way there: a transit gateway (`tgw-…`), to which the network is attached; an accepted peering (`pcx-…`); or "
            "`nat`, NAT gateways of the region's own, one a zone. An existing network has routes of its own: left out there",
        ),
    ] = None


class GivenNetwork(Model):
    """A VPC that exists, in place of one that the stacks make: its subnets and routes stay as they are."""

    vpc: Annotated[
        str, Field(pattern=r"^vpc-[0-9a-f]{8,17}$", description="id of the VPC; `cidr` is its range")
    ]
    subnets: Annotated[
        tuple[SubnetId, ...],
        Field(
            min_length=2, description="private subnets, in different zones: of machines, endpoints, balancers"
        ),
    ]
    public_subnets: tuple[SubnetId, ...] = Field(
        default=(),
        description="public subnets of the UI's balancer, in different zones; the control plane's network has them",
    )
    route_tables: tuple[Annotated[str, Field(pattern=r"^rtb-[0-9a-f]{8,17}$")], ...] = Field(
        default=(), description="route tables of the subnets, which S3's endpoint joins"
    )
    endpoints: bool = Field(
        default=True,
        description="whether the stacks make the endpoints to AWS's services; `false` where the VPC has those that the reference lists, "
        "with private names",
    )


class Dns(Model):
    """A hosted zone in which the stacks write records."""

    zone: Annotated[str, Field(pattern=r"^Z[A-Z0-9]{5,31}$", description="id of the hosted zone in Route 53")]
    domain: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$",
            description="its domain: the host of `auth.url` and the gateway's name get records if they lie in it",
        ),
    ]

    def has(self, host: str) -> bool:
        """Return whether a host name lies in the domain."""
        return host == self.domain or host.endswith(f".{self.domain}")
