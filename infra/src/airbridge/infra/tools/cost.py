"""Estimate of what an environment costs a month while it is idle, from its synthesised stacks and a dated price list.

    python -m airbridge.infra.tools.cost cdktf.out/dev cdktf.out/prod

Counted is what is billed by the hour or the month: no task runs, pools are at `min_instances`. Not counted is usage:
requests, capacity units, data transfer, logs, Container Insights, objects, backups beyond the database's size, workers.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from airbridge.infra.exceptions import InfraError

Stacks = Mapping[str, Mapping[str, Any]]
_REFERENCE = re.compile(r"\$\{([a-z_0-9]+)\.([A-Za-z0-9_-]+)\.")
_AWS_NAMESPACES = ("AWS/", "ECS/", "CWAgent")


@dataclass(frozen=True)
class Item:
    """One line of an estimate: a number of things, and what one of them costs a month."""

    what: str
    count: float
    each: float
    why: str = ""

    @property
    def cost(self) -> float:
        """Dollars a month."""
        return self.count * self.each


@dataclass(frozen=True)
class Prices:
    """Price list of `prices.toml`."""

    entries: Mapping[str, Any]

    @classmethod
    def read(cls) -> Prices:
        """Read the list that ships with the package."""
        return cls(tomllib.loads(resources.files("airbridge.infra").joinpath("prices.toml").read_text()))

    def month(self, name: str) -> float:
        """Return the price of a month."""
        return float(self.entries["monthly"][name])

    def hours(self, table: str, name: str) -> float:
        """Return the price of a month of what is billed by the hour. Raises InfraError if the list does not have it."""
        if name not in self.entries[table]:
            known = ", ".join(sorted(self.entries[table]))
            raise InfraError(
                f"prices.toml: {table} has no {name}; add it with its source. There are: {known}"
            )
        return float(self.entries[table][name]) * float(self.entries["hours_per_month"])


def estimate(stacks: Stacks, prices: Prices) -> list[Item]:
    """Return the items of an environment, those of one kind together."""
    found = [item for stack in stacks.values() for item in _items(stack.get("resource", {}), prices)]
    merged: dict[tuple[str, float, str], float] = {}
    for item in found:
        key = (item.what, item.each, item.why)
        merged[key] = merged.get(key, 0) + item.count
    return [Item(what, count, each, why) for (what, each, why), count in merged.items() if count]


def _items(made: Mapping[str, Any], prices: Prices) -> Iterator[Item]:
    yield from _network(made, prices)
    yield from _services(made, prices)
    yield from _databases(made, prices)
    yield from _pools(made, prices)
    yield from _small_things(made, prices)


def _network(made: Mapping[str, Any], prices: Prices) -> Iterator[Item]:
    def hours(name: str) -> float:
        return prices.hours("hourly", name)

    yield Item("NAT gateway", len(_all(made, "aws_nat_gateway")), hours("nat_gateway"))
    endpoints = [one for one in _all(made, "aws_vpc_endpoint") if one.get("vpc_endpoint_type") == "Interface"]
    zones = sum(len(one["subnet_ids"]) for one in endpoints)
    yield Item(
        "interface endpoint in a zone",
        zones,
        hours("interface_endpoint_zone"),
    )
    balancers = _all(made, "aws_lb")
    yield Item("load balancer", len(balancers), hours("load_balancer"))
    addresses = len(_all(made, "aws_eip"))
    addresses += sum(len(one["subnets"]) for one in balancers if not one.get("internal"))
    addresses += sum(
        one["desired_count"]
        for one in _all(made, "aws_ecs_service")
        if one["network_configuration"].get("assign_public_ip")
    )
    yield Item("public IPv4 address", addresses, hours("public_ipv4"))
    yield Item("private hosted zone", len(_all(made, "aws_route53_zone")), prices.month("hosted_zone"))


def _services(made: Mapping[str, Any], prices: Prices) -> Iterator[Item]:
    for service in _all(made, "aws_ecs_service"):
        _, name = _referred(service["task_definition"])
        task = made["aws_ecs_task_definition"][name]
        cpus, gib = int(task["cpu"]) / 1024, int(task["memory"]) / 1024
        each = cpus * prices.hours("hourly", "fargate_arm_vcpu") + gib * prices.hours(
            "hourly", "fargate_arm_gib"
        )
        what = f"Fargate, {cpus:g} vCPU and {gib:g} GiB"
        yield Item(what, service["desired_count"], each, "ARM")


def _databases(made: Mapping[str, Any], prices: Prices) -> Iterator[Item]:
    for database in _all(made, "aws_db_instance"):
        zones = 2 if database.get("multi_az") else 1
        kind = database["instance_class"]
        yield Item(
            f"database {kind}", zones, prices.hours("database_hourly", kind), "a standby is the second"
        )
        yield Item(
            "database storage, GiB", zones * database["allocated_storage"], prices.month("database_gp3_gib")
        )
        if database.get("manage_master_user_password"):
            yield Item("secret", 1, prices.month("secret"))


def _pools(made: Mapping[str, Any], prices: Prices) -> Iterator[Item]:
    for group in _all(made, "aws_autoscaling_group"):
        if not group["min_size"]:
            continue
        template = group["mixed_instances_policy"]["launch_template"]
        kind = template["override"][0]["instance_type"]
        yield Item(f"worker {kind}", group["min_size"], prices.hours("instance_hourly", kind), "on demand")
        _, name = _referred(template["launch_template_specification"]["launch_template_id"])
        disks = made["aws_launch_template"][name]["block_device_mappings"]
        size = sum(disk["ebs"]["volume_size"] for disk in disks)
        yield Item("worker's disk, GiB", group["min_size"] * size, prices.month("disk_gp3_gib"))


def _small_things(made: Mapping[str, Any], prices: Prices) -> Iterator[Item]:
    for kind, what, name in (
        ("aws_secretsmanager_secret", "secret", "secret"),
        ("aws_kms_key", "KMS key", "key"),
        ("aws_cloudwatch_dashboard", "dashboard", "dashboard"),
    ):
        yield Item(what, len(_all(made, kind)), prices.month(name))
    alarms = _all(made, "aws_cloudwatch_metric_alarm")
    watched = sum(len([q for q in one.get("metric_query", []) if q.get("metric")]) or 1 for one in alarms)
    yield Item("metric of an alarm", watched, prices.month("alarm_metric"))
    drawn = {tuple(metric) for body in _all(made, "aws_cloudwatch_dashboard") for metric in _drawn(body)}
    yield Item("custom metric", len(drawn | set(_watched(alarms))), prices.month("custom_metric"))


def _watched(alarms: Iterable[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    for alarm in alarms:
        for one in [alarm, *(query.get("metric") or {} for query in alarm.get("metric_query", []))]:
            if one.get("namespace") and not one["namespace"].startswith(_AWS_NAMESPACES):
                dimensions = sorted((one.get("dimensions") or {}).items())
                yield (one["namespace"], one["metric_name"], *(part for pair in dimensions for part in pair))


def _drawn(dashboard: Mapping[str, Any]) -> Iterator[tuple[str, ...]]:
    for widget in json.loads(dashboard["dashboard_body"])["widgets"]:
        for line in widget.get("properties", {}).get("metrics", []):
            texts = [part for part in line if isinstance(part, str)]
            if len(texts) > 1 and not texts[0].startswith(_AWS_NAMESPACES):
                pairs = sorted(zip(texts[2::2], texts[3::2], strict=False))
                yield (*texts[:2], *(part for pair in pairs for part in pair))


def _all(made: Mapping[str, Any], kind: str) -> list[Mapping[str, Any]]:
    return list(made.get(kind, {}).values())


def _referred(value: str) -> tuple[str, str]:
    match = _REFERENCE.search(value)
    if match is None:
        raise InfraError(f"{value!r} refers to no resource of the stack; synthesise it anew")
    return match[1], match[2]


def table(name: str, items: Sequence[Item], prices: Prices) -> str:
    """Return an estimate as text, with its arithmetic."""
    rows = sorted(items, key=lambda item: -item.cost)
    lines = [
        f"{name}: idle, {prices.entries['region']} prices as of {prices.entries['as_of']}, {prices.entries['hours_per_month']} hours"
    ]
    for item in rows:
        why = f"  ({item.why})" if item.why else ""
        lines.append(f"  {item.count:5g} x {item.each:8.2f} = {item.cost:8.2f}  {item.what}{why}")
    lines.append(f"  {'total a month':>16} = {sum(item.cost for item in items):8.2f}")
    return "\n".join(lines) + "\n"


def read(directory: Path) -> dict[str, dict[str, Any]]:
    """Return the stacks of a synthesised environment. Raises InfraError if there are none."""
    files = sorted(directory.glob("stacks/*/cdk.tf.json"))
    if not files:
        raise InfraError(f"{directory}: no synthesised stacks; run `make synth`")
    return {file.parent.name: json.loads(file.read_text()) for file in files}


def main(arguments: Sequence[str] | None = None) -> int:
    """Print an estimate of each environment; 0, or 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(
        prog="python -m airbridge.infra.tools.cost",
        description="Estimate what environments cost a month while they are idle.",
        epilog="Example: python -m airbridge.infra.tools.cost cdktf.out/dev cdktf.out/prod",
    )
    parser.add_argument("directories", nargs="+", type=Path, help="synthesised environments")
    options = parser.parse_args(arguments)
    prices = Prices.read()
    try:
        for directory in options.directories:
            sys.stdout.write(table(directory.name, estimate(read(directory), prices), prices) + "\n")
    except InfraError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(
        "Not counted: requests, capacity units, data transfer, logs, Container Insights, objects, backups, workers above the minimum.\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
