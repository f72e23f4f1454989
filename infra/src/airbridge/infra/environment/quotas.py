"""Quotas of AWS that an environment's entries may exceed together: each refusal names the keys, the number and the quota."""

from __future__ import annotations

from collections.abc import Iterator

from airbridge.infra.environment.document import Environment
from airbridge.infra.environment.region import RegionConfig

#: Rules of a security group in one direction ("Amazon VPC quotas"; an account can have more, and then fewer groups an interface).
GROUP_RULES = 60
#: Queues that a dead-letter queue names as its sources: `sourceQueueArns` of SetQueueAttributes, Amazon SQS API reference.
DEAD_LETTER_SOURCES = 10
#: Rules that let workers out beside those of `egress`: AWS's endpoints, S3, the gateway.
_WORKER_RULES = 3


def problems(environment: Environment) -> Iterator[str]:
    """Yield what AWS would refuse when a deployment is half made."""
    for kind, places in (("region", environment.regions), ("site", environment.sites)):
        for place in places:
            if (count := len(place.pools)) > DEAD_LETTER_SOURCES:
                yield (
                    f"{kind} {place.name}: pool: there are {count} pools, and their dead-letter queue takes {DEAD_LETTER_SOURCES}; use fewer"
                )
    yield from _of_gateway(environment)
    if (count := len(environment.control_plane.ui_cidrs)) > GROUP_RULES:
        yield f"control_plane.ui_cidrs: {count} networks are above the {GROUP_RULES} rules of a security group; give wider networks"
    for region in environment.regions:
        yield from _of_workers(region)


def _of_gateway(environment: Environment) -> Iterator[str]:
    """Yield that the group of the gateway's balancer has too many rules: the VPC, regions, sites, operators and their sessions."""
    plane = environment.control_plane
    known = {plane.cidr, *(region.cidr for region in environment.regions)}
    sites = {network for site in environment.sites for network in site.networks} - known
    parts = {
        "regions": len(environment.regions),
        "networks of sites": len(sites),
        "operator_cidrs": len(plane.operator_cidrs),
        "others": 2,
    }
    if (count := sum(parts.values())) > GROUP_RULES:
        named = ", ".join(f"{number} {name}" for name, number in parts.items())
        yield (
            f"site: networks: the gateway's balancer would have {count} rules ({named}), and a security group has {GROUP_RULES}; give "
            "wider networks"
        )


def _of_workers(region: RegionConfig) -> Iterator[str]:
    ports = sum(len(each.ports) for each in region.egress)
    if ports + _WORKER_RULES > GROUP_RULES:
        yield (
            f"region {region.name}: egress: {ports} ports of networks and {_WORKER_RULES} ways of its own are above the {GROUP_RULES} rules "
            "of a security group; give wider networks, or fewer ports"
        )
