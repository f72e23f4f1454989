"""Records of balancers in a hosted zone."""

from __future__ import annotations

from airbridge.infra.cdk import Construct, aws


def alias(scope: Construct, id_: str, zone: str, host: str, balancer: aws.lb.Lb) -> None:
    """Point `host`, in the hosted zone of that id, at a balancer."""
    aws.route53_record.Route53Record(
        scope,
        id_,
        zone_id=zone,
        name=host,
        type="A",
        alias=aws.route53_record.Route53RecordAlias(
            name=balancer.dns_name, zone_id=balancer.zone_id, evaluate_target_health=False
        ),
    )
