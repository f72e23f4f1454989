"""Sites: places outside AWS, whose queues and buckets lie in a region of AWS."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from airbridge.infra import validation
from airbridge.infra.environment.region import TaskStatement
from airbridge.infra.environment.values import Model, PoolName, RegionName, XComBytes

SiteName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=63)]
DataUri = Annotated[str, AfterValidator(validation.require_data_uri)]


class SitePool(Model):
    """A named group of like workers at a site. Its hosts are the site's own: nothing scales them."""

    name: PoolName = Field(default="default", description="name of the pool, unique at its site")
    slots: Annotated[int, Field(ge=1, le=256, description="tasks that one worker runs at a time")]
    slot_memory: Annotated[
        str | None,
        Field(
            pattern=r"^[0-9]{1,6}(\.[0-9]{1,6})?(MiB|GiB|TiB)$",
            description="memory of a slot, as in `4GiB`: a task that requests more takes more slots",
        ),
    ] = None
    slot_cpus: Annotated[
        float | None,
        Field(
            ge=0.01, le=1000, description="processors of a slot: a task that requests more takes more slots"
        ),
    ] = None
    max_absence_days: Annotated[
        int | None,
        Field(
            ge=1, le=3650, description="days after which a host with a bound key needs an operator to join"
        ),
    ] = None
    xcom_inline_bytes: XComBytes = Field(
        default=None, description="takes the place of the site's own for this pool's tasks"
    )
    secrets_backend: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$",
        description="class of Airflow's secrets backend that is read at the site, before the control plane's connections and variables",
    )
    secrets_backend_kwargs: dict[str, str | int | bool | None] = Field(
        default={}, description="arguments of that class; they are no place for secrets"
    )
    triggers: Literal["edge", "home"] | None = Field(
        default=None, description="takes the place of the site's own for this pool's tasks"
    )
    task_statements: tuple[TaskStatement, ...] = Field(
        default=(),
        description="what this pool's tasks may do in AWS: with any, the gateway gives them credentials of a role of their own",
    )


class Site(Model):
    """A place outside AWS where tasks run: a factory, a hospital, another cloud. The stack of the region `beside` has its queues and buckets."""

    name: SiteName = Field(description="name of the region in the catalogue; no AWS region has it")
    beside: RegionName = Field(
        description="AWS region, of a `[[region]]` entry, whose stack has the site's queues and buckets"
    )
    transport: Literal["gateway", "direct"] = Field(
        description="`gateway`: workers reach the gateway alone; `direct`: they reach SQS and S3 themselves"
    )
    credentials: Literal["brokered"] | None = Field(
        default=None,
        description="`brokered`, with the transport `direct`: the gateway gives workers AWS credentials",
    )
    networks: tuple[IPv4Network, ...] = Field(
        default=(),
        description="private networks from which its workers reach the gateway, by VPN, peering or transit gateway: its balancer is internal",
    )
    data: tuple[DataUri, ...] = Field(
        default=(), description="prefixes of data at this site, of any scheme, as in `file:///data/press`"
    )
    residency: Literal["open", "strict"] = Field(
        default="open", description="`strict`: no value leaves the site; needs the transport `direct`"
    )
    xcom_inline_bytes: XComBytes = Field(
        default=None,
        description="size above which an XCom is stored in the site's log bucket; without it none is; needs the transport `direct`",
    )
    xcom_preview_bytes: Annotated[
        int, Field(ge=0, le=4096, description="bytes of a stored XCom that Airflow's UI shows")
    ] = 0
    triggers: Literal["edge", "home"] = Field(
        default="edge",
        description="`edge`: triggers of deferred tasks run on the workers of the task's pool; `home`: in Airflow's triggerer",
    )
    log_days: Annotated[int, Field(ge=1, le=3650, description="retention of task logs")] = 90
    pools: Annotated[tuple[SitePool, ...], Field(alias="pool", min_length=1)]

    @property
    def is_brokered(self) -> bool:
        """Return whether workers get AWS credentials from the gateway."""
        return self.credentials == "brokered"

    def stores_xcoms(self, pool: SitePool) -> bool:
        """Return whether a pool's XComs may lie in the site's log bucket."""
        stored = pool.xcom_inline_bytes if pool.xcom_inline_bytes is not None else self.xcom_inline_bytes
        return stored is not None or self.residency == "strict"
