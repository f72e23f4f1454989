"""Checks of what the account may have, and of what a region offers: quotas, zones, instance types, AMIs, the database's engine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from airbridge.infra import aws_facts
from airbridge.infra.environment import Environment, Pool, RegionConfig
from airbridge.infra.preflight.finding import Account, Finding, failed, ok
from airbridge.infra.validation import architecture

#: Quota of virtual CPUs by the first letters of a family: on demand, and Spot.
#: Codes and defaults: the EC2 and Fargate pages of Service Quotas, from memory.
_STANDARD = ("L-1216C47A", "L-34B43A08")
_CPU_QUOTAS = {"g": ("L-DB2E81BA", "L-3819A6DF"), "p": ("L-417A185B", "L-7212CCBC")}
_VPCS = "L-F678F1CE"
_ADDRESSES = "L-0263D0A3"
_FARGATE_CPU = "L-3032A538"


@dataclass(frozen=True)
class _Need:
    """Share of a quota that a deployment needs in a region, beside the use by others."""

    service: str
    code: str
    what: str
    needed: float
    used: float = 0


def quotas(account: Account) -> Iterator[Finding]:
    """Each quota has room for what the environment may grow to."""
    for region in account.regions:
        client = account.client("service-quotas", region)
        for need in _needs(account, region):
            quota = client.get_service_quota(ServiceCode=need.service, QuotaCode=need.code)["Quota"]
            limit = float(quota["Value"])
            detail = f"{need.what}: {need.needed:g} needed, {need.used:g} used by others, {limit:g} allowed"
            if need.needed + need.used <= limit:
                yield ok("quota", region, detail)
            else:
                yield failed(
                    "quota",
                    region,
                    detail,
                    f"aws service-quotas request-service-quota-increase --region {region} --service-code {need.service} "
                    f"--quota-code {need.code} --desired-value {need.needed + need.used:g}",
                )


def _needs(account: Account, region: str) -> Iterator[_Need]:
    environment = account.environment
    at_home = region == account.home
    edges = [each for each in environment.regions if each.name == region]
    ec2 = account.client("ec2", region)
    vpcs = [vpc for vpc in _vpcs(ec2) if not account.owns(vpc)]
    made = [edge for edge in edges if edge.network is None]
    own_plane = at_home and environment.control_plane.network is None
    yield _Need("vpc", _VPCS, "VPCs", own_plane + len(made), len(vpcs))
    if gateways := _nat_gateways(environment, region):
        addresses = [one for one in ec2.describe_addresses()["Addresses"] if not account.owns(one)]
        yield _Need("ec2", _ADDRESSES, "Elastic IP addresses", gateways, len(addresses))
    if at_home:
        yield _Need("fargate", _FARGATE_CPU, "Fargate vCPUs", _service_cpus(account))
    for edge in edges:
        yield from _pool_needs(ec2, edge)


def _nat_gateways(environment: Environment, region: str) -> int:
    """Return the NAT gateways in a region, each with an address: one in each zone of the control plane's network and of regions' with a NAT."""
    plane = environment.control_plane
    networks = []
    if region == environment.home_region and plane.network is None and not environment.is_economical:
        networks.append(plane.zones)
    networks += [
        edge.zones
        for edge in environment.regions
        if edge.name == region and edge.network is None and any(way.via == "nat" for way in edge.egress)
    ]
    return sum(len(zones or aws_facts.zones(region)) for zones in networks)


def _service_cpus(account: Account) -> float:
    """Return the virtual CPUs of every service while a deployment replaces its tasks: twice as many."""
    plane = account.environment.control_plane
    counts = {"api-server": plane.api_servers, "scheduler": plane.schedulers, "gateway": plane.gateways}
    services = ("api-server", "scheduler", "gateway", "dag-processor", "triggerer")
    return 2 * sum(plane.sizes.of(name).cpu / 1024 * counts.get(name, 1) for name in services)


def _pool_needs(ec2: Any, region: RegionConfig) -> Iterator[_Need]:
    """Yield the virtual CPUs of a region's pools, by quota: Spot above the on-demand base."""
    totals: dict[str, float] = {}
    for pool in region.pools:
        on_demand, spot = _CPU_QUOTAS.get(pool.instance_types[0][0], _STANDARD)
        cpus = _largest(ec2, pool)
        above = pool.max_instances - pool.on_demand_base
        # A share that is no whole number of instances is rounded up, to on-demand ones.
        share = -(-above * pool.on_demand_percent // 100)
        totals[on_demand] = totals.get(on_demand, 0) + cpus * (pool.on_demand_base + share)
        totals[spot] = totals.get(spot, 0) + cpus * (above - share)
    for code, needed in totals.items():
        kind = "Spot" if code in {_STANDARD[1], *(pair[1] for pair in _CPU_QUOTAS.values())} else "on-demand"
        if needed:
            yield _Need("ec2", code, f"vCPUs of {kind} instances ({code})", needed)


def _largest(ec2: Any, pool: Pool) -> int:
    """Return the virtual CPUs of a pool's largest instance type; 0 if the region has none of them."""
    pages = ec2.get_paginator("describe_instance_types").paginate(
        Filters=[{"Name": "instance-type", "Values": list(pool.instance_types)}]
    )
    return max(
        (int(one["VCpuInfo"]["DefaultVCpus"]) for page in pages for one in page["InstanceTypes"]), default=0
    )


def _vpcs(ec2: Any) -> list[Any]:
    return [vpc for page in ec2.get_paginator("describe_vpcs").paginate() for vpc in page["Vpcs"]]


def zones(account: Account) -> Iterator[Finding]:
    """The zones of networks that the stacks make are there."""
    environment = account.environment
    plane = environment.control_plane
    places = [("control_plane.zones", account.home, plane.zones)] if plane.network is None else []
    places += [
        (f"region {each.name}", each.name, each.zones) for each in environment.regions if not each.network
    ]
    for where, region, named in places:
        answer = account.client("ec2", region).describe_availability_zones()
        there = {
            zone["ZoneId"]
            for zone in answer["AvailabilityZones"]
            if zone.get("State", "available") == "available"
        }
        wanted = [aws_facts.zone_id(region, zone) for zone in named or aws_facts.zones(region)]
        if missing := [zone for zone in wanted if zone not in there]:
            yield failed(
                "zone",
                where,
                f"this account has no {', '.join(missing)}",
                f"set `zones` to some of {', '.join(sorted(there))} (their ends)",
            )
        else:
            yield ok("zone", where, ", ".join(wanted))


def instance_types(account: Account) -> Iterator[Finding]:
    """Each instance type is offered in a zone of its region."""
    for region in account.environment.regions:
        ec2 = account.client("ec2", region.name)
        chosen = _zones_of(ec2, region)
        for pool in region.pools:
            pages = ec2.get_paginator("describe_instance_type_offerings").paginate(
                LocationType="availability-zone-id",
                Filters=[{"Name": "instance-type", "Values": list(pool.instance_types)}],
            )
            offers = [
                one for page in pages for one in page["InstanceTypeOfferings"] if one["Location"] in chosen
            ]
            missing = sorted({*pool.instance_types} - {one["InstanceType"] for one in offers})
            where = f"{region.name} pool {pool.name}"
            if missing:
                yield failed(
                    "instance type",
                    where,
                    f"no zone of {', '.join(sorted(chosen))} offers {', '.join(missing)}",
                    "take it out of `instance_types`, or choose other zones",
                )
            else:
                yield ok("instance type", where, ", ".join(pool.instance_types))


def _zones_of(ec2: Any, region: RegionConfig) -> set[str]:
    """Return the ids of the zones that a region's machines are in; those of a given network are its subnets'."""
    if region.network is None:
        return {aws_facts.zone_id(region.name, zone) for zone in region.zones or aws_facts.zones(region.name)}
    # By a filter: an id that is not there is another check's finding.
    filters = [{"Name": "subnet-id", "Values": list(region.network.subnets)}]
    return {one["AvailabilityZoneId"] for one in ec2.describe_subnets(Filters=filters)["Subnets"]}


def images_of_machines(account: Account) -> Iterator[Finding]:
    """The AMI's parameter, which the stacks read at each plan, is there in every region."""
    for region in account.environment.regions:
        names = {
            aws_facts.ecs_ami_parameter(
                architecture(pool.instance_types[0]),
                gpu=any(aws_facts.has_gpu(one) for one in pool.instance_types),
            )
            for pool in region.pools
        }
        for name in sorted(names):
            try:
                found = account.client("ssm", region.name).get_parameter(Name=name)["Parameter"]["Value"]
            except ClientError as error:
                if error.response["Error"]["Code"] != "ParameterNotFound":
                    raise
                yield failed(
                    "AMI",
                    region.name,
                    f"there is no parameter {name}",
                    "take a release from the change log of github.com/aws/amazon-ecs-ami into ECS_AMI_RELEASES of aws_facts.py",
                )
            else:
                yield ok("AMI", region.name, f"{name.rsplit('/', 2)[-2]} is {found}")


def engine(account: Account) -> Iterator[Finding]:
    """RDS offers a version of the database's engine."""
    pages = (
        account.client("rds", account.home)
        .get_paginator("describe_db_engine_versions")
        .paginate(Engine="postgres")
    )
    versions = [str(one["EngineVersion"]) for page in pages for one in page["DBEngineVersions"]]
    offered = [version for version in versions if version.split(".")[0] == aws_facts.POSTGRES]
    if offered:
        yield ok("database engine", account.home, f"PostgreSQL {', '.join(offered)}")
        return
    yield failed(
        "database engine",
        account.home,
        f"RDS offers no PostgreSQL {aws_facts.POSTGRES}; there are {', '.join(versions) or 'none'}",
        "change POSTGRES of aws_facts.py to a major version that Airflow supports",
    )
