"""A VPC whose private subnets reach AWS through endpoints, and nothing else unless a public side is requested.

Without NAT and endpoints (the development shape), machines stand in public subnets with addresses of their own, which
security groups close to everything that comes in.

Layout: the network is cut into eight. Zone i has private share i; if there is a public side, public share 4 + i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from airbridge.infra import aws_facts
from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.iam.policy import Statement, assumed_by_service
from airbridge.infra.constructs.iam.role import Role, RoleProps
from airbridge.infra.constructs.monitoring.log_group import log_group
from airbridge.infra.constructs.network.network import Network, NetworkProps


@dataclass(frozen=True)
class Route:
    """A way out of a network: the range behind it, and the transit gateway (`tgw-`) or peering (`pcx-`) that leads there."""

    name: str
    cidr: str
    via: str


@dataclass(frozen=True, kw_only=True)
class NewNetworkProps(NetworkProps):
    """A network's zones (`az1`), and whether it has a public side with NAT."""

    zones: Sequence[str]
    key_arn: str
    public: bool = False
    #: NAT gateways of the public side, one a zone.
    nat: bool = True
    flow_log_days: int = 30
    #: Ways to other networks, from every private subnet.
    routes: Sequence[Route] = field(default=())


class NewNetwork(Network):
    """Private subnets over two or three zones, endpoints, flow logs, and optionally a public side."""

    def __init__(self, scope: Construct, id_: str, props: NewNetworkProps) -> None:
        super().__init__(scope, id_, props)
        self._new = props
        self._shares = list(props.cidr.subnets(prefixlen_diff=3))
        self.vpc = aws.vpc.Vpc(
            self,
            "vpc",
            cidr_block=str(props.cidr),
            enable_dns_hostnames=True,
            enable_dns_support=True,
            tags={"Name": props.name},
        )
        self.vpc_id = self.vpc.id
        # The group that AWS makes with the VPC allows everything inside it; this empties it.
        aws.default_security_group.DefaultSecurityGroup(self, "default-group", vpc_id=self.vpc.id)
        self._record_flows()
        self._private_subnets: list[aws.subnet.Subnet] = []
        self._public_subnets: list[aws.subnet.Subnet] = []
        tables: list[aws.route_table.RouteTable] = []
        gateways = self._public_side(tables) if props.public else []
        private = [self._private_zone(i, gateways[i] if gateways else None) for i in range(len(props.zones))]
        self.private_subnet_ids = [subnet.id for subnet in self._private_subnets]
        self.public_subnet_ids = [subnet.id for subnet in self._public_subnets]
        self._routes(private)
        self._open_endpoints([table.id for table in (*tables, *private)])

    def subnet_ids_outside(self, zones: Sequence[str]) -> list[str]:
        """Return the private subnets, by id, that are in none of these zones."""
        made = zip(self._new.zones, self.private_subnet_ids, strict=True)
        return [subnet for zone, subnet in made if zone not in zones]

    @property
    def has_addresses(self) -> bool:
        """Return whether machines reach the internet by public addresses of their own."""
        return self._new.public and not self._new.nat

    def _routes(self, tables: Sequence[aws.route_table.RouteTable]) -> None:
        """Route the ranges of other networks, and attach their transit gateways."""
        attached = {
            gateway: aws.ec2_transit_gateway_vpc_attachment.Ec2TransitGatewayVpcAttachment(
                self,
                f"{gateway}-attachment",
                transit_gateway_id=gateway,
                vpc_id=self.vpc.id,
                subnet_ids=self.private_subnet_ids,
                tags={"Name": self._props.name},
            )
            for gateway in sorted({each.via for each in self._new.routes if each.via.startswith("tgw-")})
        }
        for each in self._new.routes:
            for zone, table in zip(self._new.zones, tables, strict=True):
                transit = attached.get(each.via)
                route = aws.route.Route(
                    self,
                    f"private-{zone}-to-{each.name}",
                    route_table_id=table.id,
                    destination_cidr_block=each.cidr,
                    transit_gateway_id=each.via if transit else None,
                    vpc_peering_connection_id=None if transit else each.via,
                    depends_on=[transit] if transit else None,
                )
                self.ways.append(route)

    def _private_zone(self, index: int, nat: aws.nat_gateway.NatGateway | None) -> aws.route_table.RouteTable:
        zone = self._new.zones[index]
        subnet = aws.subnet.Subnet(
            self,
            f"private-{zone}",
            vpc_id=self.vpc.id,
            availability_zone_id=aws_facts.zone_id(self._props.region, zone),
            cidr_block=str(self._shares[index]),
            tags={"Name": f"{self._props.name}-private-{zone}"},
        )
        self._private_subnets.append(subnet)
        table = aws.route_table.RouteTable(
            self,
            f"private-{zone}-routes",
            vpc_id=self.vpc.id,
            tags={"Name": f"{self._props.name}-private-{zone}"},
        )
        if nat is not None:
            route = aws.route.Route(
                self,
                f"private-{zone}-out",
                route_table_id=table.id,
                destination_cidr_block="0.0.0.0/0",
                nat_gateway_id=nat.id,
            )
            self.ways.append(route)
        routed = aws.route_table_association.RouteTableAssociation(
            self, f"private-{zone}-routed", subnet_id=subnet.id, route_table_id=table.id
        )
        self.ways.append(routed)
        return table

    def _public_side(self, tables: list[aws.route_table.RouteTable]) -> list[aws.nat_gateway.NatGateway]:
        internet = aws.internet_gateway.InternetGateway(
            self, "internet", vpc_id=self.vpc.id, tags={"Name": self._props.name}
        )
        table = aws.route_table.RouteTable(
            self, "public-routes", vpc_id=self.vpc.id, tags={"Name": f"{self._props.name}-public"}
        )
        route = aws.route.Route(
            self,
            "public-out",
            route_table_id=table.id,
            destination_cidr_block="0.0.0.0/0",
            gateway_id=internet.id,
        )
        self.ways.append(route)
        zones = range(len(self._new.zones))
        self._public_subnets = [self._public_zone(index, table) for index in zones]
        if self._new.nat:
            return [self._nat(index, internet) for index in zones]
        # S3's endpoint costs nothing, and its policy holds here too.
        tables.append(table)
        return []

    def _public_zone(self, index: int, table: aws.route_table.RouteTable) -> aws.subnet.Subnet:
        zone = self._new.zones[index]
        subnet = aws.subnet.Subnet(
            self,
            f"public-{zone}",
            vpc_id=self.vpc.id,
            availability_zone_id=aws_facts.zone_id(self._props.region, zone),
            cidr_block=str(self._shares[4 + index]),
            map_public_ip_on_launch=False,
            tags={"Name": f"{self._props.name}-public-{zone}"},
        )
        routed = aws.route_table_association.RouteTableAssociation(
            self, f"public-{zone}-routed", subnet_id=subnet.id, route_table_id=table.id
        )
        self.ways.append(routed)
        return subnet

    def _nat(self, index: int, internet: aws.internet_gateway.InternetGateway) -> aws.nat_gateway.NatGateway:
        zone, subnet = self._new.zones[index], self._public_subnets[index]
        address = aws.eip.Eip(self, f"nat-{zone}-address", domain="vpc", depends_on=[internet])
        return aws.nat_gateway.NatGateway(
            self, f"nat-{zone}", subnet_id=subnet.id, allocation_id=address.id, depends_on=[internet]
        )

    def _record_flows(self) -> None:
        name = f"/airbridge/{self._props.name}/flows"
        group = log_group(self, "flows", name, self._new.key_arn, self._new.flow_log_days)
        role = Role(
            self,
            "flows-role",
            RoleProps(
                name=f"{self._props.name}-flows",
                description="VPC flow logs write to their log group",
                trust=(assumed_by_service("vpc-flow-logs.amazonaws.com", self._props.account),),
                statements=(
                    Statement(
                        sid="WriteFlows",
                        actions=("logs:CreateLogStream", "logs:DescribeLogStreams", "logs:PutLogEvents"),
                        resources=(f"{group.arn}:*",),
                    ),
                ),
            ),
        )
        aws.flow_log.FlowLog(
            self,
            "flow-log",
            vpc_id=self.vpc.id,
            traffic_type="ALL",
            log_destination=group.arn,
            iam_role_arn=role.arn,
            max_aggregation_interval=600,
            depends_on=role.policies,
        )
