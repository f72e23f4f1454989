"""An environment: what a platform engineer writes in `environments/<name>.toml`, typed and validated.

Every problem is reported at once, each with the file and the key. Rules that span several entries (a region
twice, networks that overlap) are in `refusals`.
"""

from __future__ import annotations

import tomllib
from functools import cached_property
from ipaddress import IPv4Network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from airbridge.infra import refusals
from airbridge.infra.exceptions import EnvironmentFileError
from airbridge.infra.names import Names

RegionName = Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")]
PoolName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9]*(-[a-z0-9]+)*$", max_length=20)]
ImageReference = Annotated[str, AfterValidator(refusals.require_digest)]
InstanceType = Annotated[str, AfterValidator(refusals.require_instance_type)]
DataPrefix = Annotated[str, Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/\S*)?$")]
Cidr = Annotated[IPv4Network, AfterValidator(refusals.require_vpc_size)]
# Zone letters, not positions in a list: a zone that AWS adds later must not move a subnet.
Zones = Annotated[tuple[Annotated[str, Field(pattern="^[a-f]$")], ...], Field(min_length=2, max_length=3)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Pool(_Model):
    """A named group of like workers in a region."""

    name: PoolName
    instance_types: Annotated[tuple[InstanceType, ...], Field(min_length=1, max_length=20)]
    slots: Annotated[int, Field(ge=1, le=256, description="tasks that one instance runs at a time")]
    min_instances: Annotated[int, Field(ge=0, le=500)] = 0
    max_instances: Annotated[int, Field(ge=1, le=500)]
    on_demand_base: Annotated[int, Field(ge=0, description="instances that are never Spot")] = 0
    on_demand_percent: Annotated[int, Field(ge=0, le=100, description="of those above the base")] = 0
    disk_gib: Annotated[int, Field(ge=30, le=16384)] = 50
    drain_seconds: Annotated[int, Field(ge=30, le=7200, description="what a stopping instance may take")] = (
        3600
    )
    idle_minutes: Annotated[int, Field(ge=1, le=1440, description="without work before scaling in")] = 10


class Region(_Model):
    """A place where tasks can run."""

    name: RegionName
    cidr: Cidr
    zones: Zones = ("a", "b", "c")
    data: tuple[DataPrefix, ...] = ()
    log_days: Annotated[int, Field(ge=1, le=3650)] = 90
    pools: Annotated[tuple[Pool, ...], Field(alias="pool", min_length=1)]


class Database(_Model):
    """The control plane's Postgres."""

    instance_class: Annotated[str, Field(pattern=r"^db\.[a-z0-9]+\.[a-z0-9]+$")] = "db.t4g.medium"
    storage_gib: Annotated[int, Field(ge=20, le=65536)] = 50
    multi_az: bool = True
    backup_days: Annotated[int, Field(ge=1, le=35)] = 14


class ControlPlane(_Model):
    """Airflow, the gateway and Postgres in the home region."""

    cidr: Cidr
    zones: Zones = ("a", "b", "c")
    certificate_arn: Annotated[str, Field(pattern=r"^arn:aws:acm:[a-z0-9-]+:\d{12}:certificate/\S+$")]
    ui_cidrs: Annotated[tuple[IPv4Network, ...], Field(min_length=1)]
    operator_cidrs: Annotated[tuple[IPv4Network, ...], Field(min_length=1)]
    api_servers: Annotated[int, Field(ge=1, le=10)] = 2
    gateways: Annotated[int, Field(ge=1, le=20)] = 2
    database: Database = Database()


class Images(_Model):
    """What runs, by digest. The names are those of the repositories that the control plane's stack makes."""

    control_plane: ImageReference
    worker: ImageReference
    previous_worker: Annotated[
        ImageReference | None,
        Field(
            description="the worker image before this one: admitted until the next release, for rolling upgrades"
        ),
    ] = None

    @property
    def admitted(self) -> tuple[str, ...]:
        """The digests of the worker images that the control plane gives work."""
        references = (self.worker, self.previous_worker)
        return tuple(reference.partition("@")[2] for reference in references if reference)


class Pipelines(_Model):
    """Who may deploy: one repository, one of its deployment environments."""

    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9-]*/[A-Za-z0-9._-]+$")]
    deployment_environment: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]+$")]


class Protection(_Model):
    """What stands between a mistake and the data."""

    deletion: bool = True


class Environment(_Model):
    """One deployment of the platform."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9]{1,11}$")]
    tier: Literal["local", "development", "staging", "production"]
    account: Annotated[str, Field(pattern=r"^\d{12}$")]
    home_region: RegionName
    trust_domain: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$")]
    control_plane: ControlPlane
    images: Images
    pipelines: Pipelines
    protection: Protection = Protection()
    regions: Annotated[tuple[Region, ...], Field(alias="region", min_length=1)]

    @cached_property
    def names(self) -> Names:
        """What things are called here."""
        return Names(environment=self.name, account=self.account, home_region=self.home_region)

    def region(self, name: str) -> Region:
        """The region of that name; KeyError if there is none."""
        return {region.name: region for region in self.regions}[name]


def parse(data: dict[str, Any], source: str) -> Environment:
    """The environment in `data`; EnvironmentFileError or UnsafeStackError name `source` and every wrong key."""
    try:
        environment = Environment.model_validate(data)
    except ValidationError as error:
        problems = [f"{source}: {_key(item['loc'])}: {_reason(item)}" for item in _own_problems(error)]
        raise EnvironmentFileError("\n".join(problems)) from error
    refusals.check(environment, source)
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
    """Without "too short": pydantic says it of a list whose wrong items it has just left out."""
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
