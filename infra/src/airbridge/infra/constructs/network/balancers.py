"""Load balancers in front of the control plane: HTTPS for people to the UI, TCP passed through to the gateway."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.checks import accept
from airbridge.infra.constructs.network.network import Network

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


class Ui(Construct):
    """An application load balancer that ends HTTPS and passes on to the api-servers."""

    def __init__(
        self,
        scope: Construct,
        id_: str,
        network: Network,
        targets: aws.security_group.SecurityGroup,
        props: UiProps,
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
            subnets=network.public_subnet_ids,
            security_groups=[group.id],
            drop_invalid_header_fields=True,
            enable_deletion_protection=props.protect,
        )
        _accept_unprotected(self.balancer, props.protect)
        accept(
            self.balancer,
            "CKV_AWS_91",
            "requests are not logged by these stacks, users' changes are, by Airflow (docs/how-to/operate-on-aws.md#log-access)",
        )
        public = any(cidr.endswith("/0") for cidr in props.cidrs)
        accept(
            self.balancer,
            "CKV2_AWS_28",
            f"no WAF: reached from {'every network' if public else 'named networks only'}; users sign in",
        )
        self.target_group = _target_group(
            self, f"{props.name}", UI_PORT, "HTTP", network=network, path="/api/v2/monitor/health"
        )
        self.listener = _listener(
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
    account: str
    network_cidr: str
    #: Networks from which workers connect, by region.
    regions: Mapping[str, str]
    #: Networks outside AWS from which workers of sites connect.
    sites: Sequence[str] = ()
    protect: bool = True


class GatewayEntrance(Construct):
    """A network load balancer that ends no TLS, offered to the edge networks as an endpoint service.

    443 passes to the gateway's edge port, where mutual TLS ends; 8444 to the operators' port.
    """

    def __init__(
        self,
        scope: Construct,
        id_: str,
        network: Network,
        targets: aws.security_group.SecurityGroup,
        props: GatewayProps,
    ) -> None:
        super().__init__(scope, id_)
        self.group = group = network.security_group("entrance", "Workers and operators to the gateway")
        _admit(network, group, props)
        for port in (EDGE_PORT, OPERATOR_PORT):
            network.allow_out(group, f"gateways-{port}", port, target=targets)
            network.allow_in(targets, f"entrance-{port}", port, source=group)
        self.balancer = aws.lb.Lb(
            self,
            "balancer",
            name=props.name,
            load_balancer_type="network",
            internal=True,
            subnets=network.private_subnet_ids,
            security_groups=[group.id],
            enable_cross_zone_load_balancing=True,
            enable_deletion_protection=props.protect,
        )
        _accept_unprotected(self.balancer, props.protect)
        accept(self.balancer, "CKV_AWS_91", "a network balancer logs TLS listeners only, and it ends no TLS")
        #: A target group takes a service's tasks once one of these forwards to it.
        self.listeners: list[aws.lb_listener.LbListener] = []
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
            allowed_principals=[f"arn:aws:iam::{props.account}:root"],
            tags={"Name": props.name},
        )
        accept(
            self.service,
            "CKV_AWS_123",
            "only this account may connect (it is the only principal), and the gateway asks for a certificate",
        )

    def _pass_through(
        self, id_: str, network: Network, *, port: int, target_port: int, name: str
    ) -> aws.lb_target_group.LbTargetGroup:
        targets = _target_group(self, name, target_port, "TCP", network=network, path="")
        self.listeners.append(_listener(self, id_, self.balancer, port=port, targets=targets, protocol="TCP"))
        return targets


def _admit(network: Network, group: aws.security_group.SecurityGroup, props: GatewayProps) -> None:
    network.allow_in(group, "workers", 443, cidr=props.network_cidr)
    # Rules apply to what comes through an endpoint by the client's own address, in its region's network:
    # https://docs.aws.amazon.com/elasticloadbalancing/latest/network/load-balancer-security-groups.html
    for region, cidr in sorted(props.regions.items()):
        network.allow_in(group, f"workers-{region}", 443, cidr=cidr)
    # A group refuses a rule that it has.
    for cidr in [each for each in props.sites if each not in {props.network_cidr, *props.regions.values()}]:
        network.allow_in(group, f"sites-{cidr.replace('.', '-').replace('/', '-')}", 443, cidr=cidr)
    for index, cidr in enumerate(props.operator_cidrs):
        network.allow_in(group, f"operators-{index}", OPERATOR_PORT, cidr=cidr)


def _target_group(
    scope: Construct, name: str, port: int, protocol: str, *, network: Network, path: str
) -> aws.lb_target_group.LbTargetGroup:
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
        vpc_id=network.vpc_id,
        deregistration_delay=_DRAIN_SECONDS,
        health_check=health,
    )


def _listener(
    scope: Construct,
    id_: str,
    balancer: aws.lb.Lb,
    *,
    port: int,
    targets: aws.lb_target_group.LbTargetGroup,
    protocol: str,
    certificate_arn: str | None = None,
) -> aws.lb_listener.LbListener:
    module = aws.lb_listener
    return module.LbListener(
        scope,
        f"{id_}-listener",
        load_balancer_arn=balancer.arn,
        port=port,
        protocol=protocol,
        certificate_arn=certificate_arn,
        ssl_policy=_TLS_POLICY if certificate_arn else None,
        default_action=[module.LbListenerDefaultAction(type="forward", target_group_arn=targets.arn)],
    )


def _accept_unprotected(balancer: aws.lb.Lb, protect: bool) -> None:
    if not protect:
        accept(
            balancer,
            "CKV_AWS_150",
            "this environment is made to be destroyed: its protection is switched off",
        )
