"""Which of the regions that hold a task's data may run it: those with workers that can have it, and to which its data may go."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.executor.test_placement import SETTINGS

from airbridge.core import near
from airbridge.core.catalogue import Catalogue
from airbridge.core.exceptions import PlacementError
from airbridge.core.regions import Pool, Prices, Region
from airbridge.executor.placement.placement import Decision, Placement

GIB = 2**30


def region(name: str, *data: str, strict: bool = False, slot: int | None = None, slots: int = 4) -> Region:
    return Region(
        name=name,
        log_bucket="l",
        bundle_bucket="b",
        data=data,
        residency="strict" if strict else "open",
        pool=[Pool(queue_url=f"http://q/{name}", slots=slots, slot_memory=slot)],
    )


def placed(
    *regions: Region, prices: Prices | None = None, assets: tuple[str, ...] = (), **asked: Any
) -> Decision:
    catalogue = Catalogue(home_region=regions[0].name, region=regions, prices=prices)
    where = asked.pop("where", ())
    return Placement(catalogue, SETTINGS).decide("default", near(*where, **asked), {}, assets=lambda: assets)


BOTH = ("s3://eu/x", "s3://us/x")


# --- Slots


def test_every_slot_that_it_takes_costs() -> None:
    """Four small slots are dearer than a large one at three times the price of one of them."""
    small, large = region("small", "s3://d", slot=2 * GIB), region("large", "s3://d", slot=8 * GIB)
    prices = Prices(slot_hour={"small": 0.03, "large": 0.09})
    found = placed(small, large, prices=prices, where=("s3://d",), memory="8GiB")
    assert (found.place.region, found.slots) == ("large", 1)
    assert found.why == "near s3://d; costs 0.09 there, small 0.12"
    assert placed(small, large, prices=prices, where=("s3://d",), memory="4GiB").place.region == "small"


@pytest.mark.parametrize("prices", [None, Prices(slot_hour={"small": 0.0, "large": 9.0})])
def test_workers_that_cannot_have_it_do_not_count(prices: Prices | None) -> None:
    """The task goes to the other region that holds its data, cheap or dear; it is refused only where none can have it."""
    small = region("small", "s3://d", slot=2 * GIB, slots=1)
    large = region("large", "s3://d", slot=8 * GIB, slots=1)
    assert placed(small, large, prices=prices, where=("s3://d",), memory="8GiB").place.region == "large"
    with pytest.raises(PlacementError, match="memory of 16 GiB"):
        placed(small, large, prices=prices, where=("s3://d",), memory="16GiB")


def test_three_other_costs_are_named() -> None:
    """Of many regions the reason names the three cheapest others, and that there are more."""
    prices = Prices(slot_hour={name: number for number, name in enumerate("abcde")})
    some = placed(*(region(name, "s3://d") for name in "abcd"), prices=prices, where=("s3://d",))
    assert some.why == "near s3://d; costs 0 there, b 1, c 2, d 3"
    many = placed(*(region(name, "s3://d") for name in "abcde"), prices=prices, where=("s3://d",))
    assert many.why == "near s3://d; costs 0 there, b 1, c 2, d 3, …"


# --- Residency


def test_data_of_a_strict_region_stays() -> None:
    """Its region is taken, although the other comes first, is cheaper and has as much; the timeline says why."""
    us, eu = region("us", "s3://us"), region("eu", "s3://eu", strict=True)
    assert placed(us, eu, where=("s3://us/x", "s3://eu/x")).place.region == "eu"
    dear = Prices(egress={"us": 9.0}, slot_hour={"eu": 100.0})
    found = placed(us, eu, prices=dear, where=BOTH, sizes={"s3://us/x": "1TiB"})
    assert found.place.region == "eu"
    assert found.why == "near s3://eu/x, of which nothing may leave"


def test_a_copy_in_an_open_region_may_leave() -> None:
    """What an open region holds as well is read from there, at its price."""
    eu, us, ap = region("eu", "s3://both", strict=True), region("us", "s3://both"), region("ap", "s3://ap")
    prices = Prices(egress={"eu": 0.0, "us": 0.5, "ap": 0.4})
    found = placed(eu, us, ap, prices=prices, where=("s3://both", "s3://ap"))
    assert (found.place.region, found.why) == ("eu", "near s3://both; costs 0.4 there, us 0.4, ap 0.5")


def test_data_of_two_strict_regions_is_refused() -> None:
    """Nothing is moved by default: the error names what stays where, and the way out."""
    regions = region("us", "s3://us", strict=True), region("eu", "s3://eu", strict=True)
    with pytest.raises(PlacementError) as refusal:
        placed(*regions, where=BOTH)
    assert str(refusal.value) == (
        "executor_config['airbridge']['near']: no region with a pool 'default' may read all of it: 's3://eu/x' stays in eu; "
        "'s3://us/x' stays in us (residency = \"strict\"). Split the task, or give it the queue of a region that may read it all"
    )


def test_a_strict_region_without_the_pool_is_refused() -> None:
    """Its data does not go to the region that has the pool."""
    us = region("us", "s3://us").model_copy(update={"pools": (Pool(name="gpu", queue_url="http://q/gpu"),)})
    eu = region("eu", "s3://eu", strict=True)
    with pytest.raises(
        PlacementError, match="no region with a pool 'gpu' may read all of it: 's3://eu/x' stays in eu"
    ):
        placed(eu, us, where=BOTH, pool="gpu")


def test_assets_are_not_refused() -> None:
    """A task that exports declares assets of two regions; it runs where most of what must stay is."""
    us, eu = region("us", "s3://us"), region("eu", "s3://eu", strict=True)
    assert placed(us, eu, assets=("s3://us/out", "s3://eu/in")).place.region == "eu"
    both = region("us", "s3://us", strict=True), eu
    assert placed(*both, assets=("s3://us/in", "s3://eu/out")).place.region == "us"


def test_an_asset_may_leave_an_open_region_without_the_pool() -> None:
    """A copy elsewhere is read from where it is, whether that region could run the task or not."""
    gpu = {"pools": (Pool(name="gpu", queue_url="http://q/gpu"),)}
    eu = region("eu", "s3://a")
    de = region("de", "s3://a", strict=True).model_copy(update=gpu)
    us = region("us", "s3://b").model_copy(update=gpu)
    prices = Prices(egress={"*": 0.1}, slot_hour={"gpu@de": 5.0})
    found = placed(eu, de, us, prices=prices, assets=("s3://a/x", "s3://b/x"), pool="gpu")
    assert found.place.region == "us"


# --- Over generated catalogues

NAMES = ("a", "b", "c")
DATA = tuple(f"s3://{name}" for name in "klm")


@st.composite
def worlds(draw: st.DrawFn) -> tuple[tuple[Region, ...], Prices | None, tuple[str, ...], int]:
    """Return regions, prices, the data that a task reads and the memory that it requests, in GiB."""
    regions = tuple(
        region(
            name,
            *draw(st.lists(st.sampled_from(DATA), unique=True)),
            strict=draw(st.booleans()),
            slot=draw(st.sampled_from((None, GIB, 3 * GIB))),
            slots=draw(st.integers(1, 4)),
        )
        for name in NAMES
    )
    price = st.dictionaries(st.sampled_from(("*", *NAMES)), st.floats(0, 10))
    prices = draw(st.none() | st.builds(Prices, egress=price, slot_hour=price))
    held = sorted({uri for each in regions for uri in each.data})
    where = draw(st.lists(st.sampled_from(held), min_size=1, unique=True)) if held else []
    return regions, prices, tuple(where), draw(st.integers(1, 8))


def cost(
    regions: tuple[Region, ...], prices: Prices, where: tuple[str, ...], memory: int, name: str
) -> float:
    """What an hour's run costs in a region, by the definition: its slots, and each GiB that leaves a region it may leave."""
    by_name = {each.name: each for each in regions}
    total = by_name[name].pools[0].slots_for(1, memory * GIB, None) * prices.of_slot(name, "default")
    for uri in where:
        holders = [each for each in regions if uri in each.data]
        if by_name[name] not in holders:
            total += min(prices.of_egress(each.name) for each in holders if each.residency == "open")
    return total


def may_run(regions: tuple[Region, ...], where: tuple[str, ...], memory: int) -> set[str]:
    """Regions that hold some of the data, can have the task, and need nothing of it that must stay elsewhere."""
    able = set()
    for each, uri in product(regions, where):
        pool = each.pools[0]
        needed = 1 if pool.slot_memory is None else -(-memory * GIB // pool.slot_memory)
        if uri in each.data and needed <= max(1, pool.slots):
            able.add(each.name)
    for uri in where:
        holders = [each for each in regions if uri in each.data]
        if all(each.residency == "strict" for each in holders):
            able &= {each.name for each in holders}
    return able


@given(world=worlds())
def test_the_cheapest_that_may_run_it(
    world: tuple[tuple[Region, ...], Prices | None, tuple[str, ...], int],
) -> None:
    """Never one that may not, never a dearer one, and refused only if there is none."""
    regions, prices, where, memory = world
    if not where:
        return
    allowed = may_run(regions, where, memory)
    if not allowed:
        with pytest.raises(PlacementError):
            placed(*regions, prices=prices, where=where, memory=f"{memory}GiB")
        return
    chosen = placed(*regions, prices=prices, where=where, memory=f"{memory}GiB").place.region
    assert chosen in allowed
    if prices is not None:
        least = min(cost(regions, prices, where, memory, name) for name in allowed)
        assert cost(regions, prices, where, memory, chosen) <= least + 1e-6
