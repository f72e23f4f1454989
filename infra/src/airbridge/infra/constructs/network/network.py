"""A VPC whose private subnets reach AWS through endpoints, and nothing else unless a public side is requested.

Without NAT and endpoints (the development shape), machines stand in public subnets with addresses of their own, which
security groups close to everything that comes in.

Layout: the network is cut into eight. Zone i has private share i; if there is a public side, public share 4 + i.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from airbridge.infra import aws_facts
from airbridge.infra.cdk import Construct, ITerraformDependable, aws
from airbridge.infra.constructs.iam.policy import (
    EndpointStatement,
    Statement,
    assumed_by_service,
    policy_document,
)
from airbridge.infra.constructs.iam.role import Role, RoleProps
from airbridge.infra.constructs.monitoring.log_group import log_group

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
    """A network's range, its zones (`az1`), its endpoints, and whether it has a public side with NAT."""

    name: str
    region: str
    account: str
    cidr: IPv4Network
    zones: Sequence[str]
    endpoints: Sequence[str]
    key_arn: str
    public: bool = False
    #: NAT gateways of the public side, one a zone.
    nat: bool = True
    flow_log_days: int = 30
    #: Buckets outside of the account whose objects this network's machines may read.
    foreign_buckets: Sequence[str] = ()
    #: Buckets in which they may write as well.
    written_buckets: Sequence[str] = ()


class Network(Construct):
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
        self._route_tables: list[aws.route_table.RouteTable] = []
        #: Routes, endpoints and rules. No reference of a task names them, but it has no way out before they exist.
        self.ways: list[ITerraformDependable] = []
        gateways = self._public_side() if props.public else []
        self._route_tables += [
            self._private_zone(i, gateways[i] if gateways else None) for i in range(len(props.zones))
        ]
        self.endpoints_group = self.security_group("endpoints", "HTTPS from this network to AWS")
        self.allow_in(self.endpoints_group, "https", 443, cidr=str(props.cidr))
        self._endpoints()

    @property
    def machine_subnets(self) -> list[aws.subnet.Subnet]:
        """Subnets of services and workers."""
        return self.public_subnets if self.has_addresses else self.private_subnets

    @property
    def has_addresses(self) -> bool:
        """Return whether machines reach the internet by public addresses of their own."""
        return self._props.public and not self._props.nat

    def security_group(self, id_: str, description: str) -> aws.security_group.SecurityGroup:
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
        self,
        group: aws.security_group.SecurityGroup,
        id_: str,
        port: int,
        cidr: str | None = None,
        source: aws.security_group.SecurityGroup | None = None,
    ) -> None:
        """Let TCP to `port` into a group, from a range or from another group."""
        rule = aws.vpc_security_group_ingress_rule.VpcSecurityGroupIngressRule(
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
        self.ways.append(rule)

    def allow_out(
        self,
        group: aws.security_group.SecurityGroup,
        id_: str,
        port: int,
        *,
        cidr: str | None = None,
        target: aws.security_group.SecurityGroup | None = None,
        prefix_list: str | None = None,
    ) -> None:
        """Let TCP to `port` out of a group, to a range, another group or a prefix list."""
        rule = aws.vpc_security_group_egress_rule.VpcSecurityGroupEgressRule(
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
        self.ways.append(rule)

    def allow_aws(self, group: aws.security_group.SecurityGroup) -> None:
        """Let a group reach AWS through this network's endpoints: the interface ones, and S3's; else by the internet."""
        if not self._props.endpoints:
            self.allow_out(group, "aws", 443, cidr="0.0.0.0/0")
            return
        self.allow_out(group, "endpoints", 443, target=self.endpoints_group)
        self.allow_out(group, "s3", 443, prefix_list=self.s3_endpoint.prefix_list_id)

    def _private_zone(self, index: int, nat: aws.nat_gateway.NatGateway | None) -> aws.route_table.RouteTable:
        zone = self._props.zones[index]
        subnet = aws.subnet.Subnet(
            self,
            f"private-{zone}",
            vpc_id=self.vpc.id,
            availability_zone_id=aws_facts.zone_id(self._props.region, zone),
            cidr_block=str(self._shares[index]),
            tags={"Name": f"{self._props.name}-private-{zone}"},
        )
        self.private_subnets = [*getattr(self, "private_subnets", []), subnet]
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

    def _public_side(self) -> list[aws.nat_gateway.NatGateway]:
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
        zones = range(len(self._props.zones))
        self.public_subnets = [self._public_zone(index, table) for index in zones]
        if self._props.nat:
            return [self._nat(index, internet) for index in zones]
        # S3's endpoint costs nothing, and its policy holds here too.
        self._route_tables.append(table)
        return []

    def _public_zone(self, index: int, table: aws.route_table.RouteTable) -> aws.subnet.Subnet:
        zone = self._props.zones[index]
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
        zone, subnet = self._props.zones[index], self.public_subnets[index]
        address = aws.eip.Eip(self, f"nat-{zone}-address", domain="vpc", depends_on=[internet])
        return aws.nat_gateway.NatGateway(
            self, f"nat-{zone}", subnet_id=subnet.id, allocation_id=address.id, depends_on=[internet]
        )

    def _endpoints(self) -> None:
        self.s3_endpoint = aws.vpc_endpoint.VpcEndpoint(
            self,
            "s3",
            vpc_id=self.vpc.id,
            service_name=f"com.amazonaws.{self._props.region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=[table.id for table in self._route_tables],
            policy=policy_document((*endpoint_policy(self._props.account), *self._foreign_buckets())),
        )
        self.ways.append(self.s3_endpoint)
        for service in self._props.endpoints:
            endpoint = aws.vpc_endpoint.VpcEndpoint(
                self,
                f"endpoint-{service.replace('.', '-')}",
                vpc_id=self.vpc.id,
                service_name=f"com.amazonaws.{self._props.region}.{service}",
                vpc_endpoint_type="Interface",
                private_dns_enabled=True,
                subnet_ids=[subnet.id for subnet in self.private_subnets],
                security_group_ids=[self.endpoints_group.id],
                policy=policy_document(endpoint_policy(self._props.account)),
            )
            self.ways.append(endpoint)

    def _foreign_buckets(self) -> tuple[Statement, ...]:
        """Return what passes beside calls in the account: layers of images, packages of Amazon Linux, the data's buckets."""
        region = self._props.region
        names = (f"prod-{region}-starport-layer-bucket", f"al2023-repos-{region}-de612dc2")
        read = [_anybody("ReadFromAws", ("s3:GetObject",), [f"arn:aws:s3:::{name}/*" for name in names])]
        if data := sorted(set(self._props.foreign_buckets)):
            arns = [f"arn:aws:s3:::{name}" for name in data]
            actions = ("s3:GetObject", "s3:ListBucket")
            read.append(_anybody("ReadData", actions, [*arns, *(f"{arn}/*" for arn in arns)]))
        if written := sorted(set(self._props.written_buckets)):
            writing = ("s3:AbortMultipartUpload", "s3:DeleteObject", "s3:GetObject", "s3:PutObject")
            read.append(_anybody("WriteData", writing, [f"arn:aws:s3:::{name}/*" for name in written]))
        return tuple(read)

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


def endpoint_policy(account: str) -> tuple[Statement, ...]:
    """Return what an endpoint passes: calls on resources of the account, so that nothing leaves for anybody else's.

    Some actions have no resource (ecr:GetAuthorizationToken); they are passed for the account's own principals.
    """
    own = _anybody("UseOwnResources", ("*",), ("*",), {"StringEquals": {"aws:ResourceAccount": account}})
    wide = {"StringEquals": {"aws:PrincipalAccount": account}, "Null": {"aws:ResourceAccount": "true"}}
    return (own, _anybody("CallAccountWideActions", ("*",), ("*",), wide))


def _anybody(
    sid: str,
    actions: Sequence[str],
    resources: Sequence[str],
    conditions: Mapping[str, Mapping[str, str]] | None = None,
) -> Statement:
    return EndpointStatement(
        sid=sid,
        actions=tuple(actions),
        resources=tuple(resources),
        principals={"AWS": "*"},
        conditions=conditions or {},
    )
