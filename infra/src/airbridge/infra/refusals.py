"""What the stacks refuse, each with what is wrong and what would be right."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from itertools import combinations
from typing import TYPE_CHECKING

from airbridge.infra.exceptions import UnsafeStackError

if TYPE_CHECKING:
    from airbridge.infra.environment import Environment, Pool, Region

_IMAGE = re.compile(r"^[a-z0-9]+(?:[._/-][a-z0-9]+)*@sha256:[0-9a-f]{64}$")
_INSTANCE_TYPE = re.compile(
    r"^(?P<family>[a-z]+)(?P<generation>\d+)(?P<features>[a-z]*(?:-[a-z0-9]+)?)"
    r"\.(?:nano|micro|small|medium|large|xlarge|\d{1,3}xlarge|metal(?:-\d{1,3}xl)?)$"
)
# Two of the families carry Graviton in the name alone.
_ARM_FAMILIES = {"a"}


def require_digest(image: str) -> str:
    """The image, if it is named by digest alone; ValueError otherwise."""
    if not _IMAGE.match(image):
        raise ValueError("an image is named by digest, never by tag: <repository>@sha256:<64 hex digits>")
    return image


def require_instance_type(name: str) -> str:
    """The instance type, if it is of a form that AWS uses; ValueError otherwise."""
    if not _INSTANCE_TYPE.match(name):
        raise ValueError(
            "unknown instance type pattern: expected <family><generation>.<size>, as in m7g.large"
        )
    return name


def require_vpc_size(network: IPv4Network) -> IPv4Network:
    """The network, if a VPC can have it; ValueError otherwise."""
    if not 16 <= network.prefixlen <= 22:
        raise ValueError("a region's network is a /16 to /22, so that each zone gets a useful share")
    if not network.is_private:
        raise ValueError("a region's network is a private one (RFC 1918)")
    return network


def architecture(instance_type: str) -> str:
    """`arm64` or `x86_64`, told from the name."""
    match = _INSTANCE_TYPE.match(instance_type)
    if match is None:
        raise ValueError(f"{instance_type!r}: unknown instance type pattern")
    arm = match["family"] in _ARM_FAMILIES or "g" in match["features"].split("-")[0]
    return "arm64" if arm else "x86_64"


def check(environment: Environment, source: str) -> None:
    """Raise UnsafeStackError, naming `source` and every key, unless the environment may be synthesised."""
    problems = [f"{source}: {problem}" for problem in _problems(environment)]
    if problems:
        raise UnsafeStackError("\n".join(problems))


def _problems(environment: Environment) -> Iterator[str]:
    yield from _repeated("region", (region.name for region in environment.regions))
    yield from _home_without_region(environment)
    yield from _overlapping_networks(environment)
    yield from _contested_prefixes(environment)
    for region in environment.regions:
        yield from _repeated(f"region {region.name}: pool", (pool.name for pool in region.pools))
        for pool in region.pools:
            yield from _pool_problems(region, pool)
    yield from _unprotected(environment)


def _repeated(what: str, names: Iterable[str]) -> Iterator[str]:
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{what}: {name} is given {count} times; each is given once"


def _home_without_region(environment: Environment) -> Iterator[str]:
    names = [region.name for region in environment.regions]
    if environment.home_region not in names:
        yield (
            f"home_region: {environment.home_region} has no [[region]] entry (there are {', '.join(names)}); "
            "the control plane publishes DAG snapshots to its own region first, so give it one"
        )


def _overlapping_networks(environment: Environment) -> Iterator[str]:
    networks = [("control_plane", environment.control_plane.cidr)]
    networks += [(f"region {region.name}", region.cidr) for region in environment.regions]
    for (one, first), (other, second) in combinations(networks, 2):
        if first.overlaps(second):
            yield f"cidr: {one} has {first} and {other} has {second}, which overlap; give each its own"


def _contested_prefixes(environment: Environment) -> Iterator[str]:
    claims = [
        (region.name, prefix.rstrip("/") + "/") for region in environment.regions for prefix in region.data
    ]
    for (one, first), (other, second) in combinations(claims, 2):
        if one != other and (first.startswith(second) or second.startswith(first)):
            yield f"data: {first} (region {one}) and {second} (region {other}) overlap; data lies in one region"


def _pool_problems(region: Region, pool: Pool) -> Iterator[str]:
    where = f"region {region.name}: pool {pool.name}"
    if pool.min_instances > pool.max_instances:
        yield f"{where}: min_instances {pool.min_instances} is above max_instances {pool.max_instances}"
    if pool.on_demand_base > pool.max_instances:
        yield f"{where}: on_demand_base {pool.on_demand_base} is above max_instances {pool.max_instances}"
    kinds = sorted({architecture(name) for name in pool.instance_types})
    if len(kinds) > 1:
        yield f"{where}: instance_types mix {' and '.join(kinds)}; a pool boots one machine image"


def _unprotected(environment: Environment) -> Iterator[str]:
    if environment.tier != "production":
        return
    if not environment.protection.deletion:
        yield "protection.deletion: is false; production is never without deletion protection"
    if not environment.control_plane.database.multi_az:
        yield "control_plane.database.multi_az: is false; production keeps a standby in another zone"
