"""A network that is there already: its VPC, subnets and routes are somebody else's, and stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airbridge.infra import aws_facts
from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.network.network import Network, NetworkProps


@dataclass(frozen=True, kw_only=True)
class ExistingNetworkProps(NetworkProps):
    """A VPC, its subnets and the route tables that lead to S3's endpoint, by their ids.

    Without `makes_endpoints` the VPC has endpoints of its own, with private names, or another way to AWS's services.
    """

    vpc_id: str
    subnet_ids: Sequence[str]
    public_subnet_ids: Sequence[str] = ()
    route_table_ids: Sequence[str] = ()
    makes_endpoints: bool = True


class ExistingNetwork(Network):
    """A VPC that the stacks put security groups into, and endpoints unless it has them."""

    def __init__(self, scope: Construct, id_: str, props: ExistingNetworkProps) -> None:
        super().__init__(scope, id_, props)
        self._existing = props
        self.vpc_id = props.vpc_id
        self.private_subnet_ids = list(props.subnet_ids)
        self.public_subnet_ids = list(props.public_subnet_ids)
        if props.makes_endpoints:
            self._open_endpoints(props.route_table_ids)

    def subnet_ids_outside(self, zones: Sequence[str]) -> list[str]:
        """Return the private subnets, by id, that are in none of these zones: Terraform looks up where they are."""
        if not zones:
            return self.private_subnet_ids
        module = aws.data_aws_subnets
        # A filter names what it takes; no region has ten zones.
        others = [f"az{number}" for number in range(1, 10) if f"az{number}" not in zones]
        found = module.DataAwsSubnets(
            self,
            "linked",
            filter=[
                module.DataAwsSubnetsFilter(name="subnet-id", values=self.private_subnet_ids),
                module.DataAwsSubnetsFilter(
                    name="availability-zone-id",
                    values=[aws_facts.zone_id(self._props.region, zone) for zone in others],
                ),
            ],
        )
        return list(found.ids)

    def allow_aws(self, group: aws.security_group.SecurityGroup) -> None:
        """Let a group reach AWS through the network's endpoints, also those of others."""
        if self._existing.makes_endpoints:
            super().allow_aws(group)
            return
        s3 = aws.data_aws_prefix_list.DataAwsPrefixList(
            self, f"s3-for-{group.node.id}", name=f"com.amazonaws.{self._props.region}.s3"
        )
        self.allow_out(group, "endpoints", 443, cidr=str(self._props.cidr))
        self.allow_out(group, "s3", 443, prefix_list=s3.id)
