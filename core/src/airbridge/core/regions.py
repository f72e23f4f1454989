"""The region catalogue: regions, pools, the location of data, the teams that share pools, and limits. Read from TOML."""

from __future__ import annotations

import math
import re
import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self, TypeVar
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from airbridge.core.exceptions import ConfigurationError, PlacementError
from airbridge.core.hints import Cpus, Memory, memory_text, names_data, suggestion
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
_AWS_LIKE: Final = re.compile(r"[a-z]{2}(-[a-z]+)+-[0-9]")
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


class _Entry(BaseModel):
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


class Pool(_Entry):
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


class Region(_Entry):
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
        if _AWS_LIKE.fullmatch(self.name):
            return f"{where}correct the name, or {advice}"
        return f'{where}{advice}, and transport = "gateway" if its workers have no access to AWS'


class Team(_Entry):
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


class Limit(_Entry):
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


class Prices(_Entry):
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


class Catalogue(_Entry):
    """All regions. `read` gives errors that name the file, the entry and what would be right."""

    home_region: Name
    regions: tuple[Region, ...] = Field(alias="region", min_length=1)
    teams: tuple[Team, ...] = Field(default=(), alias="team")
    limits: tuple[Limit, ...] = Field(default=(), alias="limit")
    prices: Prices | None = None

    @model_validator(mode="before")
    @classmethod
    def _beside_home(cls, data: Any) -> Any:
        """Place the queues and buckets of a gateway region that names no AWS region where the home region's are."""
        regions = data.get("region") if isinstance(data, dict) else None
        if not isinstance(regions, list) or not all(isinstance(each, dict) for each in regions):
            return data
        home = next((each for each in regions if each.get("name") == data.get("home_region")), None)
        if home is None:
            return data
        given = {
            "aws_region": home.get("aws_region") or home.get("name"),
            **({"endpoint_url": home["endpoint_url"]} if "endpoint_url" in home else {}),
        }
        return {**data, "region": [given | each if _has_nothing(each) else each for each in regions]}

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a catalogue file. Raises `ConfigurationError`."""
        try:
            text = path.read_text()
        except OSError as error:
            raise ConfigurationError(
                f"the region catalogue {path} cannot be read: {error.strerror}; "
                "[airbridge] regions_file must name a TOML file"
            ) from error
        return cls.parse(text, source=str(path))

    @classmethod
    def parse(cls, text: str, *, source: str = "the region catalogue") -> Self:
        """Read a catalogue from TOML text. Raises `ConfigurationError`."""
        try:
            data = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise ConfigurationError(f"{source} is not TOML: {error}") from error
        try:
            catalogue = cls.model_validate(data)
        except ValidationError as error:
            raise ConfigurationError(f"{source}: {_explain(error, data)}") from error
        for problem in catalogue.problems():
            raise ConfigurationError(f"{source}: {problem}")
        return catalogue

    def region(self, name: str) -> Region | None:
        """Return a region by name."""
        return next((region for region in self.regions if region.name == name), None)

    def lacks(self, region: str, pool: str) -> str | None:
        """Return that a region or its pool does not exist, with what does; None if both do."""
        found = self.region(region)
        if found is None:
            return f"there is no region {region!r}{suggestion(region, 'regions', self.names)}"
        if found.pool(pool) is None:
            pools = [each.name for each in found.pools]
            return f"region {region!r} has no pool {pool!r}{suggestion(pool, 'its pools', pools)}"
        return None

    @property
    def home(self) -> Region:
        """Return the home region."""
        return next(region for region in self.regions if region.name == self.home_region)

    @property
    def names(self) -> tuple[str, ...]:
        """Return the names of all regions, in the order of the file."""
        return tuple(region.name for region in self.regions)

    def regions_with(self, uri: str) -> tuple[Region, ...]:
        """Return the regions that hold this data: those with the longest matching prefix; several if it is replicated."""
        matches = [(region.holds(uri), region) for region in self.regions]
        best = max(length for length, _ in matches)
        return tuple(region for length, region in matches if length == best) if best else ()

    def places(self) -> Iterator[tuple[Region, Pool]]:
        """Yield every pool with its region."""
        for region in self.regions:
            for pool in region.pools:
                yield region, pool

    def team_of(self, bundle: str) -> str:
        """Return the name of the team that a bundle belongs to."""
        return next((team.name for team in self.teams if bundle in team.bundles), DEFAULT_TEAM)

    def problems(self) -> Iterator[str]:
        """Yield what is wrong between entries that are right by themselves."""
        if self.region(self.home_region) is None:
            yield f"home_region is {self.home_region!r}; it must be one of {', '.join(self.names)}"
        for name in _repeated(self.names):
            yield f"region {name!r} is there twice; names must differ"
        for region in self.regions:
            for name in _repeated(pool.name for pool in region.pools):
                yield f"region {region.name!r} has pool {name!r} twice; names must differ"
            if (problem := region.place_problem()) is not None:
                yield problem
            yield from _residency_problems(region)
            yield from _credentials_problems(region)
        yield from self._role_problems()
        # An emulator gives the queues of all its regions one address, and distinguishes them by the signing region.
        queues = [
            (region.aws if region.endpoint_url else "", pool.queue_url) for region, pool in self.places()
        ]
        for _, url in _repeated(queues):
            yield f"queue {url!r} serves two pools; each pool needs a queue of its own"
        yield from self._team_problems()
        yield from self._limit_problems()
        yield from self._price_problems()

    def _limit_problems(self) -> Iterator[str]:
        for name in _repeated(limit.name for limit in self.limits):
            yield f"limit {name!r} is there twice; names must differ"
        for limit in self.limits:
            if limit.max_running is None and limit.starts_per_minute is None:
                yield f"limit {limit.name!r} limits nothing; give it max_running, starts_per_minute or both"
            for queue in limit.pools:
                problem = self.lacks(*place_of(queue))
                if problem is not None:
                    yield f"limit {limit.name!r}, pools {queue!r}: {problem}"

    def _role_problems(self) -> Iterator[str]:
        """Yield roles whose brokered credentials would let their holder join another pool by role."""
        joining = {
            pool.role_arn: f"{pool.name}@{region.name}"
            for region, pool in self.places()
            if pool.role_arn is not None and region.credentials_of(pool) == "host"
        }
        for region, pool in self.places():
            if region.credentials_of(pool) == "brokered" and pool.role_arn in joining:
                yield (
                    f"pool {pool.name!r} of region {region.name!r}: its brokered credentials are of the role by which hosts of pool "
                    f"{joining[pool.role_arn]} join; give it a role_arn of its own"
                )
        of_workers = {pool.role_arn: f"{pool.name}@{region.name}" for region, pool in self.places()}
        for region, pool in self.places():
            if pool.task_role_arn is not None and pool.task_role_arn in of_workers:
                yield (
                    f"pool {pool.name!r} of region {region.name!r}: its task_role_arn is the role of the workers of pool "
                    f"{of_workers[pool.task_role_arn]}; tasks must not have what workers have: give them a role of their own"
                )

    def _price_problems(self) -> Iterator[str]:
        if self.prices is None:
            return
        for name in self.prices.egress:
            if name not in {ANY, *self.names}:
                yield f"prices.egress: there is no region {name!r}{suggestion(name, 'regions', self.names)}"
        queues = [queue_of(region.name, pool.name) for region, pool in self.places()]
        for queue in self.prices.slot_hour:
            if queue not in {ANY, *queues}:
                yield f"prices.slot_hour: there is no queue {queue!r}{suggestion(queue, 'queues', queues)}"

    def _team_problems(self) -> Iterator[str]:
        for name in _repeated(team.name for team in self.teams):
            yield f"team {name!r} is there twice; names must differ"
        for bundle in _repeated(bundle for team in self.teams for bundle in team.bundles):
            yield f"bundle {bundle!r} is in two teams, or twice in one; it belongs to one team"
        for team in self.teams:
            if not team.bundles and team.name != DEFAULT_TEAM:
                yield f"team {team.name!r} has no bundles; name those whose tasks are its own"
            for queue in team.quota:
                region, pool = place_of(queue)
                problem = self.lacks(region, pool)
                if problem is not None:
                    yield f"team {team.name!r}, quota {queue!r}: {problem}"
            for place in _repeated(place_of(queue) for queue in team.quota):
                yield f"team {team.name!r} has two quotas for pool {place[1]!r} of region {place[0]!r}"


def _residency_problems(region: Region) -> Iterator[str]:
    """Yield what a strict region cannot have, and settings without effect."""
    for pool in region.pools:
        if pool.secrets_backend_kwargs and pool.secrets_backend is None:
            yield f"pool {pool.name!r} of region {region.name!r} has secrets_backend_kwargs and no secrets_backend"
        if region.residency is Residency.STRICT and pool.xcom_inline_bytes:
            yield f"pool {pool.name!r}: xcom_inline_bytes must be 0 in region {region.name!r}, whose residency is strict"
        stored = pool.xcom_inline_bytes if pool.xcom_inline_bytes is not None else region.xcom_inline_bytes
        if region.transport_of(pool) == "gateway" and (
            stored is not None or region.residency is Residency.STRICT
        ):
            what = "strict residency" if region.residency is Residency.STRICT else "xcom_inline_bytes"
            yield (
                f"pool {pool.name!r} of region {region.name!r}: {what} needs the transport direct: tasks of a pool whose transport is "
                "gateway reach no bucket"
            )
    if region.residency is Residency.STRICT and (region.xcom_inline_bytes or region.xcom_preview_bytes):
        yield (
            f"region {region.name!r}: xcom_inline_bytes and xcom_preview_bytes must be 0 or absent, because its residency is "
            "strict"
        )


def _credentials_problems(region: Region) -> Iterator[str]:
    """Yield what pools lack for brokered credentials."""
    for pool in region.pools:
        if region.credentials_of(pool) != "brokered":
            if pool.task_role_arn is not None and region.transport_of(pool) == "direct":
                yield (
                    f'pool {pool.name!r} of region {region.name!r}: task_role_arn is for pools with credentials = "brokered" or '
                    'transport = "gateway"; here the hosts bring the credentials of tasks (the workers\' task_env)'
                )
            continue
        where = f'pool {pool.name!r} of region {region.name!r}: credentials = "brokered" needs'
        if region.transport_of(pool) == "gateway":
            yield f"{where} the transport direct: through the gateway workers need no AWS credentials"
        if pool.role_arn is None:
            yield f"{where} role_arn, the role that the gateway assumes for the pool's workers"
        if queue_owner(pool.queue_url) is None:
            yield f"{where} a queue_url of SQS, which ends with /<account>/<name>; it is {pool.queue_url!r}"


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


def _has_nothing(region: dict[str, Any]) -> bool:
    """Return whether an entry states that its region is reached through the gateway, and not where its queues are."""
    return (
        region.get("transport") == "gateway"
        and not {"aws_region", "endpoint_url"} & region.keys()
        and not _AWS_LIKE.fullmatch(str(region.get("name")))
    )


def _repeated(values: Iterable[T]) -> list[T]:
    return [value for value, count in Counter(values).items() if count > 1]


def _explain(error: ValidationError, data: dict[str, Any]) -> str:
    first = error.errors()[0]
    if first["type"] == "string_pattern_mismatch" and first["loc"][-1] == "name":
        return (
            f"{_where(first['loc'], data)}: must be 1 to 63 lower-case letters, digits and hyphens, and begin and end with a "
            "letter or digit, such as factory-7 or gcp-europe-west4"
        )
    return f"{_where(first['loc'], data)}: {first['msg']}"


def _where(location: tuple[int | str, ...], data: Any) -> str:
    """Return the location of an entry, by its name where it has one: ``region 'eu-west-1', queue_url``."""
    words: list[str] = []
    for step in location:
        data = _step(data, step)
        if isinstance(step, int):
            name = data.get("name") if isinstance(data, dict) else None
            words[-1] += f" {name!r}" if name else f" number {step + 1}"
        else:
            words.append(step)
    return ", ".join(words)


def _step(data: Any, step: int | str) -> Any:
    try:
        return data[step]
    except (KeyError, IndexError, TypeError):
        return None
