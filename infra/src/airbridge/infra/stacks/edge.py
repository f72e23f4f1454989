"""An edge region's stack. It brings its own wiring: what the control plane's roles may do here is stated here."""

from __future__ import annotations

from typing import Any

from airbridge.infra.constructs.edge_region import LOG_PREFIX, EdgeRegion, EdgeRegionProps, PoolQueue
from airbridge.infra.constructs.gateway_link import GatewayLink, GatewayLinkProps
from airbridge.infra.constructs.key import Key, KeyProps
from airbridge.infra.constructs.network import WORKER_ENDPOINTS, Network, NetworkProps
from airbridge.infra.constructs.role import Role, grant
from airbridge.infra.constructs.worker_pool import WorkerPool, WorkerPoolProps
from airbridge.infra.constructs.worker_role import WorkerRoleProps, worker_role
from airbridge.infra.environment import Pool, Region
from airbridge.infra.refusals import architecture
from airbridge.infra.region_policies import api_server, dag_processor, gateway, scheduler
from airbridge.infra.scaling import ScalingPlan
from airbridge.infra.stacks import control_plane
from airbridge.infra.stacks.base import Deployment, Stack

# Amazon Linux 2023 with Docker and the SSM agent; a named version, so that a pool changes only when this does.
_MACHINE_IMAGE = (
    "resolve:ssm:/aws/service/ecs/optimized-ami/amazon-linux-2023/{arm}"
    "al2023-ami-ecs-hvm-2023.0.20250805-kernel-6.1-{architecture}/image_id"
)


class EdgeStack(Stack):
    """Network, queues, buckets, pools and roles of one edge region."""

    def __init__(self, scope: Any, deployment: Deployment, region: Region) -> None:
        super().__init__(scope, f"edge-{region.name}", deployment, region.name)
        self._region = region
        self._prefix = f"{self.names.base}-{region.name}"
        self._control_plane = self.outputs_of(control_plane.NAME)
        self.key = self._key()
        self.network = self._network()
        self.link = self._link()
        self.edge = self._edge()
        self.roles = {pool.name: self._role(pool) for pool in region.pools}
        self.pools = {pool.name: self._pool(pool) for pool in region.pools}
        self._grant_control_plane()
        self._outputs()

    def _key(self) -> Key:
        return Key(
            self,
            "key",
            KeyProps(
                alias=self._prefix,
                description=f"AirBridge's queues, buckets and logs in {self.region}",
                account=self.environment.account,
                services=(f"logs.{self.region}.amazonaws.com", "cloudwatch.amazonaws.com"),
                protect=self.deployment.protect,
            ),
        )

    def _network(self) -> Network:
        return Network(
            self,
            "network",
            NetworkProps(
                name=self._prefix,
                region=self.region,
                account=self.environment.account,
                cidr=self._region.cidr,
                zones=self._region.zones,
                endpoints=WORKER_ENDPOINTS,
                key_arn=self.key.arn,
            ),
        )

    def _link(self) -> GatewayLink:
        return GatewayLink(
            self,
            "gateway",
            self.network,
            GatewayLinkProps(
                service_name=self._control_plane.get_string("gateway_service_name"),
                service_region=self.environment.home_region,
                host=control_plane.gateway_host(self.environment.trust_domain),
                region=self.region,
                cidr=str(self._region.cidr),
            ),
        )

    def _edge(self) -> EdgeRegion:
        names, account = self.names, self.environment.account
        queues = {
            pool.name: PoolQueue(
                name=names.queue(self.region, pool.name),
                worker_role_arn=f"arn:aws:iam::{account}:role/{names.worker_role(self.region, pool.name)}",
            )
            for pool in self._region.pools
        }
        return EdgeRegion(
            self,
            "region",
            EdgeRegionProps(
                region=self.region,
                account=account,
                key_arn=self.key.arn,
                sender_arn=names.role_arn("scheduler"),
                queues=queues,
                dead_letter_queue=names.dead_letter_queue(self.region),
                log_bucket=names.log_bucket(self.region),
                bundle_bucket=names.bundle_bucket(self.region),
                log_days=self._region.log_days,
                alarm_prefix=self._prefix,
                protect=self.deployment.protect,
            ),
        )

    def _role(self, pool: Pool) -> Role:
        image, _ = control_plane.split_image(self.environment.images.worker)
        return worker_role(
            self,
            f"{pool.name}-role",
            WorkerRoleProps(
                name=self.names.worker_role(self.region, pool.name),
                region=self.region,
                account=self.environment.account,
                queue_arn=self.edge.queues[pool.name].arn,
                bundle_bucket_arn=self.edge.bundles.arn,
                log_bucket_arn=self.edge.logs.arn,
                key_arn=self.key.arn,
                repository=self.names.repository(image),
                group=self._pool_name(pool),
                data=self._region.data,
            ),
        )

    def _pool(self, pool: Pool) -> WorkerPool:
        group = self.network.security_group(
            f"workers-{pool.name}", f"Workers of the pool {pool.name}: nothing comes in"
        )
        self.network.allow_aws(group)
        self.network.allow_out(group, "gateway", 443, target=self.link.group)
        image, digest = control_plane.split_image(self.environment.images.worker)
        uri = self.names.image(self.region, image, digest)
        return WorkerPool(
            self,
            f"pool-{pool.name}",
            WorkerPoolProps(
                name=self._pool_name(pool),
                region=self.region,
                pool=pool.name,
                role_name=self.roles[pool.name].name,
                subnet_ids=[subnet.id for subnet in self.network.private_subnets],
                security_group_id=group.id,
                machine_image=_machine_image(pool.instance_types[0]),
                instance_types=pool.instance_types,
                disk_gib=pool.disk_gib,
                scaling=ScalingPlan(
                    min_instances=pool.min_instances,
                    max_instances=pool.max_instances,
                    slots=pool.slots,
                    idle_minutes=pool.idle_minutes,
                ),
                on_demand_base=pool.on_demand_base,
                on_demand_percent=pool.on_demand_percent,
                drain_seconds=pool.drain_seconds,
                image=uri,
                registry=uri.split("/", 1)[0],
                settings=self._settings(pool),
                bundle_bucket=self.names.bundle_bucket(self.region),
                key_arn=self.key.arn,
                tags=self.tags,
            ),
        )

    def _settings(self, pool: Pool) -> dict[str, str]:
        host = control_plane.gateway_host(self.environment.trust_domain)
        return {
            "AIRBRIDGE_WORKER_GATEWAY_URL": f"https://{host}",
            "AIRBRIDGE_WORKER_CA_FILE": "/etc/airbridge/ca.crt",
            "AIRBRIDGE_WORKER_REGION": self.region,
            "AIRBRIDGE_WORKER_POOL": pool.name,
            "AIRBRIDGE_WORKER_SLOTS": str(pool.slots),
            "AIRBRIDGE_WORKER_STATE_DIR": "/var/lib/airbridge",
            "AIRBRIDGE_WORKER_JOIN_METHOD": "aws_iam",
            "AWS_REGION": self.region,
        }

    def _pool_name(self, pool: Pool) -> str:
        return f"{self._prefix}-{pool.name}"

    def _grant_control_plane(self) -> None:
        """What the control plane's roles may do in this region. IAM is global, so the policies live here."""
        queues = [queue.arn for queue in self.edge.queues.values()]
        key, logs, bundles = self.key.arn, self.edge.logs.arn, self.edge.bundles.arn
        grants = {
            "scheduler": scheduler(queues, self.edge.dead_letters.arn, key),
            "api-server": api_server(logs, LOG_PREFIX, key),
            "dag-processor": dag_processor(bundles, key),
            "gateway": gateway(bundles, key),
        }
        for service, statements in grants.items():
            grant(self, f"{service}-here", self.names.role(service), statements)

    def _outputs(self) -> None:
        names, region = self.names, self._region
        self.outputs(
            {
                "region_name": (self.region, "This region"),
                "log_bucket": (self.edge.logs.name, "Task logs"),
                "bundle_bucket": (self.edge.bundles.name, "DAG snapshots"),
                "dead_letter_queue_url": (self.edge.dead_letters.url, "Work items that could not be handled"),
                "queue_urls": ({name: queue.url for name, queue in self.edge.queues.items()}, "By pool"),
                "slots": ({pool.name: pool.slots for pool in region.pools}, "Of one instance, by pool"),
                "data": (list(region.data), "Which data lies here"),
                "key_arn": (self.key.arn, "The key of the queues, buckets and logs"),
                "worker_role_arns": (
                    {pool: names.worker_role_arn(self.region, pool) for pool in self.roles},
                    "By pool: what the gateway accepts at enrolment",
                ),
                "groups": (
                    {name: pool.group.name for name, pool in self.pools.items()},
                    "Autoscaling groups, by pool",
                ),
            }
        )


def _machine_image(instance_type: str) -> str:
    kind = architecture(instance_type)
    return _MACHINE_IMAGE.format(arm="arm64/" if kind == "arm64" else "", architecture=kind)
