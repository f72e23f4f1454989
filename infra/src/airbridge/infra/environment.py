"""An environment: what a platform engineer writes in `environments/<name>.toml`, typed and validated.

Every problem is reported at once, each with the file and the key. Rules that span several entries (a region
twice, networks that overlap) are in `refusals`.
"""

from __future__ import annotations

import tomllib
from functools import cached_property
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from airbridge.infra import aws_facts, validation
from airbridge.infra.exceptions import EnvironmentFileError
from airbridge.infra.names import Names
from airbridge.infra.ui_auth import Auth

RegionName = Annotated[
    str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$"), AfterValidator(validation.require_supported_region)
]
PoolName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=20)]
ImageReference = Annotated[str, AfterValidator(validation.require_digest)]
DerivedImages = Annotated[dict[str, ImageReference], AfterValidator(validation.require_image_names)]
InstanceType = Annotated[str, AfterValidator(validation.require_instance_type)]
DataPrefix = Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/\S*)?$")]
XComBytes = Annotated[int, Field(ge=0, le=1024 * 1024)] | None
Cidr = Annotated[IPv4Network, AfterValidator(validation.require_vpc_size)]
# Zone ids, not positions in a list, which a new zone would move, nor letters, which are other zones in another account.
Zones = Annotated[tuple[Annotated[str, Field(pattern="^az[1-9]$")], ...], Field(min_length=2, max_length=3)]


AirflowOptions = Annotated[dict[str, str], AfterValidator(validation.require_airflow_options)]
Variables = Annotated[dict[str, str], AfterValidator(validation.require_variables)]


TaskAction = Annotated[
    str, Field(pattern=r"^[a-z0-9-]+:[A-Za-z0-9]+$"), AfterValidator(validation.require_task_action)
]
SubnetId = Annotated[str, Field(pattern=r"^subnet-[0-9a-f]{8,17}$")]
EndpointName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*(\.[a-z0-9-]+)*$")]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class TaskStatement(_Model):
    """Statement of the role of a pool's tasks, beyond the region's data."""

    actions: Annotated[
        tuple[TaskAction, ...],
        Field(min_length=1, description="actions, each in full, as in `dynamodb:GetItem`"),
    ]
    resources: Annotated[
        tuple[Annotated[str, Field(pattern=r"^arn:aws(-us-gov)?:\S+$")], ...],
        Field(min_length=1, description="ARNs"),
    ]
    conditions: dict[str, dict[str, str | list[str]]] = Field(
        default={}, description="conditions, by operator and key, as IAM writes them"
    )


class Egress(_Model):
    """A network beyond AWS's services that tasks of a region reach: a database, an API, a data centre."""

    name: PoolName = Field(description="name of the network, unique in its region")
    cidr: IPv4Network = Field(description="its range")
    ports: Annotated[
        tuple[Annotated[int, Field(ge=1, le=65535)], ...], Field(min_length=1, description="TCP ports there")
    ]
    via: Annotated[
        str | None,
        Field(
            pattern=r"^(nat|tgw-[0-9a-f]{17}|pcx-[0-9a-f]{8,17})$",
            description="the way there: a transit gateway (`tgw-…`), to which the network is attached; an accepted peering (`pcx-…`); or "
            "`nat`, NAT gateways of the region's own, one a zone. An existing network has routes of its own: left out there",
        ),
    ] = None


class GivenNetwork(_Model):
    """A VPC that exists, in place of one that the stacks make: its subnets and routes stay as they are."""

    vpc: Annotated[
        str, Field(pattern=r"^vpc-[0-9a-f]{8,17}$", description="id of the VPC; `cidr` is its range")
    ]
    subnets: Annotated[
        tuple[SubnetId, ...],
        Field(
            min_length=2, description="private subnets, in different zones: of machines, endpoints, balancers"
        ),
    ]
    public_subnets: tuple[SubnetId, ...] = Field(
        default=(),
        description="public subnets of the UI's balancer, in different zones; the control plane's network has them",
    )
    route_tables: tuple[Annotated[str, Field(pattern=r"^rtb-[0-9a-f]{8,17}$")], ...] = Field(
        default=(), description="route tables of the subnets, which S3's endpoint joins"
    )
    endpoints: bool = Field(
        default=True,
        description="whether the stacks make the endpoints to AWS's services; `false` where the VPC has those that the reference lists, "
        "with private names",
    )


class Dns(_Model):
    """A hosted zone in which the stacks write records."""

    zone: Annotated[str, Field(pattern=r"^Z[A-Z0-9]{5,31}$", description="id of the hosted zone in Route 53")]
    domain: Annotated[
        str,
        Field(
            pattern=r"^[a-z0-9-]+(\.[a-z0-9-]+)+$",
            description="its domain: the host of `auth.url` and the gateway's name get records if they lie in it",
        ),
    ]

    def has(self, host: str) -> bool:
        """Return whether a host name lies in the domain."""
        return host == self.domain or host.endswith(f".{self.domain}")


class Subscription(_Model):
    """Subscription of the alarms."""

    protocol: Literal["email", "https", "sqs", "lambda"] = Field(description="how")
    endpoint: Annotated[
        str,
        Field(
            pattern=r"^\S+$",
            description="address, URL or ARN; an address must confirm each region's topic",
        ),
    ]


class Pool(_Model):
    """A named group of like workers in a region."""

    name: PoolName = Field(description="name of the pool, unique in its region")
    instance_types: Annotated[
        tuple[InstanceType, ...],
        Field(
            min_length=1,
            max_length=20,
            description="instance types, all of one architecture",
        ),
    ]
    image: str | None = Field(
        default=None,
        description="derived image of this pool's workers, by its name in `images.derived`; the worker image without",
    )
    ami: Annotated[
        str | None,
        Field(
            pattern=r"^ami-[0-9a-f]{8,17}$",
            description="machine image, with what the ECS-optimised one of Amazon Linux 2023 has; that one without",
        ),
    ] = None
    slots: Annotated[int, Field(ge=1, le=256, description="tasks that one instance runs at a time")]
    min_instances: Annotated[int, Field(ge=0, le=500, description="instances that always run")] = 0
    max_instances: Annotated[int, Field(ge=1, le=500, description="upper limit of autoscaling")]
    on_demand_base: Annotated[int, Field(ge=0, description="instances that are never Spot")] = 0
    on_demand_percent: Annotated[
        int, Field(ge=0, le=100, description="percentage of on-demand instances above the base")
    ] = 0
    disk_gib: Annotated[int, Field(ge=30, le=16384, description="size of an instance's encrypted disk")] = 50
    drain_seconds: Annotated[
        int, Field(ge=30, le=7200, description="time that a terminating instance has to finish its tasks")
    ] = 3600
    data_write: tuple[DataPrefix, ...] = Field(
        default=(), description="prefixes of S3 that tasks of this pool may write, and read"
    )
    task_statements: tuple[TaskStatement, ...] = Field(
        default=(), description="what tasks of this pool may do beyond the region's data"
    )
    task_env: Variables = Field(
        default={}, description="environment variables of this pool's tasks; they are no place for secrets"
    )
    xcom_inline_bytes: XComBytes = Field(
        default=None, description="takes the place of the region's own for this pool's tasks"
    )
    secrets_backend: str | None = Field(
        default=None,
        pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$",
        description="class of Airflow's secrets backend that is read in the region, before the control plane's connections and variables",
    )
    secrets_backend_kwargs: dict[str, str | int | bool | None] = Field(
        default={}, description="arguments of that class; they are no place for secrets"
    )
    triggers: Literal["edge", "home"] | None = Field(
        default=None, description="takes the place of the region's own for this pool's tasks"
    )
    idle_minutes: Annotated[
        int, Field(ge=1, le=1440, description="time with half of the slots free before the pool is halved")
    ] = 10


class RegionConfig(_Model):
    """A place where tasks can run."""

    name: RegionName = Field(description="AWS region")
    cidr: Cidr = Field(description="network of the region's VPC")
    zones: Zones = Field(
        default=(),
        description="availability zones, by the end of their ids (`az1`); the region's first three",
    )
    data: tuple[DataPrefix, ...] = Field(
        default=(), description="prefixes of data in this region; its workers may read them"
    )
    residency: Literal["open", "strict"] = Field(
        default="open", description="`strict`: no value leaves the region"
    )
    xcom_inline_bytes: XComBytes = Field(
        default=None,
        description="size above which an XCom is stored in the region's log bucket; without it none is",
    )
    xcom_preview_bytes: Annotated[
        int, Field(ge=0, le=4096, description="bytes of a stored XCom that Airflow's UI shows")
    ] = 0
    triggers: Literal["edge", "home"] = Field(
        default="edge",
        description="`edge`: triggers of deferred tasks run on the workers of the task's pool; `home`: in Airflow's triggerer",
    )
    log_days: Annotated[int, Field(ge=1, le=3650, description="retention of task logs")] = 90
    network: GivenNetwork | None = None
    endpoints: tuple[EndpointName, ...] = Field(
        default=(), description="endpoints to further services of AWS that tasks call, as in `dynamodb`"
    )
    egress: tuple[Egress, ...] = ()
    pools: Annotated[tuple[Pool, ...], Field(alias="pool", min_length=1)]


class Team(_Model):
    """Bundles whose tasks share pools with those of other teams."""

    name: PoolName = Field(
        description="name of the team; `default` has every bundle that no other team names"
    )
    bundles: tuple[str, ...] = Field(default=(), description="names of the team's DAG bundles")
    weight: Annotated[
        float,
        Field(
            ge=0.001,
            le=1000,
            description="share of a pool that several teams have work for, beside the others' weights",
        ),
    ] = 1.0
    quota: dict[str, Annotated[int, Field(ge=1)]] = Field(
        default_factory=dict,
        description="slots that the team's work may have at one time, by queue: `region` or `pool@region`",
    )


class Limit(_Model):
    """Limit on the tasks that run at one time, or start within a minute, in all regions together."""

    name: PoolName = Field(description="name of the limit, which tasks give in their hints")
    max_running: Annotated[int | None, Field(ge=1, description="tasks that run at one time")] = None
    starts_per_minute: Annotated[
        int | None, Field(ge=1, le=10_000, description="tasks that start within any minute")
    ] = None
    pools: tuple[str, ...] = Field(
        default=(),
        description="queues whose tasks all count, beside those that name the limit: `region` or `pool@region`",
    )


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Prices(_Model):
    """Prices that placement weighs, all in one currency; what has no price is free."""

    egress: dict[str, Price] = Field(
        default={}, description="a GiB that leaves a region, by region; `*` is every other one"
    )
    slot_hour: dict[str, Price] = Field(
        default={},
        description="an hour of one slot, by queue (`region` or `pool@region`); `*` is every other one",
    )


class Database(_Model):
    """The control plane's Postgres."""

    instance_class: Annotated[
        str, Field(pattern=r"^db\.[a-z0-9]+\.[a-z0-9]+$", description="class of the RDS instance")
    ] = "db.t4g.medium"
    storage_gib: Annotated[int, Field(ge=20, le=65536, description="initial storage; it grows by itself")] = (
        50
    )
    multi_az: bool = Field(default=True, description="standby in a second zone; required in production")
    backup_days: Annotated[int, Field(ge=1, le=35, description="retention of automatic backups")] = 14


class Size(_Model):
    """CPU and memory of one service's tasks."""

    cpu: Annotated[int, Field(description="CPU units of a task: 1,024 are one virtual CPU")] = 1024
    memory: Annotated[int, Field(description="memory of a task, in MiB")] = 2048

    @model_validator(mode="after")
    def _require_fargate_size(self) -> Self:
        validation.require_fargate_size(self.cpu, self.memory)
        return self


class Sizes(_Model):
    """CPU and memory of the services, by service."""

    api_server: Size = Field(
        default=Size(), alias="api-server", description="two of Airflow's API workers each"
    )
    scheduler: Size = Size()
    dag_processor: Size = Field(default=Size(), alias="dag-processor")
    triggerer: Size = Size()
    gateway: Size = Size()

    def of(self, service: str) -> Size:
        """Return the size of a service, by its name in ECS; that of the migrations is the default."""
        found = getattr(self, service.replace("-", "_"), None)
        return found if isinstance(found, Size) else Size()


class ControlPlane(_Model):
    """Airflow, the gateway and Postgres in the home region."""

    cidr: Cidr = Field(description="network of the control plane's VPC")
    zones: Zones = Field(
        default=(),
        description="availability zones, by the end of their ids (`az1`); the region's first three",
    )
    certificate_arn: Annotated[
        str,
        Field(
            pattern=r"^arn:aws(-us-gov)?:acm:[a-z0-9-]+:\d{12}:certificate/\S+$",
            description="ACM certificate of the UI",
        ),
    ]
    network: GivenNetwork | None = None
    dns: Dns | None = None
    ui_cidrs: Annotated[
        tuple[IPv4Network, ...], Field(min_length=1, description="networks that may reach the UI")
    ]
    operator_cidrs: Annotated[
        tuple[IPv4Network, ...],
        Field(
            min_length=1,
            description="networks that may reach the operators' port, by VPN, peering or transit gateway: its balancer is internal",
        ),
    ]
    schedulers: Annotated[int, Field(ge=1, le=4, description="scheduler tasks")] = 2
    api_servers: Annotated[int, Field(ge=1, le=10, description="api-server tasks")] = 2
    gateways: Annotated[int, Field(ge=1, le=20, description="gateway tasks")] = 2
    sandbox: Literal["require", "auto"] = Field(
        default="require",
        description="sandbox of DAG code that dag-processor and gateway parse: `require` refuses code where the kernel lacks Landlock, `auto` parses it with less protection",
    )
    auth: Auth | None = None
    database: Database = Database()
    sizes: Sizes = Sizes()
    airflow: AirflowOptions = Field(
        default={},
        description="options of Airflow's configuration in every service, as `section.option`: DAG bundles, secrets backend and others",
    )
    environment: Variables = Field(
        default={}, description="environment variables of every service; they are no place for secrets"
    )


class Images(_Model):
    """Images by digest, in the repositories that the foundation's stack creates."""

    control_plane: ImageReference = Field(description="image of the control plane's services")
    worker: ImageReference = Field(description="image of the workers")
    previous_worker: Annotated[
        ImageReference | None,
        Field(description="previous worker image, admitted until the next release, for rolling upgrades"),
    ] = None
    derived: DerivedImages = Field(
        default={}, description="derived worker images by name, which pools name with `image`"
    )
    previous_derived: DerivedImages = Field(
        default={}, description="previous derived images, admitted until the next release"
    )

    @property
    def admitted(self) -> tuple[str, ...]:
        """The digests of the worker images that the control plane gives work."""
        references = (
            self.worker,
            self.previous_worker,
            *self.derived.values(),
            *self.previous_derived.values(),
        )
        return tuple(reference.partition("@")[2] for reference in references if reference)

    @property
    def repositories(self) -> dict[str, str]:
        """The repositories of all images, by their key here; derived images by their name."""
        references = {"control_plane": self.control_plane, "worker": self.worker}
        references |= self.previous_derived | self.derived
        return {key: reference.partition("@")[0] for key, reference in references.items()}


class Pipelines(_Model):
    """GitHub repository and deployment environment that may deploy."""

    repository: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+$", description="owner/name on GitHub")
    ]
    deployment_environment: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9_.-]+$", description="deployment environment of that repository")
    ]


class Protection(_Model):
    """Protection of data against mistakes."""

    deletion: bool = Field(
        default=True, description="deletion protection of queues, buckets, keys, database and secrets"
    )


class Environment(_Model):
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
        statements = [
            statement
            for region in self.regions
            for pool in region.pools
            for statement in pool.task_statements
        ]
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

    def region(self, name: str) -> RegionConfig:
        """The region of that name; KeyError if there is none."""
        return {region.name: region for region in self.regions}[name]


def parse(data: dict[str, Any], source: str) -> Environment:
    """The environment in `data`; EnvironmentFileError or UnsafeStackError name `source` and every wrong key."""
    try:
        environment = Environment.model_validate(data)
    except ValidationError as error:
        problems = [f"{source}: {_key(item['loc'])}: {_reason(item)}" for item in _own_problems(error)]
        raise EnvironmentFileError("\n".join(problems)) from error
    validation.check(environment, source)
    return environment


def load(path: Path) -> Environment:
    """The environment written in a file, whose name must be the environment's."""
    try:
        data = tomllib.loads(path.read_text())
    except FileNotFoundError as error:
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.toml"))) or "none"
        raise EnvironmentFileError(f"{path}: no such environment; there are: {known}") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise EnvironmentFileError(f"{path}: {error}") from error
    environment = parse(data, str(path))
    if environment.name != path.stem:
        raise EnvironmentFileError(f"{path}: name: is {environment.name!r}, the file says {path.stem!r}")
    return environment


def _own_problems(error: ValidationError) -> list[Any]:
    """Without "too short": pydantic reports it for a list whose invalid items it has just left out."""
    items = error.errors()
    wrong = {item["loc"][:depth] for item in items for depth in range(1, len(item["loc"]))}
    return [item for item in items if item["loc"] not in wrong]


def _key(location: tuple[int | str, ...]) -> str:
    key = ""
    for part in location:
        key += f"[{part}]" if isinstance(part, int) else f".{part}" if key else part
    return key or "(the whole file)"


def _reason(item: Any) -> str:
    message = str(item["msg"]).removeprefix("Value error, ")
    if item["type"] in {"missing", "extra_forbidden"}:
        return message
    return f"{message} (it is {item['input']!r})"
