"""Linear model of what a platform's load costs, fitted to measurements: CPU seconds and bytes of WAL by kind of request.

A cost is never negative, so the fit is a non-negative least squares of relative errors (Lawson and Hanson, *Solving Least Squares
Problems*, 1974, chapter 23).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Final

SPACING: Final = 0.05
"""Seconds from one batch of heartbeats to the next in a gateway, at least: `SPACING` of the gateway's batcher."""
_TINY: Final = 1e-12


@dataclass(frozen=True)
class Load:
    """Amounts of everything that has a cost, in one measurement or one second."""

    rest: float = 0.0
    """Seconds of the platform, for the gateways' costs seconds of each gateway."""
    worker: float = 0.0
    """Seconds of each enrolled worker: statements that go through the table of workers."""
    batch: float = 0.0
    heartbeat: float = 0.0
    renewal: float = 0.0
    """Batches that renew leases, over what they cost without: the statements for all of them."""
    lease: float = 0.0
    """Leases that are renewed, over what their heartbeats cost without."""
    running: float = 0.0
    """Seconds of each running task: scheduler and Postgres look at it again and again."""
    placing: float = 0.0
    """Tasks that the scheduler queues and the outbox sends."""
    claim: float = 0.0
    exchange: float = 0.0
    receive: float = 0.0
    """Polls of a queue through the gateway."""

    def times(self, factor: float) -> Load:
        """Return so many times the load."""
        return Load(**{name: getattr(self, name) * factor for name in KINDS})

    def values(self) -> list[float]:
        """Return the amounts in the order of `KINDS`."""
        return [getattr(self, name) for name in KINDS]


KINDS: Final = tuple(each.name for each in fields(Load))

Costs = Mapping[str, float]
"""Cost of one of each kind."""


@dataclass(frozen=True)
class Observation:
    """Measured load, and what it cost of one resource."""

    name: str
    load: Load
    spent: float


def batches(heartbeats_a_second: float, seconds: float = 1.0) -> float:
    """Return how many batches a gateway makes of heartbeats that come at random, while it keeps up with them.

    The next one starts `SPACING` after the last, or when the first heartbeat after that comes.
    """
    if heartbeats_a_second <= 0:
        return 0.0
    idle = math.exp(-SPACING * heartbeats_a_second) / heartbeats_a_second
    return seconds / (SPACING + idle)


def fit(observations: Sequence[Observation], floor: float, kinds: Sequence[str] = KINDS) -> Costs:
    """Return the costs that explain the observations best, by relative error.

    `floor` is added to each amount that the errors are relative to: what could not be measured better, in its unit.
    Kinds that no observation has cost nothing, nor do those that are not among `kinds`.
    """
    weights = [1.0 / (each.spent + floor) for each in observations]
    rows = [
        [getattr(each.load, kind) * weight if kind in kinds else 0.0 for kind in KINDS]
        for each, weight in zip(observations, weights, strict=True)
    ]
    wanted = [each.spent * weight for each, weight in zip(observations, weights, strict=True)]
    scales = [math.sqrt(sum(row[column] ** 2 for row in rows)) or 1.0 for column in range(len(KINDS))]
    scaled = [[value / scale for value, scale in zip(row, scales, strict=True)] for row in rows]
    found = non_negative(scaled, wanted)
    return {kind: value / scale for kind, value, scale in zip(KINDS, found, scales, strict=True)}


def cost(costs: Costs, load: Load) -> float:
    """Return what a load costs."""
    return sum(costs[kind] * value for kind, value in zip(KINDS, load.values(), strict=True))


def left_out(
    observations: Sequence[Observation], floor: float, kinds: Sequence[str] = KINDS
) -> dict[str, float]:
    """Return what is predicted for each observation, by name, from all others.

    One that alone has requests of a kind is missing: the others do not know what these cost.
    """
    found = {}
    for each in observations:
        others = [other for other in observations if other is not each]
        known = [any(getattr(other.load, kind) for other in others) for kind in KINDS]
        if all(there or not value for there, value in zip(known, each.load.values(), strict=True)):
            found[each.name] = cost(fit(others, floor, kinds), each.load)
    return found


def unidentified(loads: Sequence[Load], tolerance: float = 0.05) -> list[str]:
    """Return the kinds that the loads cannot tell from others: nearly collinear with them, or hardly there.

    `tolerance` is the share of a kind's amounts that no mixture of the others may explain.
    """
    columns = {kind: [getattr(load, kind) for load in loads] for kind in KINDS}
    present = {kind: column for kind, column in columns.items() if any(column)}
    found = []
    for kind, column in present.items():
        others = [other for name, other in present.items() if name != kind]
        length = math.sqrt(_dot(column, column))
        if _residual(column, others) < tolerance * length:
            found.append(kind)
    return found


def _residual(column: Sequence[float], others: Sequence[Sequence[float]]) -> float:
    """Return the length of what is left of a column after its projection on the others."""
    basis: list[list[float]] = []
    for each in [*others, column]:
        rest = list(each)
        for _ in range(2):  # once more for rounding
            for unit in basis:
                share = _dot(rest, unit)
                rest = [value - share * part for value, part in zip(rest, unit, strict=True)]
        length = math.sqrt(_dot(rest, rest))
        if each is column:
            return length
        if length > 1e-9 * math.sqrt(_dot(each, each)):
            basis.append([value / length for value in rest])
    return 0.0


def non_negative(rows: Sequence[Sequence[float]], wanted: Sequence[float]) -> list[float]:
    """Return x >= 0 that minimises the length of rows * x - wanted."""
    columns = list(zip(*rows, strict=True))
    x = [0.0] * len(columns)
    passive: list[int] = []
    for _ in range(10 * len(columns)):
        rest = [w - _dot(row, x) for row, w in zip(rows, wanted, strict=True)]
        gradient = {index: _dot(column, rest) for index, column in enumerate(columns) if index not in passive}
        best = max(gradient, key=gradient.__getitem__, default=None)
        if best is None or gradient[best] <= 1e-10:
            break
        passive.append(best)
        solved = _least_squares([columns[index] for index in passive], wanted)
        while min(solved) <= 0:
            step = min(
                x[index] / (x[index] - value) if x[index] > value else 1.0
                for index, value in zip(passive, solved, strict=True)
                if value <= 0
            )
            for index, value in zip(passive, solved, strict=True):
                x[index] += step * (value - x[index])
            passive = [index for index in passive if x[index] > _TINY]
            x = [value if index in passive else 0.0 for index, value in enumerate(x)]
            if not passive:
                return x
            solved = _least_squares([columns[index] for index in passive], wanted)
        x = [0.0] * len(columns)
        for index, value in zip(passive, solved, strict=True):
            x[index] = value
    return x


def _least_squares(columns: Sequence[Sequence[float]], wanted: Sequence[float]) -> list[float]:
    """Solve the normal equations by Gaussian elimination; a column that the others explain gets 0."""
    size = len(columns)
    table = [[*(_dot(one, other) for other in columns), _dot(one, wanted)] for one in columns]
    for pivot in range(size):
        chosen = max(range(pivot, size), key=lambda row: abs(table[row][pivot]))
        table[pivot], table[chosen] = table[chosen], table[pivot]
        if abs(table[pivot][pivot]) < _TINY:
            continue
        for row in range(size):
            if row != pivot and (factor := table[row][pivot] / table[pivot][pivot]):
                table[row] = [
                    value - factor * other for value, other in zip(table[row], table[pivot], strict=True)
                ]
    return [
        table[row][size] / table[row][row] if abs(table[row][row]) >= _TINY else 0.0 for row in range(size)
    ]


def _dot(one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
