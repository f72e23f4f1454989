"""Regions of AWS and their pools."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from airbridge.infra.environment.network import Egress, EndpointName, GivenNetwork
from airbridge.infra.environment.values import (
    Cidr,
    DataPrefix,
    InstanceType,
    Model,
    PoolName,
    RegionName,
    TaskAction,
    Variables,
    XComBytes,
    Zones,
)


class TaskStatement(Model):
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


class Pool(Model):
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


class RegionConfig(Model):
    """A place where tasks can run."""

    name: RegionName = Field(description="AWS region")
    cidr: Cidr = Field(description="network of the region's VPC")
    zones: Zones = Field(
        default=(),
        description="availability zones, by the end of their ids (`az1`); the region's first three",
    )
    data: tuple[DataPrefix, ...] = Field(
        default=(), description="prefixes of data in this region; its tasks may read them"
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
