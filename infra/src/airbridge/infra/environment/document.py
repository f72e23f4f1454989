"""The environment as a whole."""

from __future__ import annotations

from functools import cached_property
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import Field

from airbridge.infra import aws_facts
from airbridge.infra.environment.control_plane import ControlPlane
from airbridge.infra.environment.deployment import Images, Pipelines, Protection, Subscription
from airbridge.infra.environment.region import Pool, RegionConfig
from airbridge.infra.environment.sharing import Limit, Prices, Team
from airbridge.infra.environment.site import Site
from airbridge.infra.environment.values import Model, RegionName
from airbridge.infra.names import Names


class Environment(Model):
    """One deployment of the platform."""

    name: Annotated[
        str,
        Field(
            pattern=r"^[a-z][a-z0-9]{1,8}$",
            description="name of the file; balancers have names of at most 32 characters",
        ),
    ]
    tier: Literal["local", "development", "staging", "production"] = Field(
        description="kind of environment; production has additional checks"
    )
    account: Annotated[str, Field(pattern=r"^\d{12}$", description="AWS account")]
    shares_account: bool = Field(
        default=False,
        description="whether another environment of the account has made what an account has one of: GitHub's OpenID Connect provider, which "
        "is used, and the registry's replication, in place of which `airbridge-ci copy` copies the images to each region",
    )
    shape: Literal["standard", "development"] = Field(
        default="standard",
        description="`development` costs less while idle: no NAT, no interface endpoints (services and workers have public addresses "
        "that nothing reaches), one zone for the gateway's link, no Container Insights; refused in production",
    )
    home_region: RegionName = Field(description="region of the control plane; needs a `[[region]]` entry")
    trust_domain: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$",
            description="SPIFFE trust domain of workers' certificates",
        ),
    ]
    ca_sha256: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9a-f]{64}$",
            description="SHA-256 of `trust/ca.crt`, which instances then verify: whoever writes to the bucket cannot become their gateway",
        ),
    ] = None
    control_plane: ControlPlane
    images: Images
    pipelines: Pipelines
    protection: Protection = Protection()
    regions: Annotated[tuple[RegionConfig, ...], Field(alias="region", min_length=1)]
    sites: Annotated[tuple[Site, ...], Field(alias="site")] = ()
    teams: Annotated[tuple[Team, ...], Field(alias="team")] = ()
    limits: Annotated[tuple[Limit, ...], Field(alias="limit")] = ()
    prices: Prices | None = None
    alarm_subscriptions: Annotated[tuple[Subscription, ...], Field(alias="alarm_subscription")] = ()

    @property
    def partition(self) -> str:
        """Return the partition of AWS that the account and all regions are in."""
        return aws_facts.partition(self.home_region)

    @property
    def is_economical(self) -> bool:
        """Return whether the networks do without NAT and interface endpoints."""
        return self.shape == "development"

    @property
    def task_services(self) -> list[str]:
        """Return the services of AWS that the statements of pools name."""
        of_regions = [pool.task_statements for region in self.regions for pool in region.pools]
        of_sites = [pool.task_statements for site in self.sites for pool in site.pools]
        statements = [each for given in (*of_regions, *of_sites) for each in given]
        return sorted({action.partition(":")[0] for each in statements for action in each.actions})

    @property
    def replicated(self) -> list[str]:
        """Return the regions that ECR replicates images to; those beyond need a copy by digest, `airbridge-ci copy`."""
        if self.shares_account:
            return []
        others = sorted({region.name for region in self.regions} - {self.home_region})
        return others[: aws_facts.REPLICATION_DESTINATIONS]

    def alarm_endpoints(self, region: str) -> list[tuple[str, str]]:
        """Return who is told of a region's alarms, as protocol and endpoint; SNS calls functions of its own region alone."""
        return [
            (each.protocol, each.endpoint)
            for each in self.alarm_subscriptions
            if each.protocol != "lambda" or each.endpoint.split(":")[3] == region
        ]

    def worker_image(self, pool: Pool) -> str:
        """Return the image of a pool's workers, by digest."""
        return self.images.worker if pool.image is None else self.images.derived[pool.image]

    @property
    def hosts(self) -> dict[str, str]:
        """Return the host names of the UI (empty without sign-in) and of the gateway."""
        auth = self.control_plane.auth
        ui = (urlsplit(auth.url).hostname or "") if auth else ""
        return {"ui": ui, "gateway": f"gateway.{self.trust_domain}"}

    @cached_property
    def names(self) -> Names:
        """Names of resources in this environment."""
        return Names(environment=self.name, account=self.account, home_region=self.home_region)

    @property
    def places(self) -> tuple[RegionConfig | Site, ...]:
        """Return the catalogue's regions: those of AWS, then the sites."""
        return (*self.regions, *self.sites)

    def sites_beside(self, region: str) -> list[Site]:
        """Return the sites whose queues and buckets a region's stack has."""
        return [site for site in self.sites if site.beside == region]

    def region(self, name: str) -> RegionConfig:
        """The region of that name; KeyError if there is none."""
        return {region.name: region for region in self.regions}[name]
