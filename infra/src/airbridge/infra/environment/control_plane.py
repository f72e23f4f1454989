"""The control plane: its network, its database, the sizes of its services."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from airbridge.infra import validation
from airbridge.infra.environment.network import Dns, GivenNetwork
from airbridge.infra.environment.values import AirflowOptions, Cidr, Model, Variables, Zones
from airbridge.infra.ui_auth import Auth


class Database(Model):
    """The control plane's Postgres."""

    instance_class: Annotated[
        str, Field(pattern=r"^db\.[a-z0-9]+\.[a-z0-9]+$", description="class of the RDS instance")
    ] = "db.t4g.medium"
    storage_gib: Annotated[int, Field(ge=20, le=65536, description="initial storage; it grows by itself")] = (
        50
    )
    multi_az: bool = Field(default=True, description="standby in a second zone; required in production")
    backup_days: Annotated[int, Field(ge=1, le=35, description="retention of automatic backups")] = 14


class Size(Model):
    """CPU and memory of one service's tasks."""

    cpu: Annotated[int, Field(description="CPU units of a task: 1,024 are one virtual CPU")] = 1024
    memory: Annotated[int, Field(description="memory of a task, in MiB")] = 2048

    @model_validator(mode="after")
    def _require_fargate_size(self) -> Self:
        validation.require_fargate_size(self.cpu, self.memory)
        return self


class Sizes(Model):
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


class ControlPlane(Model):
    """Airflow, the gateway and Postgres in the home region."""

    cidr: Cidr = Field(description="network of the control plane's VPC")
    zones: Zones = Field(
        default=(),
        description="availability zones, by the end of their ids (`az1`); the region's first three",
    )
    certificate_arn: Annotated[
        str,
        Field(
            pattern=r"^arn:aws(-us-gov)?:acm:[a-z0-9-]+:\d{12}:certificate/[\w-]+$",
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
