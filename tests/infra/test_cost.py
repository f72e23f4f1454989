"""Cost of environments while they are idle: the promise for development, the arithmetic, and prices that are missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from datetime import date

import pytest
from tests.infra.aws_rules.test_compute import resources
from tests.infra.conftest import Stacks

from airbridge.infra.exceptions import InfraError
from airbridge.infra.tools.cost import Item, Prices, estimate, table

PRICES = Prices.read()


def total(stacks: Stacks) -> float:
    return sum(item.cost for item in estimate(stacks, PRICES))


def test_development_is_below_200_dollars(synthesised: Callable[[str], Stacks]) -> None:
    """The development environment with its two regions costs less than $200 a month while nothing runs."""
    assert 100 < total(synthesised("dev")) < 200


def test_production_is_estimated(prod: Stacks) -> None:
    """Every billed resource of production has a price; its networks are what costs most."""
    items = {item.what: item.cost for item in estimate(prod, PRICES)}
    assert items["interface endpoint in a zone"] == max(items.values())
    assert 1_000 < total(prod) < 5_000


def test_arithmetic_is_shown(synthesised: Callable[[str], Stacks]) -> None:
    """The printed lines add up to the printed total."""
    text = table("dev", estimate(synthesised("dev"), PRICES), PRICES)
    *lines, last = [line for line in text.splitlines() if "=" in line]
    parts = [line.replace("=", "x").split("x") for line in lines]
    for count, each, *_ in parts:
        assert float(count) * float(each) >= 0
    shown = [float(line.split("=")[1].split()[0]) for line in lines]
    assert abs(sum(shown) - float(last.split("=")[1])) < 0.01 * len(shown)
    date.fromisoformat(PRICES.entries["as_of"])


def test_unknown_price_is_named() -> None:
    """An instance class without a price is refused, with the file."""
    database = {"instance_class": "db.x9.huge", "allocated_storage": 20}
    with pytest.raises(InfraError, match=r"prices.toml: database_hourly has no db.x9.huge"):
        estimate({"one": {"resource": {"aws_db_instance": {"a": database}}}}, PRICES)


def test_items_of_a_kind_are_added() -> None:
    """Two stacks' keys are one line."""
    stack = {"resource": {"aws_kms_key": {"a": {}}}}
    assert [Item("KMS key", 2, 1.0)] == estimate({"one": stack, "two": stack}, PRICES)


def test_development_shape_has_no_idle_network(synthesised: Callable[[str], Stacks]) -> None:
    """No NAT and no interface endpoint but the gateway's link; what has a public address lets nothing in but from balancers."""
    dev = synthesised("dev")
    assert [] == list(resources(dev, "aws_nat_gateway"))
    links = [one for _, one in resources(dev, "aws_vpc_endpoint") if one["vpc_endpoint_type"] == "Interface"]
    assert [1, 1] == [len(one["subnet_ids"]) for one in links]
    assert all(one["desired_count"] == 1 for _, one in resources(dev, "aws_ecs_service"))
    rules = [
        (path, one)
        for path, one in resources(dev, "aws_vpc_security_group_ingress_rule")
        if "services-group" in path
        or "gateways-group" in path
        or "workers-" in path.rsplit("/", 1)[1].split("-in-")[0]
    ]
    assert rules
    assert all(one.get("referenced_security_group_id") for _, one in rules), rules


def test_command_prints_both(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A folder without stacks is refused by name."""
    folder = tmp_path_factory.mktemp("none")
    ran = subprocess.run(
        [sys.executable, "-m", "airbridge.infra.tools.cost", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (1, True) == (ran.returncode, "no synthesised stacks; run `make synth`" in ran.stderr)
