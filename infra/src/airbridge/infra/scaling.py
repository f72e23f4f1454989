"""Scaling of a pool: the numbers that the stacks configure. `tests/autoscaling/model.py` models what AWS does with them.

The control plane publishes two signals for each pool, in the pool's region, every ten seconds and when work arrives:
`BacklogPerSlot`, the unclaimed work items, divided by the slots alive (or by one instance's slots while there
are none), and `WorkPerSlot`, the same with those that run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NAMESPACE = "AirBridge"
BACKLOG = "BacklogPerSlot"
WORK = "WorkPerSlot"


@dataclass(frozen=True)
class Step:
    """From this backlog per slot up to the next step's, add so many instances."""

    from_backlog: float
    add_instances: int


@dataclass(frozen=True)
class ScalingPlan:
    """A pool's scaling, as the stacks configure it."""

    min_instances: int
    max_instances: int
    slots: int
    idle_minutes: int
    out_period_seconds: int = 10
    warmup_seconds: int = 120
    in_percent: int = 50
    # Work per slot up to which a pool shrinks: what `in_percent` leaves of it can do what is being done.
    spare_below: float = 0.5

    @property
    def steps(self) -> tuple[Step, ...]:
        """Roughly proportional to the backlog: one instance for a trickle, everything for a flood."""
        return (
            Step(0, 1),
            Step(1, math.ceil(self.max_instances / 8)),
            Step(4, math.ceil(self.max_instances / 4)),
            Step(16, self.max_instances),
        )
