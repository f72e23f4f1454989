"""The region catalogue: every region with its pools, teams, limits and prices. Read from TOML."""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from airbridge.core.exceptions import ConfigurationError
from airbridge.core.hints import suggestion
from airbridge.core.protocol import Name
from airbridge.core.regions import (
    ANY,
    AWS_LIKE,
    DEFAULT_TEAM,
    Entry,
    Limit,
    Pool,
    Prices,
    Region,
    Residency,
    Team,
    place_of,
    queue_of,
    queue_owner,
)

T = TypeVar("T")


class Catalogue(Entry):
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


def _has_nothing(region: dict[str, Any]) -> bool:
    """Return whether an entry states that its region is reached through the gateway, and not where its queues are."""
    return (
        region.get("transport") == "gateway"
        and not {"aws_region", "endpoint_url"} & region.keys()
        and not AWS_LIKE.fullmatch(str(region.get("name")))
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
