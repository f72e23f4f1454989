"""The region nearest to a task's data: of the regions that hold some of it, those that may run the task, and of these the cheapest."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airbridge.core.exceptions import PlacementError
from airbridge.core.hints import REGION_SCHEME, Hints
from airbridge.core.regions import DEFAULT_POOL, Prices, Region, Residency

if TYPE_CHECKING:
    from airbridge.executor.ledger.backlogs import Backlog

#: What a task is taken to read of data whose size it does not name, in GiB, and how long it is taken to run.
UNKNOWN_GIB = 1.0
UNKNOWN_HOURS = 1.0

# Backlog and live workers by (region, pool).
Load = Mapping[tuple[str, str], "Backlog"]


@dataclass(frozen=True, slots=True)
class Near:
    """Something that a task is to be near to, as it is written, and the regions that have it. A region may be named itself."""

    what: str
    regions: tuple[Region, ...]

    @property
    def is_data(self) -> bool:
        """Return whether it is data, and not a region."""
        return not self.what.startswith(REGION_SCHEME)

    @property
    def stays(self) -> bool:
        """Return whether it is data that no other region may read: all that hold it are strict."""
        return self.is_data and all(region.residency is Residency.STRICT for region in self.regions)

    def is_in(self, name: str) -> bool:
        """Return whether a region has it."""
        return any(region.name == name for region in self.regions)


@dataclass(frozen=True, slots=True)
class Choice:
    """Chosen region, what of the task's data is there, and what else decided."""

    region: str
    why: str


@dataclass(frozen=True, slots=True)
class Nearest:
    """Chooses for one task of at least `slots` slots, which is to be near to `near`; at least one region has each."""

    near: Sequence[Near]
    hints: Hints
    slots: int
    prices: Prices | None
    load: Load

    @property
    def pool(self) -> str:
        """The task's pool, in whichever region."""
        return self.hints.pool or DEFAULT_POOL

    @property
    def regions(self) -> list[Region]:
        """Regions that have some of it, in the task's order."""
        return [*{region.name: region for one in self.near for region in one.regions}.values()]

    def choose(self, *, refuse: bool) -> Choice:
        """The cheapest where there are prices; then most hints, the earlier hint, live workers, the shorter wait for a slot.

        Data of strict regions alone stays in them. Raises `PlacementError` if no worker of any of the regions can have the task,
        and, with `refuse`, if there is no region that all such data is in; without it, as little as possible leaves.
        """
        slots = self._slots()
        leaving = {name: [one for one in self.near if one.stays and not one.is_in(name)] for name in slots}
        fewest = min(map(len, leaving.values()))
        if fewest and refuse:
            raise PlacementError(self._nowhere())
        allowed = [name for name in slots if len(leaving[name]) == fewest]
        costs = self._costs({name: slots[name] for name in allowed})
        best = min(
            allowed,
            key=lambda name: (
                costs.get(name, 0.0),
                *self._rank(name),
                *_wait(self.load.get((name, self.pool))),
            ),
        )
        matched = ", ".join(one.what for one in self.near if one.is_in(best))
        stays = ", of which nothing may leave" if len(allowed) < len(slots) else ""
        return Choice(best, f"near {matched}{stays}{_compared(best, costs)}")

    def _slots(self) -> dict[str, int]:
        """Return the slots that the task takes in each region whose workers can have it."""
        found: dict[str, int] = {}
        refused: list[PlacementError] = []
        for region in self.regions:
            pool = region.pool(self.pool)
            if pool is None:
                continue
            try:
                found[region.name] = pool.slots_for(self.slots, self.hints.memory, self.hints.cpus)
            except PlacementError as error:
                refused.append(error)
        if not found:
            raise refused[0]
        return found

    def _nowhere(self) -> str:
        kept = "; ".join(
            f"{one.what!r} stays in {' or '.join(region.name for region in one.regions)}"
            for one in self.near
            if one.stays
        )
        return (
            f"executor_config['airbridge']['near']: no region with a pool {self.pool!r} may read all of it: {kept} "
            '(residency = "strict"). Split the task, or give it the queue of a region that may read it all'
        )

    def _costs(self, slots: Mapping[str, int]) -> dict[str, float]:
        """Return what a run costs in each region: its slots, and the data that it reads from elsewhere; empty without prices."""
        prices = self.prices
        if prices is None:
            return {}
        data = [(self.hints.sizes.get(one.what, UNKNOWN_GIB), one) for one in self.near if one.is_data]
        hours = self.hints.hours or UNKNOWN_HOURS
        return {
            # Rounded: sums of the same prices in another order are no difference.
            name: round(
                hours * taken * prices.of_slot(name, self.pool)
                + sum(size * _egress(prices, one) for size, one in data if not one.is_in(name)),
                9,
            )
            for name, taken in slots.items()
        }

    def _rank(self, name: str) -> tuple[int, int]:
        matched = [index for index, one in enumerate(self.near) if one.is_in(name)]
        return -len(matched), matched[0]


def _egress(prices: Prices, data: Near) -> float:
    """Return the lowest price of a GiB of this data, from a region that it may leave if there is one."""
    holders: Collection[Region] = data.regions
    if not data.stays:
        holders = [region for region in holders if region.residency is not Residency.STRICT]
    return min(prices.of_egress(region.name) for region in holders)


def _compared(best: str, costs: Mapping[str, float]) -> str:
    """Return the costs of the regions that were compared, the chosen one first."""
    if len(costs) < 2:
        return ""
    others = sorted((cost, name) for name, cost in costs.items() if name != best)
    listed = ", ".join(f"{name} {cost:.4g}" for cost, name in others[:3])
    return f"; costs {costs[best]:.4g} there, {listed}{', …' if len(others) > 3 else ''}"


def _wait(backlog: Backlog | None) -> tuple[bool, float]:
    if backlog is None or not backlog.slots:
        return True, float(backlog.placed + backlog.sent) if backlog else 0.0
    return False, (backlog.placed + backlog.sent + backlog.claimed) / backlog.slots
