"""Values of several tables of an environment file, and the base of its tables."""

from __future__ import annotations

from ipaddress import IPv4Network
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from airbridge.infra import validation

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


class Model(BaseModel):
    """Table of an environment file: immutable, and unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")
