"""Entries of the region catalogue: regions, pools, the location of data, the teams that share pools, limits and prices."""

from __future__ import annotations

import math
import re
from enum import StrEnum
from typing import Annotated, Final, Literal, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from airbridge.core.exceptions import PlacementError
from airbridge.core.hints import Cpus, Memory, memory_text, names_data
from airbridge.core.protocol import CredentialSource, Name, Transport

DEFAULT_POOL = "default"
# Team of every bundle that no team names.
DEFAULT_TEAM = "default"

T = TypeVar("T")


def _http_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.netloc:
        raise ValueError("must be a URL that begins with http:// or https://")
    return value


# Shape of the names of AWS's regions, in all of its partitions.
_AWS_REGION: Final = re.compile(
    r"(af|ap|ca|cn|eu|il|me|mx|sa|us)(-gov|-iso[a-z]?)?-(north|south|east|west|central)+-[0-9]{1,2}"
)
# What a region's name is by AWS's shape: a typing error in it is refused, instead of being asked for in DNS.
AWS_LIKE: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]")
# Characters that may follow a prefix of data: its rest is then below the prefix, and not a longer name.
_BELOW: Final = frozenset("/?;#")


def _data_uri(value: str) -> str:
    if not names_data(value):
        raise ValueError(
            "must be a URI such as s3://bucket/prefix, gs://bucket, file:///data or jdbc:postgresql://host/database"
        )
    return value.rstrip("/")


def _aws_region(value: str) -> str:
    if not _AWS_REGION.fullmatch(value):
        raise ValueError(f"{value!r} is no AWS region; write one such as eu-central-1")
    return value


Url = Annotated[str, AfterValidator(_http_url)]
DataUri = Annotated[str, AfterValidator(_data_uri)]
AwsRegion = Annotated[str, AfterValidator(_aws_region)]


class Entry(BaseModel):
    """An entry of the catalogue; a name that it does not know is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


RoleArn = Annotated[
    str,
    Field(
        pattern=r"^arn:aws(-cn|-us-gov)?:iam::[0-9]{12}:role/([\x21-\x7e]{1,512}/)?[A-Za-z0-9+=,.@_-]{1,64}$"
    ),
]


# Where the triggers of deferred tasks run: on the workers of their pool, or in Airflow's triggerer.
TriggerPlace = Literal["edge", "home"]

XComBytes = Annotated[int, Field(ge=0, le=1024 * 1024)]


class Residency(StrEnum):
    """Rule for values that tasks report: whether they leave the region."""

    #: What tasks report, as Airflow has it.
    OPEN = "open"
    #: States, times, sizes, digests and names alone.
    STRICT = "strict"


class Pool(Entry):
    """A named group of like workers, and the queue they receive from."""

    name: Name = DEFAULT_POOL
    queue_url: Url
    #: Of one worker: what the backlog is measured by while no worker of the pool is alive.
    slots: int = Field(default=1, ge=1)
    #: What one slot of a worker has, as in the workers' own settings: a task that requests more takes more slots.
    slot_memory: Memory | None = None
    slot_cpus: Cpus | None = None
    #: The IAM role of the pool's hosts: a host that proves to AWS that it has this role may join (method
    #: ``aws_iam``). With brokered credentials: the role that the gateway assumes for them.
    role_arn: RoleArn | None = None
    #: Role whose credentials the tasks of the pool get from the gateway, where workers have none of their host.
    task_role_arn: RoleArn | None = None
    #: In place of the region's.
    credentials: CredentialSource | None = None
    #: In place of the region's.
    transport: Transport | None = None
    #: Days after which a host with a bound key does not join by itself any more; unset: it always does.
    max_absence_days: float | None = Field(default=None, gt=0)
    #: Takes the place of the region's own.
    xcom_inline_bytes: XComBytes | None = None
    #: Class of Airflow's secrets backend in which workers look connections and variables up before the control plane is asked.
    secrets_backend: str | None = Field(default=None, pattern=r"^[A-Za-z_]\w*(\.[A-Za-z_]\w*)+$")
    secrets_backend_kwargs: dict[str, str | int | bool | None] = Field(default_factory=dict)
    #: In place of the region's.
    triggers: TriggerPlace | None = None

    def slots_for(self, slots: int, memory: int | None, cpus: float | None) -> int:
        """Return the slots of a task that requests this much. Raises `PlacementError` if no worker can have it."""
        needed = max(slots, _shares(memory, self.slot_memory), _shares(cpus, self.slot_cpus))
        if needed > max(slots, self.slots):
            raise PlacementError(
                f"{self._asked(memory, cpus)} takes {needed} slots of pool {self.name!r}, and a worker of it has {self.slots}; "
                "request less, or name a pool of larger workers (its slots, slot_memory and slot_cpus are in the catalogue)"
            )
        return needed

    def _asked(self, memory: int | None, cpus: float | None) -> str:
        asked = []
        if memory is not None and self.slot_memory is not None:
            asked.append(f"memory of {memory_text(memory)} (a slot has {memory_text(self.slot_memory)})")
        if cpus is not None and self.slot_cpus is not None:
            asked.append(f"cpus of {cpus:g} (a slot has {self.slot_cpus:g})")
        return " with ".join(asked)


def _shares(wanted: float | None, share: float | None) -> int:
    return 0 if wanted is None or share is None else math.ceil(wanted / share)


class Region(Entry):
    """A place tasks can run: a region of AWS, or any other place under a free name."""

    name: Name
    #: Where the region's queues and buckets are, if its name is not AWS's.
    aws_region: AwsRegion | None = None
    #: ``direct``: workers reach their queue and buckets themselves; ``gateway``: all goes through the gateway.
    transport: Transport = "direct"
    #: ``host``: workers have AWS credentials of their own; ``brokered``: they get short-lived ones from the gateway.
    credentials: CredentialSource = "host"
    log_bucket: str = Field(min_length=1)
    bundle_bucket: str = Field(min_length=1)
    dead_letter_queue_url: Url | None = None
    endpoint_url: Url | None = None
    data: tuple[DataUri, ...] = ()
    residency: Residency = Residency.OPEN
    #: Size of an XCom, as JSON, above which it lies in the region's log bucket beneath ``xcoms/``. Without it none does.
    xcom_inline_bytes: XComBytes | None = None
    #: Bytes of such an XCom's JSON that Airflow's UI and REST API show.
    xcom_preview_bytes: int = Field(default=0, ge=0, le=4096)
    #: ``edge``: triggers of deferred tasks run on workers of the task's pool; ``home``: in Airflow's triggerer.
    triggers: TriggerPlace = "edge"
    pools: tuple[Pool, ...] = Field(alias="pool", min_length=1)

    def pool(self, name: str) -> Pool | None:
        """Return a pool by name."""
        return next((pool for pool in self.pools if pool.name == name), None)

    @property
    def aws(self) -> str:
        """AWS region of the queues and buckets."""
        return self.aws_region or self.name

    def transport_of(self, pool: Pool) -> Transport:
        """Return how a pool's workers reach their queue and buckets."""
        return pool.transport or self.transport

    def credentials_of(self, pool: Pool) -> CredentialSource:
        """Return from where a pool's workers have their AWS credentials."""
        return pool.credentials or self.credentials

    def triggers_of(self, pool: Pool) -> TriggerPlace:
        """Return where the triggers of a pool's tasks run."""
        return pool.triggers or self.triggers

    def holds(self, uri: str) -> int:
        """Return how many characters of `uri` name data of this region; 0 if it is data of another region."""
        uri = uri.rstrip("/")
        return max((len(data) for data in self.data if _is_below(uri, data)), default=0)

    def place_problem(self) -> str | None:
        """Return why nothing states where the region's queues and buckets are; None if it is known."""
        if self.aws_region is not None or self.endpoint_url is not None or _AWS_REGION.fullmatch(self.name):
            return None
        where = f"region {self.name!r}: the name is not an AWS region's, and nothing says where its queues and buckets are; "
        advice = 'set aws_region to the AWS region that has them, such as aws_region = "eu-central-1"'
        if AWS_LIKE.fullmatch(self.name):
            return f"{where}correct the name, or {advice}"
        return f'{where}{advice}, and transport = "gateway" if its workers have no access to AWS'


class Team(Entry):
    """A group of bundles whose tasks share pools with those of other teams.

    Where several teams have work for a pool, each gets slots in proportion to its `weight`; within a team, priority counts.
    """

    name: Name
    #: Names of the team's bundles. Empty only for the team `DEFAULT_TEAM`, which has all that no other team names.
    bundles: tuple[str, ...] = ()
    weight: float = Field(default=1.0, ge=0.001, le=1000)
    #: Slots that the team's work may have at one time, by queue (``region`` or ``pool@region``). A task that needs more than
    #: all of them runs alone.
    quota: dict[str, Annotated[int, Field(ge=1)]] = Field(default_factory=dict)


class Limit(Entry):
    """A limit on the tasks that run at one time, or start within a minute, in all regions together.

    It counts the tasks that name it in their hints, and every task of the pools that it names.
    """

    name: Name
    max_running: Annotated[int, Field(ge=1)] | None = None
    starts_per_minute: Annotated[int, Field(ge=1, le=10_000)] | None = None
    #: Queues (``region`` or ``pool@region``) whose tasks all count.
    pools: tuple[str, ...] = ()

    @property
    def places(self) -> frozenset[tuple[str, str]]:
        """Region and pool of each of its pools."""
        return frozenset(place_of(queue) for queue in self.pools)


Price = Annotated[float, Field(ge=0, allow_inf_nan=False)]
#: Stands for every name that a table of prices does not have.
ANY = "*"


class Prices(Entry):
    """Prices that placement weighs, all in one currency; what has no price is free."""

    #: A GiB that another region reads, by the region that it leaves.
    egress: dict[str, Price] = Field(default_factory=dict)
    #: An hour of one slot, by queue (``region`` or ``pool@region``).
    slot_hour: dict[str, Price] = Field(default_factory=dict)

    def of_egress(self, region: str) -> float:
        """Return the price of a GiB that leaves a region."""
        return self.egress.get(region, self.egress.get(ANY, 0.0))

    def of_slot(self, region: str, pool: str) -> float:
        """Return the price of an hour of one slot of a pool."""
        return self.slot_hour.get(queue_of(region, pool), self.slot_hour.get(ANY, 0.0))


def queue_owner(url: str) -> tuple[str, str] | None:
    """Return account and name of the queue that has this URL; None for a URL that is not one of SQS."""
    found = re.fullmatch(r"/(\d{12})/([A-Za-z0-9_-]{1,80}(?:\.fifo)?)", urlsplit(url).path)
    return (found[1], found[2]) if found else None


def queue_of(region: str, pool: str) -> str:
    """Return the name of a pool's queue: the region's own for its default pool, else ``pool@region``."""
    return region if pool == DEFAULT_POOL else f"{pool}@{region}"


def place_of(queue: str) -> tuple[str, str]:
    """Return the region and the pool that a queue's name means: ``region`` or ``pool@region``."""
    pool, _, region = queue.rpartition("@")
    return region, pool or DEFAULT_POOL


def _is_below(uri: str, prefix: str) -> bool:
    return uri.startswith(prefix) and (len(uri) == len(prefix) or uri[len(prefix)] in _BELOW)
