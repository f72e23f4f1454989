"""Base of the networks: security groups, rules, endpoints to AWS's services.

A `NewNetwork` is made by the stacks, an `ExistingNetwork` is there already.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from airbridge.infra.cdk import Construct, ITerraformDependable, aws
from airbridge.infra.constructs.iam.policy import EndpointStatement, Statement, policy_document


@dataclass(frozen=True)
class NetworkProps:
    """A network's range, and its endpoints to AWS's services."""

    name: str
    region: str
    account: str
    cidr: IPv4Network
    endpoints: Sequence[str]
    #: Buckets outside of the account whose objects this network's machines may read.
    foreign_buckets: Sequence[str] = ()
    #: Buckets in which they may write as well.
    written_buckets: Sequence[str] = ()


class Network(Construct):
    """Subnets of one VPC by their ids, and what may pass between its machines and others."""

    #: The VPC's id.
    vpc_id: str
    #: Subnets of endpoints, balancers and the database, by id.
    private_subnet_ids: list[str]
    #: Subnets of balancers that the internet reaches, by id.
    public_subnet_ids: list[str]
    #: The security group of the interface endpoints.
    endpoints_group: aws.security_group.SecurityGroup

    def __init__(self, scope: Construct, id_: str, props: NetworkProps) -> None:
        super().__init__(scope, id_)
        self._props = props
        #: Routes, endpoints and rules. No reference of a task names them, but it has no way out before they exist.
        self.ways: list[ITerraformDependable] = []

    @property
    def machine_subnet_ids(self) -> list[str]:
        """Subnets of services and workers, by id."""
        return self.public_subnet_ids if self.has_addresses else self.private_subnet_ids

    def subnet_ids_outside(self, zones: Sequence[str]) -> list[str]:
        """Return the private subnets, by id, that are in none of these zones (`az1`)."""
        raise NotImplementedError

    @property
    def has_addresses(self) -> bool:
        """Return whether machines reach the internet by public addresses of their own."""
        return False

    def security_group(self, id_: str, description: str) -> aws.security_group.SecurityGroup:
        """A security group of this network, which allows nothing until rules are added."""
        return aws.security_group.SecurityGroup(
            self,
            f"{id_}-group",
            name=f"{self._props.name}-{id_}",
            description=description,
            vpc_id=self.vpc_id,
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

    def _open_endpoints(self, route_table_ids: Sequence[str]) -> None:
        """Make the endpoints, and their group; S3's is reached through these route tables."""
        self.endpoints_group = self.security_group("endpoints", "HTTPS from this network to AWS")
        self.allow_in(self.endpoints_group, "https", 443, cidr=str(self._props.cidr))
        self._endpoints(route_table_ids)

    def _endpoints(self, route_table_ids: Sequence[str]) -> None:
        self.s3_endpoint = aws.vpc_endpoint.VpcEndpoint(
            self,
            "s3",
            vpc_id=self.vpc_id,
            service_name=f"com.amazonaws.{self._props.region}.s3",
            vpc_endpoint_type="Gateway",
            route_table_ids=list(route_table_ids),
            policy=policy_document((*endpoint_policy(self._props.account), *self._foreign_buckets())),
        )
        self.ways.append(self.s3_endpoint)
        for service in self._props.endpoints:
            endpoint = aws.vpc_endpoint.VpcEndpoint(
                self,
                f"endpoint-{service.replace('.', '-')}",
                vpc_id=self.vpc_id,
                service_name=f"com.amazonaws.{self._props.region}.{service}",
                vpc_endpoint_type="Interface",
                private_dns_enabled=True,
                subnet_ids=self.private_subnet_ids,
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
