"""An edge network's one way to the control plane: a private link to the gateway, under the gateway's own name."""

from __future__ import annotations

from dataclasses import dataclass

from airbridge.infra import aws_facts
from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.network.network import Network


@dataclass(frozen=True)
class GatewayLinkProps:
    """The endpoint service of the gateway's load balancer, where it is, and the name in its certificate."""

    service_name: str
    service_region: str
    host: str
    region: str
    cidr: str
    #: Zones with an interface of the endpoint, at most; None: every one that AWS has it in. Workers of the others cross to it.
    zones: int | None = None


class GatewayLink(Construct):
    """An interface endpoint to the gateway, and a private zone in which the gateway's host name points to it."""

    def __init__(self, scope: Construct, id_: str, network: Network, props: GatewayLinkProps) -> None:
        super().__init__(scope, id_)
        self.group = network.security_group("gateway", "Mutual TLS from workers to the gateway")
        network.allow_in(self.group, "mtls", 443, cidr=props.cidr)
        unlinked = aws_facts.unlinked_zones(props.region, props.service_region)
        self.endpoint = aws.vpc_endpoint.VpcEndpoint(
            self,
            "endpoint",
            vpc_id=network.vpc_id,
            service_name=props.service_name,
            service_region=props.service_region,
            vpc_endpoint_type="Interface",
            subnet_ids=network.subnet_ids_outside(unlinked)[: props.zones],
            security_group_ids=[self.group.id],
        )
        zone_vpc = aws.route53_zone.Route53ZoneVpc(vpc_id=network.vpc_id, vpc_region=props.region)
        zone = aws.route53_zone.Route53Zone(
            self,
            "zone",
            name=props.host,
            comment="The gateway, as this region's workers see it",
            vpc=[zone_vpc],
        )
        target = self.endpoint.dns_entry.get(0)
        aws.route53_record.Route53Record(
            self,
            "record",
            zone_id=zone.zone_id,
            name=props.host,
            type="A",
            alias=aws.route53_record.Route53RecordAlias(
                name=target.dns_name, zone_id=target.hosted_zone_id, evaluate_target_health=False
            ),
        )
