"""A VPC whose private subnets reach AWS through endpoints, and nothing else unless it is asked to.

Layout: the network is cut into eight. Zone i has private share i; if there is a public side, public share 4 + i.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.log_group import log_group
from airbridge.infra.constructs.policy import Statement, assumed_by_service
from airbridge.infra.constructs.role import Role, RoleProps

# What a worker calls: its queue, its image, its logs, its keys, its identity, and how operators reach it.
WORKER_ENDPOINTS = (
    "autoscaling",
    "ec2messages",
    "ecr.api",
    "ecr.dkr",
    "kms",
    "logs",
    "secretsmanager",
    "sqs",
    "ssm",
    "ssmmessages",
    "sts",
)
CONTROL_PLANE_ENDPOINTS = ("ecr.api", "ecr.dkr", "kms", "logs", "monitoring", "secretsmanager", "sqs", "sts")


@dataclass(frozen=True)
class NetworkProps:
    """A network's range, its zones (letters), its endpoints, and whether it has a public side with NAT."""

    name: str
    region: str
    account: str
    cidr: IPv4Network
    zones: Sequence[str]
    endpoints: Sequence[str]
    key_arn: str
    public: bool = False
    flow_log_days: int = 30


class Network(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
    """Private subnets over two or three zones, endpoints, flow logs, and optionally a public side."""

    def __init__(self, scope: Construct, id_: str, props: NetworkProps) -> None:
        super().__init__(scope, id_)
        self._props = props
        self._shares = list(props.cidr.subnets(prefixlen_diff=3))
        self.vpc = aws.vpc.Vpc(
            self,
            "vpc",
            cidr_block=str(props.cidr),
            enable_dns_hostnames=True,
            enable_dns_support=True,
            tags={"Name": props.name},
        )
        # The group that AWS makes with the VPC allows everything inside it; this empties it.
        aws.default_security_group.DefaultSecurityGroup(self, "default-group", vpc_id=self.vpc.id)
        self._record_flows()
        gateways = self._public_side() if props.public else []
        self._route_tables = [
            self._private_zone(i, gateways[i] if gateways else None) for i in range(len(props.zones))
        ]
        self.endpoints_group = self.security_group("endpoints", "HTTPS from this network to AWS")
        self.allow_in(self.endpoints_group, "https", 443, cidr=str(props.cidr))
        self._endpoints()

    def security_group(self, id_: str, description: str) -> Construct:
        """A security group of this network, which allows nothing until rules are added."""
        return aws.security_group.SecurityGroup(
            self,
            f"{id_}-group",
            name=f"{self._props.name}-{id_}",
            description=description,
            vpc_id=self.vpc.id,
            # Replaced with its users still attached, a group could not be deleted.
            lifecycle={"create_before_destroy": True},
        )

    def allow_in(
        self, group: Construct, id_: str, port: int, cidr: str | None = None, source: Construct | None = None
    ) -> None:
        """Let TCP to `port` into a group, from a range or from another group."""
        aws.vpc_security_group_ingress_rule.VpcSecurityGroupIngressRule(
            self,
            f"{group.node.id}-in-{id_}",
            security_group_id=group.id,
            description=f"in: {id_}",
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            cidr_ipv4=cidr,
            referenced_security_group_id=source.id if source else None,
        )

    def allow_out(
        self,
        group: Construct,
        id_: str,
        port: int,
        *,
        cidr: str | None = None,
        target: Construct | None = None,
        prefix_list: str | None = None,
    ) -> None:
        """Let TCP to `port` out of a group, to a range, another group or a prefix list."""
        aws.vpc_security_group_egress_rule.VpcSecurityGroupEgressRule(
            self,
            f"{group.node.id}-out-{id_}",
            security_group_id=group.id,
            description=f"out: {id_}",
            ip_protocol="tcp",
            from_port=port,
            to_port=port,
            cidr_ipv4=cidr,
            referenced_security_group_id=target.id if target else None,
            prefix_list_id=prefix_list,
        )

    def allow_aws(self, group: Construct) -> None:
        """Let a group reach AWS through this network's endpoints: the interface ones, and S3's."""
        self.allow_out(group, "endpoints", 443, target=self.endpoints_group)
        self.allow_out(group, "s3", 443, prefix_list=self.s3_endpoint.prefix_list_id)

    def _zone(self, index: int) -> str:
        return f"{self._props.region}{self._props.zones[index]}"

    def _private_zone(self, index: int, nat: Construct | None) -> Construct:
        letter = self._props.zones[index]
        subnet = aws.subnet.Subnet(
            self,
            f"private-{letter}",
            vpc_id=self.vpc.id,
            availability_zone=self._zone(index),
            cidr_block=str(self._shares[index]),
            tags={"Name": f"{self._props.name}-private-{letter}"},
        )
        self.private_subnets = [*getattr(self, "private_subnets", []), subnet]
        table = aws.route_table.RouteTable(
            self,
            f"private-{letter}-routes",
            vpc_id=self.vpc.id,
            tags={"Name": f"{self._props.name}-private-{letter}"},
        )
        if nat is not None:
            aws.route.Route(
                self,
                f"private-{letter}-out",
                route_table_id=table.id,
                destination_cidr_block="0.0.0.0/0",
                nat_gateway_id=nat.id,
            )
        aws.route_table_association.RouteTableAssociation(
            self, f"private-{letter}-routed", subnet_id=subnet.id, route_table_id=table.id
        )
        return table

    def _public_side(self) -> list[Construct]:
        internet = aws.internet_gateway.InternetGateway(
            self, "internet", vpc_id=self.vpc.id, tags={"Name": self._props.name}
        )
        table = aws.route_table.RouteTable(
            self, "public-routes", vpc_id=self.vpc.id, tags={"Name": f"{self._props.name}-public"}
        )
        aws.route.Route(
            self,
            "public-out",
            route_table_id=table.id,
            destination_cidr_block="0.0.0.0/0",
            gateway_id=internet.id,
        )
        self.public_subnets: list[Construct] = []
        return [self._public_zone(index, table, internet) for index in range(len(self._props.zones))]

    def _public_zone(self, index: int, table: Construct, internet: Construct) -> Construct:
        letter = self._props.zones[index]
        subnet = aws.subnet.Subnet(
            self,
            f"public-{letter}",
            vpc_id=self.vpc.id,
            availability_zone=self._zone(index),
            cidr_block=str(self._shares[4 + index]),
            map_public_ip_on_launch=False,
            tags={"Name": f"{self._props.name}-public-{letter}"},
        )
        self.public_subnets.append(subnet)
        aws.route_table_association.RouteTableAssociation(
            self, f"public-{letter}-routed", subnet_id=subnet.id, route_table_id=table.id
        )
        address = aws.eip.Eip(self, f"nat-{letter}-address", domain="vpc", depends_on=[internet])
        return aws.nat_gateway.NatGateway(
            self, f"nat-{letter}", subnet_id=subnet.id, allocation_id=address.id, depends_on=[internet]
        )

    def _endpoints(self) -> None:
        self.s3_endpoint = aws.vpc_endpoint.VpcEndpoint(
            self,
            "s3",
            vpc_id=self.vpc.id,
            service_name=f"com.amazonaws.{self._props.region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[table.id for table in self._route_tables],
        )
        for service in self._props.endpoints:
            aws.vpc_endpoint.VpcEndpoint(
                self,
                f"endpoint-{service.replace('.', '-')}",
                vpc_id=self.vpc.id,
                service_name=f"com.amazonaws.{self._props.region}.{service}",
                vpc_endpoint_type="Interface",
                private_dns_enabled=True,
                subnet_ids=[subnet.id for subnet in self.private_subnets],
                security_group_ids=[self.endpoints_group.id],
            )

    def _record_flows(self) -> None:
        name = f"/airbridge/{self._props.name}/flows"
        group = log_group(self, "flows", name, self._props.key_arn, self._props.flow_log_days)
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
        flow_log = aws.flow_log.FlowLog(
            self,
            "flow-log",
            vpc_id=self.vpc.id,
            traffic_type="ALL",
            log_destination=group.arn,
            iam_role_arn=role.arn,
            max_aggregation_interval=600,
        )
        flow_log.node.add_dependency(role)
