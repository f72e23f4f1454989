"""The control plane's stack, in the home region."""

from __future__ import annotations

from typing import Any

from airbridge.infra import catalogue
from airbridge.infra.cdk import aws
from airbridge.infra.constructs import control_plane as services
from airbridge.infra.constructs.balancers import EDGE_PORT, GatewayEntrance, GatewayProps, Ui, UiProps
from airbridge.infra.constructs.checks import accept
from airbridge.infra.constructs.control_plane import ControlPlane, ControlPlaneProps, PolicySource
from airbridge.infra.constructs.database import PORT, Database, DatabaseProps
from airbridge.infra.constructs.key import Key, KeyProps
from airbridge.infra.constructs.network import CONTROL_PLANE_ENDPOINTS, Network, NetworkProps
from airbridge.infra.constructs.observability import Observability, ObservabilityProps
from airbridge.infra.constructs.registry import Registry, RegistryProps
from airbridge.infra.constructs.secrets import Secrets, SecretsProps
from airbridge.infra.constructs.service import Platform
from airbridge.infra.constructs.topic import AlarmTopic, TopicProps
from airbridge.infra.stacks.base import Deployment, Stack

NAME = "control-plane"
IMAGES = ("control_plane", "worker")


def gateway_host(trust_domain: str) -> str:
    """The name in the gateway's certificate."""
    return f"gateway.{trust_domain}"


def split_image(reference: str) -> tuple[str, str]:
    """`name@digest` as name and digest."""
    name, _, digest = reference.partition("@")
    return name, digest


class ControlPlaneStack(Stack):
    """Network, database, secrets, images, services, balancers, alarms.

    What it knows of the edge regions (the named wiring) is five things: where images are copied, which regions may
    connect to the gateway, the region catalogue (with it, the services that read it are replaced one by one), the
    dashboard's lines, and the alarms on what gateways publish of each region and pool.
    """

    def __init__(self, scope: Any, deployment: Deployment) -> None:
        environment = deployment.environment
        super().__init__(scope, NAME, deployment, environment.home_region)
        self.key = self._key()
        self.network = self._network()
        self._groups()
        self.topic = AlarmTopic(
            self, "alarms", TopicProps(f"{self.names.base}-alarms", self.key.arn, environment.account)
        )
        self.database = self._database()
        self.registry = self._registry()
        self.ui, self.entrance = self._balancers()
        self.control_plane = self._services()
        self._observability()
        self._outputs()

    def _key(self) -> Key:
        region = self.environment.home_region
        return Key(
            self,
            "key",
            KeyProps(
                alias=f"{self.names.base}-control-plane",
                description="The control plane's database, secrets, logs and images",
                account=self.environment.account,
                services=(f"logs.{region}.amazonaws.com", "cloudwatch.amazonaws.com"),
                protect=self.deployment.protect,
            ),
        )

    def _network(self) -> Network:
        plane = self.environment.control_plane
        return Network(
            self,
            "network",
            NetworkProps(
                name=f"{self.names.base}-control-plane",
                region=self.region,
                account=self.environment.account,
                cidr=plane.cidr,
                zones=plane.zones,
                endpoints=CONTROL_PLANE_ENDPOINTS,
                key_arn=self.key.arn,
                public=True,
            ),
        )

    def _groups(self) -> None:
        """Two groups: the gateway's, because the edge reaches it, and the other services'."""
        self.services_group = self.network.security_group("services", "Airflow's services")
        self.gateway_group = self.network.security_group("gateways", "The gateway")
        for group in (self.services_group, self.gateway_group):
            # The queues and buckets of other regions have no endpoint here.
            self.network.allow_out(group, "aws", 443, cidr="0.0.0.0/0")

    def _database(self) -> Database:
        settings = self.environment.control_plane.database
        database = Database(
            self,
            "database",
            self.network,
            (self.services_group, self.gateway_group),
            DatabaseProps(
                name=self.names.base,
                account=self.environment.account,
                instance_class=settings.instance_class,
                storage_gib=settings.storage_gib,
                multi_az=settings.multi_az,
                backup_days=settings.backup_days,
                key_arn=self.key.arn,
                deletion_protection=self.deployment.protect,
                protect=self.deployment.protect,
            ),
        )
        for group in (self.services_group, self.gateway_group):
            self.network.allow_out(group, "database", PORT, target=database.group)
        return database

    def _registry(self) -> Registry:
        names = {image: split_image(getattr(self.environment.images, image))[0] for image in IMAGES}
        return Registry(
            self,
            "registry",
            RegistryProps(
                repositories={image: self.names.repository(name) for image, name in names.items()},
                prefix=f"{self.names.base}/",
                key_arn=self.key.arn,
                account=self.environment.account,
                copies=sorted({region.name for region in self.environment.regions} - {self.region}),
                protect=self.deployment.protect,
            ),
        )

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
                network_cidr=str(plane.cidr),
                regions=[region.name for region in self.environment.regions],
                protect=self.deployment.protect,
            ),
        )
        return ui, entrance

    def _regions(self) -> str:
        """The region catalogue, in TOML."""
        regions = [
            catalogue.CatalogueRegion.expected(self.names, region) for region in self.environment.regions
        ]
        return catalogue.render(self.region, regions)

    def _parameter(self, name: str, description: str, value: str) -> Any:
        """A file that services are given when they start; none of it is secret."""
        parameter = aws.ssm_parameter.SsmParameter(
            self,
            name,
            name=f"/airbridge/{self.environment.name}/{name}",
            description=description,
            type="String",
            tier="Advanced",
            value=value,
        )
        accept(
            parameter,
            "CKV2_AWS_34",
            "names of queues, buckets, DAGs and connections are no secret; plain, a reviewer can read them",
        )
        return parameter

    def _parameter_arn(self, name: str) -> str:
        """Known beforehand, so that a role can name it alone."""
        environment = self.environment
        return (
            f"arn:aws:ssm:{self.region}:{environment.account}:parameter/airbridge/{environment.name}/{name}"
        )

    def _services(self) -> ControlPlane:
        environment, plane = self.environment, self.environment.control_plane
        secrets = Secrets(
            self,
            "secrets",
            SecretsProps(
                prefix=self.names.base,
                key_arn=self.key.arn,
                descriptions=services.SECRETS,
                protect=self.deployment.protect,
            ),
        )
        self.cluster = services.cluster(self, "cluster", self.names.base)
        image, digest = split_image(environment.images.control_plane)
        address = f"{self.database.instance.address}:{PORT}"
        platform = Platform(
            prefix=self.names.base,
            region=self.region,
            account=environment.account,
            cluster_arn=self.cluster.arn,
            image=self.names.image(self.region, image, digest),
            repository_arn=self.registry.repositories["control_plane"].arn,
            key_arn=self.key.arn,
            subnet_ids=[subnet.id for subnet in self.network.private_subnets],
            environment=services.settings(
                address,
                self.region,
                environment.images.admitted,
                trust_domain=environment.trust_domain,
                gateway_name=gateway_host(environment.trust_domain),
                policy=self.deployment.policy is not None,
            ),
            secrets={
                "PGUSER": f"{self.database.secret_arn}:username::",
                "PGPASSWORD": f"{self.database.secret_arn}:password::",
            },
        )
        regions = self._regions()
        return ControlPlane(
            self,
            "services",
            platform,
            secrets=secrets,
            ui=self.ui,
            entrance=self.entrance,
            props=ControlPlaneProps(
                api_servers=plane.api_servers,
                gateways=plane.gateways,
                security_group_id=self.services_group.id,
                gateway_group_id=self.gateway_group.id,
                regions_parameter=self._parameter(
                    "regions", "The region catalogue that the services read", regions
                ),
                regions=regions,
                regions_parameter_arn=self._parameter_arn("regions"),
                image_digest=digest,
                python=self.deployment.python,
                policy=self._policy(),
            ),
        )

    def _policy(self) -> PolicySource | None:
        text = self.deployment.policy
        if text is None:
            return None
        description = "What tasks may do beyond their own"
        return PolicySource(text, self._parameter("policy", description, text), self._parameter_arn("policy"))

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
                pools={
                    region.name: [pool.name for pool in region.pools] for region in self.environment.regions
                },
                topic_arn=self.topic.arn,
            ),
        )

    def _outputs(self) -> None:
        self.outputs(
            {
                "home_region": (self.region, "Where the control plane is"),
                "ui_address": (self.ui.balancer.dns_name, "The UI's balancer: what its host name points to"),
                "gateway_address": (
                    self.entrance.balancer.dns_name,
                    f"The gateway's balancer (port {EDGE_PORT} behind 443)",
                ),
                "gateway_host": (
                    gateway_host(self.environment.trust_domain),
                    "The name in the gateway's certificate",
                ),
                "gateway_service_name": (self.entrance.service.service_name, "What edge networks connect to"),
                "database_address": (self.database.instance.address, "Postgres"),
                "database_secret_arn": (self.database.secret_arn, "The secret with its user and password"),
                "cluster_name": (self.cluster.name, "The ECS cluster"),
                "repository_urls": (
                    {
                        image: repository.repository_url
                        for image, repository in self.registry.repositories.items()
                    },
                    "Where images are pushed",
                ),
                "role_arns": (
                    {name: task.role.arn for name, task in self.control_plane.tasks.items()},
                    "Each service's own role",
                ),
            }
        )
