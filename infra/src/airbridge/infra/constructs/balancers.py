"""How the world reaches the control plane: HTTPS for people to the UI, TCP passed through to the gateway."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.checks import accept
from airbridge.infra.constructs.network import Network

UI_PORT = 8080
EDGE_PORT = 8443
OPERATOR_PORT = 8444
_TLS_POLICY = "ELBSecurityPolicy-TLS13-1-2-2021-06"
_DRAIN_SECONDS = "30"


@dataclass(frozen=True)
class UiProps:
    """The UI's balancer: its certificate and who may reach it."""

    name: str
    certificate_arn: str
    cidrs: Sequence[str]
    protect: bool = True


class Ui(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
    """An application load balancer that ends HTTPS and passes on to the api-servers."""

    def __init__(
        self, scope: Construct, id_: str, network: Network, targets: Construct, props: UiProps
    ) -> None:
        super().__init__(scope, id_)
        group = network.security_group("ui", "HTTPS from people to the UI")
        for index, cidr in enumerate(props.cidrs):
            network.allow_in(group, f"https-{index}", 443, cidr=cidr)
        network.allow_out(group, "api-servers", UI_PORT, target=targets)
        network.allow_in(targets, "ui", UI_PORT, source=group)
        self.balancer = aws.lb.Lb(
            self,
            "balancer",
            name=props.name,
            load_balancer_type="application",
            internal=False,
            subnets=[subnet.id for subnet in network.public_subnets],
            security_groups=[group.id],
            drop_invalid_header_fields=True,
            enable_deletion_protection=props.protect,
        )
        _accept_unprotected(self.balancer, props.protect)
        accept(self.balancer, "CKV_AWS_91", "Airflow's own audit log names the user; the balancer would not")
        accept(
            self.balancer,
            "CKV2_AWS_28",
            "reached from named networks only, behind a login; a WAF is the operator's",
        )
        self.target_group = _target_group(
            self, f"{props.name}", UI_PORT, "HTTP", network=network, path="/api/v2/monitor/health"
        )
        _listener(
            self,
            "https",
            self.balancer,
            port=443,
            targets=self.target_group,
            protocol="HTTPS",
            certificate_arn=props.certificate_arn,
        )


@dataclass(frozen=True)
class GatewayProps:
    """The gateway's balancer: who operates it, and from which regions workers come."""

    name: str
    operator_cidrs: Sequence[str]
    network_cidr: str
    regions: Sequence[str]
    protect: bool = True


class GatewayEntrance(Construct):  # type: ignore[misc]  # jsii's classes carry no types here
    """A network load balancer that ends no TLS, offered to the edge networks as an endpoint service.

    443 passes to the gateway's edge port, where mutual TLS ends; 8444 to the operators' port.
    """

    def __init__(
        self, scope: Construct, id_: str, network: Network, targets: Construct, props: GatewayProps
    ) -> None:
        super().__init__(scope, id_)
        group = network.security_group("entrance", "Workers and operators to the gateway")
        # Traffic of an endpoint service arrives with addresses of this network.
        network.allow_in(group, "workers", 443, cidr=props.network_cidr)
        for index, cidr in enumerate(props.operator_cidrs):
            network.allow_in(group, f"operators-{index}", OPERATOR_PORT, cidr=cidr)
        for port in (EDGE_PORT, OPERATOR_PORT):
            network.allow_out(group, f"gateways-{port}", port, target=targets)
            network.allow_in(targets, f"entrance-{port}", port, source=group)
        self.balancer = aws.lb.Lb(
            self,
            "balancer",
            name=props.name,
            load_balancer_type="network",
            internal=True,
            subnets=[subnet.id for subnet in network.private_subnets],
            security_groups=[group.id],
            enable_cross_zone_load_balancing=True,
            enable_deletion_protection=props.protect,
        )
        _accept_unprotected(self.balancer, props.protect)
        accept(self.balancer, "CKV_AWS_91", "a network balancer logs TLS listeners only, and it ends no TLS")
        self.edge_targets = self._pass_through(
            "edge", network, port=443, target_port=EDGE_PORT, name=f"{props.name}-edge"
        )
        self.operator_targets = self._pass_through(
            "ops", network, port=OPERATOR_PORT, target_port=OPERATOR_PORT, name=f"{props.name}-ops"
        )
        self.service = aws.vpc_endpoint_service.VpcEndpointService(
            self,
            "service",
            acceptance_required=False,
            network_load_balancer_arns=[self.balancer.arn],
            supported_regions=sorted(props.regions),
            tags={"Name": props.name},
        )
        accept(
            self.service,
            "CKV_AWS_123",
            "only this account may connect (no other principal is allowed), and the gateway asks for a certificate",
        )

    def _pass_through(
        self, id_: str, network: Network, *, port: int, target_port: int, name: str
    ) -> Construct:
        targets = _target_group(self, name, target_port, "TCP", network=network, path="")
        _listener(self, id_, self.balancer, port=port, targets=targets, protocol="TCP")
        return targets


def _target_group(
    scope: Construct, name: str, port: int, protocol: str, *, network: Network, path: str
) -> Construct:
    module = aws.lb_target_group
    health = module.LbTargetGroupHealthCheck(
        protocol=protocol,
        port="traffic-port",
        path=path or None,
        interval=10,
        healthy_threshold=2,
        unhealthy_threshold=3,
    )
    return module.LbTargetGroup(
        scope,
        f"targets-{port}",
        name=name,
        port=port,
        protocol=protocol,
        target_type="ip",
        vpc_id=network.vpc.id,
        deregistration_delay=_DRAIN_SECONDS,
        health_check=health,
    )


def _listener(
    scope: Construct,
    id_: str,
    balancer: Construct,
    *,
    port: int,
    targets: Construct,
    protocol: str,
    certificate_arn: str | None = None,
) -> None:
    module = aws.lb_listener
    module.LbListener(
        scope,
        f"{id_}-listener",
        load_balancer_arn=balancer.arn,
        port=port,
        protocol=protocol,
        certificate_arn=certificate_arn,
        ssl_policy=_TLS_POLICY if certificate_arn else None,
        default_action=[module.LbListenerDefaultAction(type="forward", target_group_arn=targets.arn)],
    )


def _accept_unprotected(balancer: Construct, protect: bool) -> None:
    if not protect:
        accept(
            balancer,
            "CKV_AWS_150",
            "this environment is made to be destroyed: its protection is switched off",
        )
