"""Placement by price and by declared assets: the cheapest region that holds something of a task's data."""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.executor.catalogues import TOML
from tests.unit.executor.test_placement import SETTINGS, decide

from airbridge.core import near
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import ConfigurationError
from airbridge.core.regions import Prices, Region
from airbridge.executor.placement.placement import Decision, Placement

US, EU = "us-east-1", "eu-west-1"
EGRESS = "[prices]\negress = { us-east-1 = 0.02, '*' = 0.09 }\n"


def priced(prices: str, **hints: Any) -> Decision:
    where = hints.pop("where", ("s3://us-data/a", "s3://eu-data/b"))
    return Placement(Catalogue.parse(f"{TOML}\n{prices}"), SETTINGS).decide(
        "default", near(*where, **hints), {}
    )


# --- Prices


def test_larger_data_draws_the_task() -> None:
    """The first hint weighs most without prices; with them, what would have to leave its region."""
    assert decide(config=near("s3://us-data/a", "s3://eu-data/b")).place.region == US
    found = priced(EGRESS, sizes={"s3://us-data/a": "1GiB", "s3://eu-data/b": "2TiB"})
    assert found.place.region == EU
    assert found.why == "near s3://eu-data/b; costs 0.02 there, us-east-1 184.3"


def test_price_of_leaving_counts() -> None:
    """Data of one size moves out of the region where that is cheaper."""
    assert priced(EGRESS).place.region == EU
    assert priced("[prices]\negress = { us-east-1 = 0.09, '*' = 0.02 }\n").place.region == US


def test_slots_have_prices() -> None:
    """A long task goes where slots are cheap; a short one stays where more of its data is."""
    prices = f"{EGRESS}slot_hour = {{ us-east-1 = 0.01, '*' = 0.50 }}\n"
    sizes = {"s3://us-data/a": 1, "s3://eu-data/b": 40}
    assert priced(prices, sizes=sizes, hours=24).place.region == US
    assert priced(prices, sizes=sizes, hours=0.1).place.region == EU


def test_replicas_cost_nothing() -> None:
    """Data that both regions hold is read in either, and is no reason to move the other."""
    found = priced(EGRESS, where=("s3://shared/both", "s3://us-data/a"), sizes={"s3://shared/both": "9TiB"})
    assert found.place.region == US


def test_equal_costs_are_decided_as_before() -> None:
    """Without a difference in price, the earlier hint counts."""
    free = "[prices]\negress = { '*' = 0 }\n"
    assert priced(free).place.region == US
    assert priced(free, where=("s3://eu-data/b", "s3://us-data/a")).place.region == EU


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ("[prices]\negress = { eu-west-2 = 1 }", "prices.egress: there is no region 'eu-west-2'; did you mean 'eu-west-1'"),
        ("[prices]\nslot_hour = { 'gpus@eu-west-1' = 1 }", "prices.slot_hour: there is no queue 'gpus@eu-west-1'; did you mean 'gpu@eu-west-1'"),
        ("[prices]\negress = { '*' = -1 }", "prices"),
        ("[prices]\negres = {}", "egres"),
    ],
)  # fmt: skip
def test_wrong_prices_are_refused(prices: str, message: str) -> None:
    """The error names the table and the name that is not there."""
    with pytest.raises(ConfigurationError) as refusal:
        Catalogue.parse(f"{TOML}\n{prices}")
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"s3://us-data/a": "40 gigs"}, "executor_config['airbridge']['sizes']['s3://us-data/a'] is '40 gigs': must be a size, such as '4GiB'; its unit is one of"),
        ({"s3://us-data/a": -1}, "greater than or equal to 0"),
        ({"s3://us-dat/a": 1}, "executor_config['airbridge']: sizes has 's3://us-dat/a', which is no data of near; did you mean 's3://us-data/a'"),
    ],
)  # fmt: skip
def test_wrong_sizes_are_refused_at_once(sizes: dict[str, Any], message: str) -> None:
    """In the DAG file, with the hint and what would be right."""
    with pytest.raises(ValueError, match="sizes") as refusal:
        near("s3://us-data/a", sizes=sizes)
    assert message in str(refusal.value)


NAMES = ("a", "b", "c", "d")
DATA = tuple(f"s3://{name}/x" for name in "klmn")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Catalogue, dict[str, Any]]:
    """Return a catalogue with prices, and a task whose data some regions hold."""
    regions = [
        Region(
            name=name,
            log_bucket="l",
            bundle_bucket="b",
            data=tuple(draw(st.lists(st.sampled_from(DATA), unique=True))),
            pool=[{"queue_url": f"http://q/{name}"}],
        )
        for name in NAMES
    ]
    price = st.floats(0, 10)
    prices = Prices(
        egress=draw(st.dictionaries(st.sampled_from(("*", *NAMES)), price)),
        slot_hour=draw(st.dictionaries(st.sampled_from(("*", *NAMES)), price)),
    )
    held = sorted({uri for region in regions for uri in region.data})
    where = draw(st.lists(st.sampled_from(held), min_size=1, unique=True)) if held else ["region:a"]
    sizes = draw(
        st.dictionaries(st.sampled_from([w for w in where if w in held] or ["x"]), st.floats(0, 1e4))
    )
    hints = near(
        *where, sizes={k: v for k, v in sizes.items() if k in held}, hours=draw(st.floats(0.01, 100))
    )
    return Catalogue(home_region="a", region=regions, prices=prices), hints


def cost(catalogue: Catalogue, hints: dict[str, Any], region: str) -> float:
    """What the run costs in a region, by the definition: its slot, and every GiB that leaves another region."""
    assert catalogue.prices is not None
    asked = hints["airbridge"]
    total = asked["hours"] * catalogue.prices.of_slot(region, "default")
    for uri in asked["near"]:
        holders = [each.name for each in catalogue.regions if uri in each.data]
        if holders and region not in holders:
            size = asked.get("sizes", {}).get(uri, 1.0)
            total += size * min(catalogue.prices.of_egress(holder) for holder in holders)
    return total


@given(world=worlds())
def test_never_dearer_than_by_prefix(world: tuple[Catalogue, dict[str, Any]]) -> None:
    """Nor than any other region that holds something of the task's data; and never outside of these."""
    catalogue, hints = world
    chosen = Placement(catalogue, SETTINGS).decide("default", hints, {}).place.region
    plain = Placement(catalogue.model_copy(update={"prices": None}), SETTINGS).decide("default", hints, {})
    assert cost(catalogue, hints, chosen) <= cost(catalogue, hints, plain.place.region) + 1e-6
    holding = {
        each.name for each, uri in product(catalogue.regions, hints["airbridge"]["near"]) if uri in each.data
    }
    for name in holding:
        assert cost(catalogue, hints, chosen) <= cost(catalogue, hints, name) + 1e-6
    assert chosen in (holding or {"a"})


# --- Assets


class Asset:
    """An asset of Airflow, as `near` sees it."""

    uri = "s3://eu-data/orders"


def test_an_asset_is_data() -> None:
    """`near` takes an asset for its address."""
    assert near(Asset()) == near("s3://eu-data/orders")


def by_assets(
    *uris: str, config: dict[str, Any] | None = None, queue: str = "default", on: bool = True
) -> Decision:
    placement = Placement(Catalogue.parse(TOML), replace(SETTINGS, near_assets=on))
    return placement.decide(queue, config, {}, assets=lambda: uris)


def test_a_task_goes_near_its_assets() -> None:
    """A task without a hint runs where the data is that it declares; the timeline says so."""
    found = by_assets("s3://eu-data/orders", "mysql://nowhere/x")
    assert found.place.region == EU
    assert found.why == "near s3://eu-data/orders, which it declares as assets"


def test_inlets_come_first() -> None:
    """What is read weighs more than what is written: it comes first."""
    assert by_assets("s3://eu-data/in", "s3://us-data/out").place.region == EU
    assert by_assets("s3://us-data/in", "s3://eu-data/out").place.region == US


@pytest.mark.parametrize("uris", [(), ("x://nowhere",), ("orders",), ("s3://other/data",)])
def test_unknown_assets_do_not_count(uris: tuple[str, ...]) -> None:
    """An asset that no region holds is no mistake: the task goes where it went."""
    assert by_assets(*uris).why == "it names neither a queue nor a hint"


def test_hints_are_stronger_than_assets() -> None:
    """A queue, a hint of data and a pool that only another region has."""
    assert by_assets("s3://eu-data/x", queue=US).place.region == US
    assert by_assets("s3://eu-data/x", config=near("s3://us-data/y")).place.region == US
    assert (
        str(by_assets("s3://us-data/x", "s3://shared/both", config=near(pool="gpu")).place) == "gpu@eu-west-1"
    )


def test_assets_can_be_left_out() -> None:
    """`near_assets = False` looks at no asset."""
    assert by_assets("s3://eu-data/x", on=False).place.region == US
