"""An edge region's stack, with the sites beside it. What the control plane's roles may do in it they may by its resources' names (`iam.regions`)."""

from __future__ import annotations

import json

from airbridge.infra import aws_facts, catalogue
from airbridge.infra.cdk import Construct, aws
from airbridge.infra.constructs.compute import worker_image
from airbridge.infra.constructs.compute.worker_pool import WorkerPool, WorkerPoolProps
from airbridge.infra.constructs.compute.worker_role import (
    TaskRoleProps,
    WorkerRoleProps,
    given_statements,
    task_role,
    worker_role,
)
from airbridge.infra.constructs.edge_region import EdgeRegion, EdgeRegionProps, PoolQueue
from airbridge.infra.constructs.iam.role import Role
from airbridge.infra.constructs.network.gateway_link import GatewayLink, GatewayLinkProps
from airbridge.infra.constructs.network.network import Network
from airbridge.infra.constructs.network.new_network import NewNetwork, NewNetworkProps, Route
from airbridge.infra.constructs.storage.key import Key, KeyProps
from airbridge.infra.environment import Pool, RegionConfig
from airbridge.infra.scaling import ScalingPlan
from airbridge.infra.stacks import control_plane
from airbridge.infra.stacks.base import Deployment, Stack
from airbridge.infra.stacks.networks import Common, existing
from airbridge.infra.stacks.sites import SiteResources
from airbridge.infra.validation import architecture


class EdgeStack(Stack):
    """Network, queues, buckets, pools and roles of one edge region."""

    def __init__(self, scope: Construct, deployment: Deployment, region: RegionConfig) -> None:
        super().__init__(scope, f"edge-{region.name}", deployment, region.name)
        self._region = region
        self._prefix = f"{self.names.base}-{region.name}"
        self._control_plane = self.outputs_of(control_plane.NAME)
        self.key = self._key()
        self.network = self._network()
        self.link = self._link()
        self.edge = self._edge()
        self.roles = {pool.name: self._role(pool) for pool in region.pools}
        self.pools = {}
        for pool in region.pools:
            self._task_role(pool)
            self.pools[pool.name] = self._pool(pool)
        self.sites = self._sites()
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
        """Make the region's network, or take the one that the environment gives."""
        region = self._region
        common: Common = {
            "name": self._prefix,
            "region": self.region,
            "account": self.environment.account,
            "cidr": region.cidr,
            "foreign_buckets": [_bucket(prefix) for prefix in region.data],
            "written_buckets": [_bucket(each) for pool in region.pools for each in pool.data_write],
        }
        endpoints = (*aws_facts.WORKER_ENDPOINTS, *region.endpoints)
        if region.network:
            return existing(self, region.network, endpoints, common)
        nat = any(each.via == "nat" for each in region.egress)
        return NewNetwork(
            self,
            "network",
            NewNetworkProps(
                **common,
                zones=region.zones or aws_facts.zones(self.region),
                endpoints=() if self.environment.is_economical else endpoints,
                public=self.environment.is_economical or nat,
                nat=nat,
                key_arn=self.key.arn,
                routes=[
                    Route(each.name, str(each.cidr), each.via)
                    for each in region.egress
                    if each.via is not None and each.via != "nat"
                ],
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
                host=self.environment.hosts["gateway"],
                region=self.region,
                cidr=str(self._region.cidr),
                zones=1 if self.environment.is_economical else None,
            ),
        )

    def _edge(self) -> EdgeRegion:
        names, account = self.names, self.environment.account
        queues = {
            pool.name: PoolQueue(
                name=names.queue(self.region, pool.name),
                receiver_arn=names.worker_role_arn(self.region, pool.name),
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
                alarm_subscriptions=self.environment.alarm_endpoints(self.region),
                protect=self.deployment.protect,
            ),
        )

    def _sites(self) -> list[SiteResources]:
        """Make what the places outside AWS need that are beside this region."""
        sites = self.environment.sites_beside(self.region)
        scope = Construct(self, "beside") if sites else self
        return [
            SiteResources(scope, self, site, key_arn=self.key.arn, topic_arn=self.edge.topic_arn)
            for site in sites
        ]

    def _role(self, pool: Pool) -> Role:
        image, _ = control_plane.split_image(self.environment.worker_image(pool))
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
                task_role_arn=self.names.task_role_arn(self.region, pool.name),
            ),
        )

    def _task_role(self, pool: Pool) -> Role:
        return task_role(
            self,
            f"{pool.name}-task-role",
            TaskRoleProps(
                name=self.names.task_role(self.region, pool.name),
                holder_arn=self.roles[pool.name].arn,
                data=self._region.data,
                writes=pool.data_write,
                statements=given_statements(pool.task_statements),
            ),
        )

    def _pool(self, pool: Pool) -> WorkerPool:
        group = self.network.security_group(
            f"workers-{pool.name}", f"Workers of the pool {pool.name}: nothing comes in"
        )
        self.network.allow_aws(group)
        self.network.allow_out(group, "gateway", 443, target=self.link.group)
        for each in self._region.egress:
            for port in each.ports:
                self.network.allow_out(group, f"{each.name}-{port}", port, cidr=str(each.cidr))
        image, digest = control_plane.split_image(self.environment.worker_image(pool))
        uri = self.names.image(self.region, image, digest)
        return WorkerPool(
            self,
            f"pool-{pool.name}",
            WorkerPoolProps(
                name=self._pool_name(pool),
                region=self.region,
                pool=pool.name,
                role_name=self.roles[pool.name].name,
                subnet_ids=self.network.machine_subnet_ids,
                public_address=self.network.has_addresses,
                security_group_id=group.id,
                machine_image=self._machine_image(pool),
                gpu=aws_facts.has_gpu(pool.instance_types[0]),
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
                task_role_arn=self.names.task_role_arn(self.region, pool.name),
                ca_sha256=self.environment.ca_sha256,
                release=self.deployment.releases.of(self.environment.worker_image(pool)),
                key_arn=self.key.arn,
                tags=self.tags,
            ),
        )

    def _machine_image(self, pool: Pool) -> str:
        """Look the AMI up when Terraform plans: a launch template that names a parameter cannot be rolled back to."""
        if pool.ami is not None:
            return pool.ami
        kind = pool.instance_types[0]
        parameter = aws_facts.ecs_ami_parameter(architecture(kind), gpu=aws_facts.has_gpu(kind))
        found = aws.data_aws_ssm_parameter.DataAwsSsmParameter(self, f"image-{pool.name}", name=parameter)
        return str(found.insecure_value)

    def _settings(self, pool: Pool) -> dict[str, str]:
        host = self.environment.hosts["gateway"]
        _, digest = control_plane.split_image(self.environment.worker_image(pool))
        return {
            # A container cannot find out its own digest, and the gateway admits workers by it.
            "AIRBRIDGE_WORKER_IMAGE_DIGEST": digest,
            "AIRBRIDGE_WORKER_GATEWAY_URL": f"https://{host}",
            "AIRBRIDGE_WORKER_CA_FILE": "/etc/airbridge/ca.crt",
            "AIRBRIDGE_WORKER_REGION": self.region,
            "AIRBRIDGE_WORKER_POOL": pool.name,
            "AIRBRIDGE_WORKER_SLOTS": str(pool.slots),
            "AIRBRIDGE_WORKER_STATE_DIR": "/var/lib/airbridge",
            "AIRBRIDGE_WORKER_JOIN_METHOD": "aws_iam",
            # The kernel of these images offers Landlock (aws_facts): one without it must not run tasks unconfined.
            "AIRBRIDGE_WORKER_TASK_SANDBOX": "require",
            "AIRBRIDGE_WORKER_TASK_ENV": json.dumps(self._task_env(pool)),
            "AWS_CONFIG_FILE": worker_image.AGENT_AWS_CONFIG,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REGION": self.region,
        }

    def _task_env(self, pool: Pool) -> dict[str, str]:
        """Return the environment of tasks: the task role's credentials, and the region that clients work in."""
        return {
            **pool.task_env,
            "AWS_CONFIG_FILE": worker_image.TASK_AWS_CONFIG,
            "AWS_DEFAULT_REGION": self.region,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_REGION": self.region,
        }

    def _pool_name(self, pool: Pool) -> str:
        return f"{self._prefix}-{pool.name}"

    def _outputs(self) -> None:
        names, region = self.names, self._region
        keeps = catalogue.kept(region)
        sites = [site.entry() for site in self.sites]
        self.outputs(
            {
                "region_name": (self.region, "This region"),
                "log_bucket": (self.edge.logs.name, "Task logs"),
                "bundle_bucket": (self.edge.bundles.name, "DAG snapshots"),
                "dead_letter_queue_url": (self.edge.dead_letters.url, "Work items that could not be handled"),
                "queue_urls": ({name: queue.url for name, queue in self.edge.queues.items()}, "By pool"),
                "slots": ({pool.name: pool.slots for pool in region.pools}, "Of one instance, by pool"),
                "data": (list(region.data), "Which data lies here"),
                **({"keeps": (keeps, "What the region and its pools keep")} if keeps else {}),
                **({"sites": (sites, "Places outside AWS beside it")} if sites else {}),
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


def _bucket(prefix: str) -> str:
    return prefix.removeprefix("s3://").split("/")[0]
