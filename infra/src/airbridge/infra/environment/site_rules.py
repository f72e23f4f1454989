"""Rules of sites that span several entries: each refusal names the fault and a valid value."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator

from airbridge.infra import validation
from airbridge.infra.environment.document import Environment
from airbridge.infra.environment.site import Site

#: Longest names that AWS takes: buckets, queues and roles (S3, SQS and IAM quotas).
BUCKET_CHARACTERS, QUEUE_CHARACTERS, ROLE_CHARACTERS = 63, 80, 64
_LIKE_AWS = re.compile(r"[a-z]{2}(-[a-z]+)+-\d+")


def problems(environment: Environment) -> Iterator[str]:
    """Yield what is wrong with the sites of an environment."""
    yield from validation.repeated("site", (site.name for site in environment.sites))
    for site in environment.sites:
        yield from _name_problems(environment, site)
        yield from _place_problems(environment, site)
        yield from _transport_problems(site)
        yield from _pool_problems(site)
        yield from _network_problems(environment, site)
        yield from _contested_data(environment, site)
    yield from _shared_names(environment)


def _name_problems(environment: Environment, site: Site) -> Iterator[str]:
    where = f"site {site.name}: name"
    if _LIKE_AWS.fullmatch(site.name):
        yield f"{where}: has the form of AWS's regions; a region of AWS is a [[region]], and a site has another name, such as factory-7"
    names, place = environment.names, environment.names.site(site.name)
    limits = [(names.log_bucket(place), BUCKET_CHARACTERS), (names.bundle_bucket(place), BUCKET_CHARACTERS)]
    limits.append((names.dead_letter_queue(place), QUEUE_CHARACTERS))
    for pool in site.pools:
        limits += [
            (names.queue(place, pool.name), QUEUE_CHARACTERS),
            (names.site_role(site.name, pool.name), ROLE_CHARACTERS),
        ]
        if pool.task_statements:
            limits.append((names.site_task_role(site.name, pool.name), ROLE_CHARACTERS))
    over = max((len(name) - limit for name, limit in limits), default=0)
    if over > 0:
        longest, limit = max(limits, key=lambda one: len(one[0]) - one[1])
        yield f"{where}: makes the name {longest} of {len(longest)} characters, and AWS takes {limit}; shorten it by {over}"


def _place_problems(environment: Environment, site: Site) -> Iterator[str]:
    names = [region.name for region in environment.regions]
    if site.beside not in names:
        yield f"site {site.name}: beside: {site.beside} has no [[region]] entry (there are {', '.join(names)}); name one of them"


def _transport_problems(site: Site) -> Iterator[str]:
    where = f"site {site.name}"
    if site.transport == "direct" and not site.is_brokered:
        yield (
            f'{where}: credentials: is missing, and a host outside AWS has no role; give credentials = "brokered", or transport = "gateway"'
        )
    if site.transport == "gateway" and site.is_brokered:
        yield (
            f'{where}: credentials: through the gateway workers need no AWS credentials; leave it out, or give transport = "direct"'
        )
    if site.transport == "gateway":
        if site.residency == "strict":
            yield f'{where}: residency: strict needs transport = "direct": tasks of a site behind the gateway reach no bucket for their values'
        if (
            any(pool.xcom_inline_bytes is not None for pool in site.pools)
            or site.xcom_inline_bytes is not None
        ):
            yield f'{where}: xcom_inline_bytes: needs transport = "direct": tasks of a site behind the gateway reach no bucket'
    if site.residency == "strict" and (site.xcom_inline_bytes or site.xcom_preview_bytes):
        yield f"{where}: xcom_inline_bytes and xcom_preview_bytes are 0 or left out where residency is strict"


def _pool_problems(site: Site) -> Iterator[str]:
    yield from validation.repeated(f"site {site.name}: pool", (pool.name for pool in site.pools))
    for pool in site.pools:
        where = f"site {site.name}: pool {pool.name}"
        if pool.secrets_backend_kwargs and pool.secrets_backend is None:
            yield f"{where}: secrets_backend_kwargs: there is no secrets_backend that they are for; name its class"
        if site.residency == "strict" and pool.xcom_inline_bytes:
            yield f"{where}: xcom_inline_bytes: is 0 or left out where residency is strict"


def _network_problems(environment: Environment, site: Site) -> Iterator[str]:
    where = f"site {site.name}: networks"
    for network in site.networks:
        if not validation.is_routed(network):
            yield (
                f"{where}: {network} is public, and the gateway's balancer is internal; give the private networks that your VPN, "
                "peering or transit gateway routes to the VPC"
            )
        if network.overlaps(environment.control_plane.cidr):
            yield f"{where}: {network} overlaps control_plane.cidr {environment.control_plane.cidr}: answers would stay in the VPC"


def _contested_data(environment: Environment, site: Site) -> Iterator[str]:
    """Yield data in S3 that a region of AWS has; what several sites have is replicated."""
    claims = {
        prefix.rstrip("/") + "/": region.name for region in environment.regions for prefix in region.data
    }
    for mine in (prefix.rstrip("/") + "/" for prefix in site.data):
        for other, region in claims.items():
            if mine.startswith(other) or other.startswith(mine):
                yield f"data: {mine} (site {site.name}) and {other} (region {region}) overlap; data lies in one region"


def _shared_names(environment: Environment) -> Iterator[str]:
    """Yield queues that two pools would have: `a` with `b-c`, and `a-b` with `c`."""
    pools = defaultdict(set)
    for site in environment.sites:
        for pool in site.pools:
            queue = environment.names.queue(environment.names.site(site.name), pool.name)
            pools[queue].add(f"pool {pool.name} of site {site.name}")
    for queue, users in pools.items():
        if len(users) > 1:
            yield f"site: {' and '.join(sorted(users))} would both have the queue {queue}; rename one of them"
    yield from _shared_roles(environment)


def _shared_roles(environment: Environment) -> Iterator[str]:
    """Yield roles that a pool's tasks and another pool's workers would have: `a` with statements, and `a-tasks`."""
    names = environment.names
    of_workers = {
        names.site_role(site.name, pool.name): f"pool {pool.name} of site {site.name}"
        for site in environment.sites
        for pool in site.pools
    }
    for site in environment.sites:
        for pool in site.pools:
            role = names.site_task_role(site.name, pool.name)
            if pool.task_statements and role in of_workers:
                yield (
                    f"site: the tasks of pool {pool.name} of site {site.name} and the workers of {of_workers[role]} would both have the "
                    f"role {role}; rename one of them"
                )
