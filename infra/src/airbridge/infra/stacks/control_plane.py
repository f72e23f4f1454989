"""The control plane's stack, in the home region."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from airbridge.infra import aws_facts, catalogue
from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs import control_plane as services
from airbridge.infra.constructs.compute.service import RUN_DIRECTORY, Platform
from airbridge.infra.constructs.control_plane import ControlPlane, ControlPlaneProps, SignIn
from airbridge.infra.constructs.monitoring.observability import Observability, ObservabilityProps
from airbridge.infra.constructs.monitoring.topic import AlarmTopic, TopicProps
from airbridge.infra.constructs.network.balancers import (
    EDGE_PORT,
    OPERATOR_PORT,
    GatewayEntrance,
    GatewayProps,
    Ui,
    UiProps,
)
from airbridge.infra.constructs.network.network import Network
from airbridge.infra.constructs.network.new_network import NewNetwork, NewNetworkProps
from airbridge.infra.constructs.network.records import alias
from airbridge.infra.constructs.storage.database import PORT, Database, DatabaseProps
from airbridge.infra.iam import regions as iam_regions
from airbridge.infra.stacks import foundation
from airbridge.infra.stacks.base import Deployment, Stack
from airbridge.infra.stacks.foundation import Foundation
from airbridge.infra.stacks.networks import Common, existing
from airbridge.infra.ui_auth import RULES_FILE, Auth

NAME = "control-plane"


def split_image(reference: str) -> tuple[str, str]:
    """`name@digest` as name and digest."""
    name, _, digest = reference.partition("@")
    return name, digest


def _airflow_variables(options: Mapping[str, str]) -> dict[str, str]:
    """Return Airflow's options as the environment variables that set them."""
    return {f"AIRFLOW__{name.replace('.', '__').upper()}": value for name, value in options.items()}


def _auth_options(auth: Auth | None) -> dict[str, str]:
    if auth is None:
        return {}
    rules = {"airbridge.ui_oidc_file": f"{RUN_DIRECTORY}/{RULES_FILE}"} if auth.is_oidc else {}
    return {"core.auth_manager": auth.manager, "api.base_url": auth.url, **rules}


class ControlPlaneStack(Stack):
    """Network, database, services, balancers, alarms.

    The key, the secrets and the images are the foundation's: by now the secrets have values and the images are pushed.

    It depends on the edge regions in four ways: which regions, and which of their networks, may connect to the gateway;
    the region catalogue (with it, the services that read it are replaced one by one); the dashboard's lines; the alarms
    on what gateways publish of each region and pool.
    """

    def __init__(self, scope: Construct, deployment: Deployment) -> None:
        environment = deployment.environment
        super().__init__(scope, NAME, deployment, environment.home_region)
        self.foundation = Foundation(self.outputs_of(foundation.NAME))
        self.network = self._network()
        self._groups()
        self.topic = AlarmTopic(
            self,
            "alarms",
            TopicProps(
                f"{self.names.base}-alarms",
                self.foundation.key_arn,
                environment.account,
                environment.alarm_endpoints(self.region),
            ),
        )
        self.database = self._database()
        self.ui, self.entrance = self._balancers()
        self._records()
        self.control_plane = self._services()
        self._observability()
        self._outputs()

    def _network(self) -> Network:
        """Make the control plane's network, or take the one that the environment gives."""
        plane = self.environment.control_plane
        common: Common = {
            "name": f"{self.names.base}-control-plane",
            "region": self.region,
            "account": self.environment.account,
            "cidr": plane.cidr,
        }
        if plane.network:
            return existing(self, plane.network, aws_facts.CONTROL_PLANE_ENDPOINTS, common)
        return NewNetwork(
            self,
            "network",
            NewNetworkProps(
                **common,
                zones=plane.zones or aws_facts.zones(self.region),
                endpoints=() if self.environment.is_economical else aws_facts.CONTROL_PLANE_ENDPOINTS,
                key_arn=self.foundation.key_arn,
                public=True,
                nat=not self.environment.is_economical,
            ),
        )

    def _groups(self) -> None:
        """Three groups: the gateway's, because the edge reaches it, operators', who reach its port, and the services'."""
        self.services_group = self.network.security_group("services", "Airflow's services")
        self.gateway_group = self.network.security_group("gateways", "The gateway")
        self.operator_group = self.network.security_group("operator", "Operators' sessions")
        for group in self._database_clients:
            # The queues and buckets of other regions have no endpoint here.
            self.network.allow_out(group, "aws", 443, cidr="0.0.0.0/0")

    @property
    def _database_clients(self) -> tuple[aws.security_group.SecurityGroup, ...]:
        return self.services_group, self.gateway_group, self.operator_group

    def _database(self) -> Database:
        settings = self.environment.control_plane.database
        database = Database(
            self,
            "database",
            self.network,
            self._database_clients,
            DatabaseProps(
                name=self.names.base,
                account=self.environment.account,
                instance_class=settings.instance_class,
                storage_gib=settings.storage_gib,
                multi_az=settings.multi_az,
                backup_days=settings.backup_days,
                key_arn=self.foundation.key_arn,
                deletion_protection=self.deployment.protect,
                protect=self.deployment.protect,
            ),
        )
        for group in self._database_clients:
            self.network.allow_out(group, "database", PORT, target=database.group)
        return database

    def _balancers(self) -> tuple[Ui, GatewayEntrance]:
        plane = self.environment.control_plane
        ui = Ui(
            self,
            "ui",
            self.network,
            self.services_group,
            UiProps(
                name=f"{self.names.base}-ui",
                certificate_arn=plane.certificate_arn,
                cidrs=[str(cidr) for cidr in plane.ui_cidrs],
                protect=self.deployment.protect,
            ),
        )
        entrance = GatewayEntrance(
            self,
            "gateway",
            self.network,
            self.gateway_group,
            GatewayProps(
                name=f"{self.names.base}-gateway",
                operator_cidrs=[str(cidr) for cidr in plane.operator_cidrs],
                account=self.environment.account,
                network_cidr=str(plane.cidr),
                regions={region.name: str(region.cidr) for region in self.environment.regions},
                sites=sorted({str(network) for site in self.environment.sites for network in site.networks}),
                protect=self.deployment.protect,
            ),
        )
        self.network.allow_out(self.operator_group, "gateway", OPERATOR_PORT, target=entrance.group)
        self.network.allow_in(entrance.group, "sessions", OPERATOR_PORT, source=self.operator_group)
        return ui, entrance

    def _records(self) -> None:
        """Point the names that lie in the environment's domain at the balancers."""
        plane = self.environment.control_plane
        for name, balancer in (
            ("ui", self.ui.balancer),
            ("gateway", self.entrance.balancer),
        ):
            if plane.dns and (host := self.environment.hosts[name]) and plane.dns.has(host):
                alias(self, f"{name}-record", plane.dns.zone, host, balancer)

    def _regions(self) -> str:
        """The region catalogue, in TOML."""
        regions = catalogue.expected(self.environment)
        text = catalogue.render(self.region, regions, self._teams(), self._prices(), self._limits())
        # Packed, it is not among the texts that synthesis puts into the partition.
        return aws_facts.in_partition(text, self.region)

    def _teams(self) -> list[dict[str, Any]]:
        return [team.model_dump(mode="json") for team in self.environment.teams]

    def _limits(self) -> list[dict[str, Any]]:
        return [limit.model_dump(mode="json", exclude_none=True) for limit in self.environment.limits]

    def _prices(self) -> dict[str, Any] | None:
        prices = self.environment.prices
        return prices.model_dump(mode="json") if prices else None

    def _platform(self) -> Platform:
        environment = self.environment
        image, digest = split_image(environment.images.control_plane)
        address = f"{self.database.instance.address}:{PORT}"
        return Platform(
            prefix=self.names.base,
            region=self.region,
            account=environment.account,
            cluster_arn=self.cluster.arn,
            image=self.names.image(self.region, image, digest),
            repository_arn=self.foundation.repository_arn("control_plane"),
            key_arn=self.foundation.key_arn,
            subnet_ids=self.network.machine_subnet_ids,
            public_addresses=self.network.has_addresses,
            environment={
                **environment.control_plane.environment,
                **_airflow_variables(environment.control_plane.airflow),
                **_airflow_variables(_auth_options(self._auth)),
                **services.settings(
                    address,
                    self.region,
                    environment.images.admitted,
                    trust_domain=environment.trust_domain,
                    gateway_name=environment.hosts["gateway"],
                    sandbox=environment.control_plane.sandbox,
                    policy=self.deployment.policy is not None,
                    bundles=environment.control_plane.airflow.get("dag_processor.dag_bundle_config_list"),
                ),
            },
            # ECS reads one key of a JSON secret as `<arn>:<key>:<stage>:<version>`; empty means the current one.
            owner={
                "PGUSER": f"{self.database.secret_arn}:username::",
                "PGPASSWORD": f"{self.database.secret_arn}:password::",
            },
        )

    def _services(self) -> ControlPlane:
        plane = self.environment.control_plane
        self.cluster = services.cluster(
            self,
            "cluster",
            self.names.base,
            self.foundation.key_arn,
            insights=not self.environment.is_economical,
        )
        platform = self._platform()
        _, digest = split_image(self.environment.images.control_plane)
        return ControlPlane(
            self,
            "services",
            platform,
            secrets=self.foundation.secret_arns(client_secret=bool(self._auth and self._auth.client_secret)),
            ui=self.ui,
            entrance=self.entrance,
            props=ControlPlaneProps(
                schedulers=plane.schedulers,
                api_servers=plane.api_servers,
                gateways=plane.gateways,
                security_group_id=self.services_group.id,
                gateway_group_id=self.gateway_group.id,
                regions=self._regions(),
                regional={
                    name: iam_regions.statements(self.names, name, self.environment.sites)
                    for name in services.NAMES
                },
                image_digest=digest,
                sizes={
                    name: (size.cpu, size.memory)
                    for name in services.NAMES
                    for size in [plane.sizes.of(name)]
                },
                wait_for=self.network.ways,
                python=self.deployment.python,
                policy=self._policy,
                sign_in=self._sign_in(),
            ),
        )

    @property
    def _auth(self) -> Auth | None:
        return self.environment.control_plane.auth

    def _sign_in(self) -> SignIn | None:
        rules = self._auth.rules(RUN_DIRECTORY) if self._auth else None
        return SignIn(rules, self._auth.client_secret) if self._auth and rules else None

    @property
    def _policy(self) -> str | None:
        text = self.deployment.policy
        return None if text is None else aws_facts.in_partition(text, self.region)

    def _observability(self) -> None:
        Observability(
            self,
            "observability",
            ObservabilityProps(
                prefix=self.names.base,
                region=self.region,
                database=self.names.base,
                cluster=self.names.base,
                services=self.control_plane.services,
                ui_balancer=self.ui.balancer.arn_suffix,
                gateway_balancer=self.entrance.balancer.arn_suffix,
                edge_targets=self.entrance.edge_targets.arn_suffix,
                pools={place.name: [pool.name for pool in place.pools] for place in self.environment.places},
                sites={site.name: site.beside for site in self.environment.sites},
                topic_arn=self.topic.arn,
            ),
        )

    def _outputs(self) -> None:
        self.outputs(
            {
                "home_region": (self.region, "Where the control plane is"),
                **({"teams": (self._teams(), "Who shares the pools")} if self.environment.teams else {}),
                **({"limits": (self._limits(), "What runs at one time")} if self.environment.limits else {}),
                **({"prices": (prices, "What placement weighs")} if (prices := self._prices()) else {}),
                "ui_address": (self.ui.balancer.dns_name, "The UI's balancer: what its host name points to"),
                "gateway_address": (
                    self.entrance.balancer.dns_name,
                    f"The gateway's balancer (port {EDGE_PORT} behind 443)",
                ),
                "gateway_host": (
                    self.environment.hosts["gateway"],
                    "The name in the gateway's certificate",
                ),
                "gateway_service_name": (self.entrance.service.service_name, "What edge networks connect to"),
                "database_address": (self.database.instance.address, "Postgres"),
                "database_secret_arn": (self.database.secret_arn, "The secret with its user and password"),
                "cluster_name": (self.cluster.name, "The ECS cluster"),
                "role_arns": (
                    {name: task.role.arn for name, task in self.control_plane.tasks.items()},
                    "Each service's own role",
                ),
            }
        )
