"""Sites beside a region: the queues, buckets, alarms and roles that the region's stack makes for places outside AWS."""

from __future__ import annotations

from typing import Any

from airbridge.infra import catalogue
from airbridge.infra.cdk import Construct
from airbridge.infra.constructs.compute.worker_role import TaskRoleProps, given_statements, task_role
from airbridge.infra.constructs.edge_region import EdgeRegion, EdgeRegionProps, PoolQueue
from airbridge.infra.constructs.iam.site_role import SiteRoleProps, site_role
from airbridge.infra.environment import Site, SitePool
from airbridge.infra.stacks.base import Stack


class SiteResources(Construct):
    """One site: its queues and buckets under the region's key, and a role for each pool whose credentials are brokered."""

    def __init__(self, scope: Construct, stack: Stack, site: Site, *, key_arn: str, topic_arn: str) -> None:
        super().__init__(scope, site.name)
        self._site, self._names, self._key_arn = site, stack.names, key_arn
        self.edge = EdgeRegion(self, "region", self._props(stack, topic_arn))
        for pool in site.pools:
            if site.is_brokered:
                self._role(pool)
            if pool.task_statements:
                self._task_role(pool)

    def _props(self, stack: Stack, topic_arn: str) -> EdgeRegionProps:
        site, names = self._site, self._names
        own = names.site(site.name)
        roles = catalogue.site_roles(names, site)
        gateway = names.role_arn("gateway")
        return EdgeRegionProps(
            region=site.name,
            account=stack.environment.account,
            key_arn=self._key_arn,
            sender_arn=names.role_arn("scheduler"),
            queues={
                pool.name: PoolQueue(names.queue(own, pool.name), roles.get(pool.name, gateway))
                for pool in site.pools
            },
            dead_letter_queue=names.dead_letter_queue(own),
            log_bucket=names.log_bucket(own),
            bundle_bucket=names.bundle_bucket(own),
            log_days=site.log_days,
            alarm_prefix=f"{names.base}-{own}",
            topic_arn=topic_arn,
            protect=stack.deployment.protect,
        )

    def _role(self, pool: SitePool) -> None:
        site_role(
            self,
            f"{pool.name}-role",
            SiteRoleProps(
                name=self._names.site_role(self._site.name, pool.name),
                gateway_role_arn=self._names.role_arn("gateway"),
                region=self._site.beside,
                queue_arn=self.edge.queues[pool.name].arn,
                bundle_bucket_arn=self.edge.bundles.arn,
                log_bucket_arn=self.edge.logs.arn,
                key_arn=self._key_arn,
                stores_xcoms=self._site.stores_xcoms(pool),
            ),
        )

    def _task_role(self, pool: SitePool) -> None:
        task_role(
            self,
            f"{pool.name}-task-role",
            TaskRoleProps(
                name=self._names.site_task_role(self._site.name, pool.name),
                holder_arn=self._names.role_arn("gateway"),
                statements=given_statements(pool.task_statements),
            ),
        )

    def entry(self) -> dict[str, Any]:
        """Return what the catalogue has of the site, by the names of the region's own outputs."""
        site, edge = self._site, self.edge
        keeps = catalogue.site_keeps(self._names, site)
        return {
            "region_name": site.name,
            "place": catalogue.place_of(site),
            "log_bucket": edge.logs.name,
            "bundle_bucket": edge.bundles.name,
            "dead_letter_queue_url": edge.dead_letters.url,
            "queue_urls": {name: queue.url for name, queue in edge.queues.items()},
            "slots": {pool.name: pool.slots for pool in site.pools},
            "worker_role_arns": catalogue.site_roles(self._names, site),
            "data": list(site.data),
            **({"keeps": keeps} if keeps else {}),
        }
