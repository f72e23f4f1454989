"""Validation of a synth: each refusal names the fault and a valid value."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from ipaddress import IPv4Network
from itertools import combinations
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from airbridge.infra import aws_facts
from airbridge.infra.exceptions import UnsafeStackError

if TYPE_CHECKING:
    from airbridge.infra.environment import Egress, Environment, Pool, RegionConfig

_IMAGE = re.compile(r"^[a-z0-9]+(?:[._/-][a-z0-9]+)*@sha256:[0-9a-f]{64}$")
_INSTANCE_TYPE = re.compile(
    r"^(?P<family>[a-z]+)(?P<generation>\d+)(?P<features>[a-z]*(?:-[a-z0-9]+)?)"
    r"\.(?:nano|micro|small|medium|large|xlarge|\d{1,3}xlarge|metal(?:-\d{1,3}xl)?)$"
)
_PLATFORM_IMAGES = ("control-plane", "control_plane", "edge-worker", "worker")
# Two of the families carry Graviton in the name alone.
_ARM_FAMILIES = {"a"}


def require_digest(image: str) -> str:
    """The image, if it is named by digest alone; ValueError otherwise."""
    if not _IMAGE.match(image):
        raise ValueError("an image is named by digest, never by tag: <repository>@sha256:<64 hex digits>")
    return image


def require_image_names(images: dict[str, str]) -> dict[str, str]:
    """The images, if each is named by its repository; ValueError otherwise."""
    for name, image in images.items():
        if name in _PLATFORM_IMAGES or not re.fullmatch(r"[a-z][a-z0-9]*(-[a-z0-9]+)*", name):
            raise ValueError(f"{name!r} is no name of a derived image; expected lower-case words and dashes")
        if image.partition("@")[0] != name:
            raise ValueError(
                f"{name} is an image of {image.partition('@')[0]}; expected {name}@sha256:<digest>"
            )
    return images


def require_instance_type(name: str) -> str:
    """The instance type, if it is of a form that AWS uses; ValueError otherwise."""
    if not _INSTANCE_TYPE.match(name):
        raise ValueError(
            "unknown instance type pattern: expected <family><generation>.<size>, as in m7g.large"
        )
    return name


def require_supported_region(name: str) -> str:
    """The region, if its partition is one of the stacks' and its zones' ids can be derived; ValueError otherwise."""
    if (partition := aws_facts.partition(name)) not in aws_facts.PARTITIONS:
        raise ValueError(
            f"{name} is in the partition {partition}, and the stacks are for {' and '.join(aws_facts.PARTITIONS)}: the others have "
            "other host names and service principals, which are written in them"
        )
    aws_facts.zone_id(name, "az1")
    return name


def require_vpc_size(network: IPv4Network) -> IPv4Network:
    """The network, if a VPC can have it; ValueError otherwise."""
    if not 16 <= network.prefixlen <= 22:
        raise ValueError("a region's network is a /16 to /22, so that each zone gets a useful share")
    if not network.is_private:
        raise ValueError("a region's network is a private one (RFC 1918)")
    return network


# Virtual CPUs, and memory from, to and in steps of, in GiB: "Task size" of
# https://docs.aws.amazon.com/AmazonECS/latest/developerguide/task_definition_parameters.html
_FARGATE_SIZES = {
    0.25: (0.5, 2, 0.5),
    0.5: (1, 4, 1),
    1: (2, 8, 1),
    2: (4, 16, 1),
    4: (8, 30, 1),
    8: (16, 60, 4),
    16: (32, 120, 8),
}


# Set by the stacks, or secrets that Secrets Manager keeps.
_FIXED_OPTIONS = re.compile(
    r"airbridge\.(gateway_host|gateway_names|trust_domain|scaling_namespace|metrics_namespace|regions_file|secrets_dir"
    r"|worker_images|policy_file|sandbox)|core\.(executor|fernet_key|sql_alchemy_conn)|database\.sql_alchemy_conn.*"
    r"|api\.secret_key|api_auth\..*|webserver\.secret_key"
)
_AUTH_OPTIONS = re.compile(
    r"core\.(auth_manager|simple_auth_manager\w*)|api\.base_url|airbridge\.ui_oidc_file"
)
# RFC 1918, and the shared space of RFC 6598 that VPNs use.
_ROUTED = tuple(
    IPv4Network(each) for each in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
)
_SECRET_NAME = re.compile(r"password|passwd|secret(?!s)|token|private_key|credential|fernet", re.IGNORECASE)
_OWN_VARIABLES = ("AIRBRIDGE_", "AIRFLOW__", "AWS_", "PG", "HOME", "PATH", "LD_", "PYTHON")


def require_airflow_options(options: dict[str, str]) -> dict[str, str]:
    """The options, if each is `section.option`, none is set by the stacks and none is a secret; ValueError otherwise."""
    for name in options:
        if not re.fullmatch(r"[a-z0-9_]+\.[a-z0-9_]+", name):
            raise ValueError(f"{name!r} is no option; expected section.option, as in core.default_timezone")
        if _FIXED_OPTIONS.fullmatch(name):
            raise ValueError(f"{name} is set by the stacks; remove it")
        if _AUTH_OPTIONS.fullmatch(name):
            raise ValueError(f"{name} is set by [control_plane.auth]; remove it")
        if _SECRET_NAME.search(name.partition(".")[2]):
            raise ValueError(
                f"{name} looks like a secret, and everybody who reads a task definition would see it"
            )
    return options


def require_variables(variables: dict[str, str]) -> dict[str, str]:
    """The environment variables, if the stacks set none of them and none is a secret; ValueError otherwise."""
    for name in variables:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise ValueError(f"{name!r} is no name of an environment variable")
        if name.startswith(_OWN_VARIABLES):
            raise ValueError(
                f"{name} is set by the stacks, or by control_plane.airflow; names do not begin with {', '.join(_OWN_VARIABLES)}"
            )
        if _SECRET_NAME.search(name):
            raise ValueError(
                f"{name} looks like a secret, and everybody who reads a task definition would see it"
            )
    return variables


# What no role of tasks is given: it would change who may do what, in the account or beyond.
_CLOSED_SERVICES = (
    "account",
    "iam",
    "organizations",
    "sso",
    "identitystore",
    "kms:CreateGrant",
    "kms:PutKeyPolicy",
)


def require_task_action(action: str) -> str:
    """The action, if tasks may be given it; ValueError otherwise."""
    if action in _CLOSED_SERVICES or action.partition(":")[0] in _CLOSED_SERVICES:
        raise ValueError(f"{action} changes who may do what; no task gets it")
    return action


def require_fargate_size(cpu: int, memory: int) -> None:
    """Raise ValueError, with the sizes that there are, unless Fargate offers tasks of this CPU and memory."""
    if cpu / 1024 not in _FARGATE_SIZES:
        known = ", ".join(str(round(size * 1024)) for size in _FARGATE_SIZES)
        raise ValueError(f"Fargate has no tasks of {cpu} CPU units; there are {known}")
    least, most, step = (round(gib * 1024) for gib in _FARGATE_SIZES[cpu / 1024])
    # The smallest has 512, 1,024 and 2,048 MiB.
    if not least <= memory <= most or memory % step or (cpu, memory) == (256, 1536):
        raise ValueError(
            f"Fargate has no tasks of {cpu} CPU units and {memory} MiB; there are {least} to {most} MiB, in steps of {step}"
        )


def require_data_uri(uri: str) -> str:
    """The URI, if it names data of some scheme, as the catalogue takes it; ValueError otherwise."""
    if uri.startswith("jdbc:"):
        driver, colon, rest = uri.removeprefix("jdbc:").partition(":")
        names = bool(driver and colon and rest.strip("/"))
    else:
        try:
            parts = urlsplit(uri)
        except ValueError:
            names = False
        else:
            below = parts.netloc or (parts.scheme == "file" and parts.path.strip("/"))
            names = bool(parts.scheme and below)
    if not names or re.search(r"\s", uri):
        raise ValueError(
            "data is named by a URI such as s3://bucket/prefix, gs://bucket, file:///data or jdbc:postgresql://host/database"
        )
    return uri


def is_routed(network: IPv4Network) -> bool:
    """Return whether VPNs, peerings and transit gateways route a network."""
    return any(network.subnet_of(private) for private in _ROUTED)


def architecture(instance_type: str) -> str:
    """Architecture by the instance type's name: `arm64` or `x86_64`."""
    match = _INSTANCE_TYPE.match(instance_type)
    if match is None:
        raise ValueError(f"{instance_type!r}: unknown instance type pattern")
    arm = match["family"] in _ARM_FAMILIES or "g" in match["features"].split("-")[0]
    return "arm64" if arm else "x86_64"


def check(environment: Environment, source: str, more: Iterable[str] = ()) -> None:
    """Raise UnsafeStackError, naming `source` and every key, unless the environment may be synthesised. `more` are problems found elsewhere."""
    problems = [f"{source}: {problem}" for problem in (*_problems(environment), *more)]
    if problems:
        raise UnsafeStackError("\n".join(problems))


def _problems(environment: Environment) -> Iterator[str]:
    yield from repeated("region", (region.name for region in environment.regions))
    yield from _home_without_region(environment)
    yield from _other_partitions(environment)
    yield from _overlapping_networks(environment)
    yield from _contested_prefixes(environment)
    for region in environment.regions:
        yield from repeated(f"region {region.name}: pool", (pool.name for pool in region.pools))
        for pool in region.pools:
            yield from _pool_problems(region, pool)
            yield from _unknown_image(environment, region, pool)
    yield from _team_problems(environment)
    yield from _limit_problems(environment)
    yield from _price_problems(environment)
    yield from _network_problems(environment)
    yield from _record_problems(environment)
    yield from _subscription_problems(environment)
    yield from _unreachable_operators(environment)
    yield from _password_files(environment)
    yield from _unprotected(environment)


def repeated(kind: str, names: Iterable[str]) -> Iterator[str]:
    """Yield each name that is given more than once."""
    for name, count in Counter(names).items():
        if count > 1:
            yield f"{kind}: {name} is given {count} times; each is given once"


def _home_without_region(environment: Environment) -> Iterator[str]:
    names = [region.name for region in environment.regions]
    if environment.home_region not in names:
        yield (
            f"home_region: {environment.home_region} has no [[region]] entry (there are {', '.join(names)}); "
            "the control plane publishes DAG snapshots to its own region first, so give it one"
        )


def _other_partitions(environment: Environment) -> Iterator[str]:
    partition = environment.partition
    for region in environment.regions:
        if (other := aws_facts.partition(region.name)) != partition:
            yield (
                f"region {region.name}: is in the partition {other}, and home_region {environment.home_region} in {partition}: no "
                "account is in both; give it an environment of its own"
            )
    arn = environment.control_plane.certificate_arn
    if arn.split(":")[1] != partition:
        yield f"control_plane.certificate_arn: {arn} is not of the partition {partition}, which {environment.home_region} is in"


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


def _pool_problems(region: RegionConfig, pool: Pool) -> Iterator[str]:
    where = f"region {region.name}: pool {pool.name}"
    if pool.min_instances > pool.max_instances:
        yield f"{where}: min_instances {pool.min_instances} is above max_instances {pool.max_instances}"
    if pool.on_demand_base > pool.max_instances:
        yield f"{where}: on_demand_base {pool.on_demand_base} is above max_instances {pool.max_instances}"
    kinds = sorted({architecture(name) for name in pool.instance_types})
    if len(kinds) > 1:
        yield f"{where}: instance_types mix {' and '.join(kinds)}; a pool boots one machine image"


def _unknown_image(environment: Environment, region: RegionConfig, pool: Pool) -> Iterator[str]:
    known = environment.images.derived
    if pool.image is None:
        return
    if (
        pool.image in known
        and _is_placeholder(known[pool.image])
        and not _is_placeholder(environment.images.worker)
    ):
        yield (
            f"region {region.name}: pool {pool.name}: image: {pool.image} has a repository, and no image yet; promote a release that has it "
            "first"
        )
    if pool.image not in known:
        yield (
            f"region {region.name}: pool {pool.name}: image: the release has no derived image {pool.image!r} (images.derived has "
            f"{', '.join(sorted(known)) or 'none'}); build it with `airbridge-ci build {pool.image}.Dockerfile --from dist` and promote it, "
            "or leave image out for the worker image"
        )


def _team_problems(environment: Environment) -> Iterator[str]:
    teams = environment.teams
    yield from repeated("team", (team.name for team in teams))
    yield from repeated("team: bundles", (bundle for team in teams for bundle in team.bundles))
    queues = _queues(environment)
    for team in teams:
        if not team.bundles and team.name != "default":
            yield f"team {team.name}: bundles: is empty; name those whose tasks are the team's own"
        for queue in team.quota:
            if queue.removeprefix("default@") not in queues:
                yield f"team {team.name}: quota: {queue!r} is no queue (there are {', '.join(queues)})"


def _limit_problems(environment: Environment) -> Iterator[str]:
    yield from repeated("limit", (limit.name for limit in environment.limits))
    queues = _queues(environment)
    for limit in environment.limits:
        if limit.max_running is None and limit.starts_per_minute is None:
            yield f"limit {limit.name}: limits nothing; give it max_running, starts_per_minute or both"
        for queue in limit.pools:
            if queue.removeprefix("default@") not in queues:
                yield f"limit {limit.name}: pools: {queue!r} is no queue (there are {', '.join(queues)})"


def _network_problems(environment: Environment) -> Iterator[str]:
    given = environment.control_plane.network
    if given and len(given.public_subnets) < 2:
        yield "control_plane.network.public_subnets: the UI's balancer needs two or more, in different zones"
    if given and environment.is_economical:
        yield "control_plane.network: the development shape makes networks of its own; choose shape standard"
    for region in environment.regions:
        where = f"region {region.name}"
        closed = aws_facts.unlinked_zones(region.name, environment.home_region)
        if not region.network and set(region.zones or aws_facts.zones(region.name)) <= set(closed):
            yield f"{where}: zones: AWS has no endpoint of another region in {' and '.join(closed)}; name another zone beside them"
        if region.network and environment.is_economical:
            yield f"{where}: network: the development shape makes networks of its own; choose shape standard"
        if region.network and region.network.public_subnets:
            yield f"{where}: network.public_subnets: nothing of an edge region is public; leave them out"
        if twice := sorted({*region.endpoints} & {*aws_facts.WORKER_ENDPOINTS, "s3"}):
            yield f"{where}: endpoints: {', '.join(twice)} is made for every region; leave it out"
        if region.endpoints and environment.is_economical:
            yield f"{where}: endpoints: machines of the development shape reach AWS by the internet; leave them out"
        yield from repeated(f"{where}: endpoints", region.endpoints)
        yield from repeated(f"{where}: egress", (each.name for each in region.egress))
        for each in region.egress:
            yield from _egress_problems(environment, region, each)


def _egress_problems(environment: Environment, region: RegionConfig, each: Egress) -> Iterator[str]:
    where = f"region {region.name}: egress {each.name}"
    if each.cidr.overlaps(region.cidr) and each.via != "nat":
        yield f"{where}: cidr: {each.cidr} overlaps the region's own {region.cidr}"
    others = [other for other in region.egress if other.cidr == each.cidr and other.via != each.via]
    if others and each.name < others[0].name:
        yield f"{where}: via: {each.cidr} has another way in {others[0].name}; a range has one"
    if region.network and each.via is not None:
        yield f"{where}: via: the existing network's own routes lead there; leave via out"
    elif environment.is_economical and each.via is not None:
        yield f"{where}: via: machines of the development shape reach the internet themselves, and nothing else; leave via out"
    elif not region.network and not environment.is_economical and each.via is None:
        yield f"{where}: via: is missing, and the network routes nothing there; name a tgw-…, a pcx-…, or nat"


def _record_problems(environment: Environment) -> Iterator[str]:
    dns = environment.control_plane.dns
    if dns and not any(dns.has(host) for host in environment.hosts.values()):
        names = " and ".join(host for host in environment.hosts.values() if host)
        yield f"control_plane.dns.domain: {dns.domain} has neither of the names there are, {names}"


def _subscription_problems(environment: Environment) -> Iterator[str]:
    forms = {
        "email": (r"[^@\s]+@[^@\s]+\.[^@\s]+", "an address"),
        "https": (r"https://\S+", "an https URL"),
        "sqs": (r"arn:aws(?:-us-gov)?:sqs:[a-z0-9-]+:\d{12}:[\w-]+", "a queue's ARN"),
        "lambda": (r"arn:aws(?:-us-gov)?:lambda:[a-z0-9-]+:\d{12}:function:[\w:-]+", "a function's ARN"),
    }
    for each in environment.alarm_subscriptions:
        form, what = forms[each.protocol]
        if not re.fullmatch(form, each.endpoint):
            yield f"alarm_subscription: endpoint: {each.endpoint!r} is not {what}, which {each.protocol} needs"


def _queues(environment: Environment) -> list[str]:
    places = [(place.name, pool.name) for place in environment.places for pool in place.pools]
    return [place if pool == "default" else f"{pool}@{place}" for place, pool in places]


def _price_problems(environment: Environment) -> Iterator[str]:
    if environment.prices is None:
        return
    regions = [place.name for place in environment.places]
    queues = _queues(environment)
    for name in environment.prices.egress:
        if name not in {"*", *regions}:
            yield f"prices.egress: {name!r} is no region (there are {', '.join(regions)})"
    for name in environment.prices.slot_hour:
        if name not in {"*", *queues}:
            yield f"prices.slot_hour: {name!r} is no queue (there are {', '.join(queues)})"


def _is_placeholder(image: str) -> bool:
    """Return whether a digest is one digit repeated: no image has it."""
    return len(set(image.partition("@sha256:")[2])) == 1


def _unreachable_operators(environment: Environment) -> Iterator[str]:
    for network in environment.control_plane.operator_cidrs:
        if not is_routed(network):
            yield (
                f"control_plane.operator_cidrs: {network} is public, and the gateway's balancer is internal; give the private "
                "networks that your VPN, peering or transit gateway routes to the VPC (or open sessions: tools.operate)"
            )


def _password_files(environment: Environment) -> Iterator[str]:
    """Airflow's default keeps passwords in a file, which no replica shares, and which a read-only home does not take."""
    if environment.tier == "local":
        return
    auth = environment.control_plane.auth
    if auth is None:
        yield (
            "control_plane.auth: is missing, and Airflow's SimpleAuthManager is for the local tier alone; "
            "give url, issuer, client_id and roles of an OpenID Connect issuer"
        )
    elif auth.manager.endswith(".SimpleAuthManager"):
        yield "control_plane.auth.manager: SimpleAuthManager is for the local tier alone; leave it out for OpenID Connect"


def _unprotected(environment: Environment) -> Iterator[str]:
    if environment.tier != "production":
        return
    if not environment.protection.deletion:
        yield "protection.deletion: is false; production is never without deletion protection"
    if environment.is_economical:
        yield "shape: is development; production has private networks, with NAT and endpoints in every zone"
    if not environment.control_plane.database.multi_az:
        yield "control_plane.database.multi_az: is false; production keeps a standby in another zone"
