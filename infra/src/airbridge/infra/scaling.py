"""When a pool grows and shrinks: the numbers that the stacks configure, and a model of what AWS does with them.

The signal is `BacklogPerSlot`, published every ten seconds by the control plane for each region and pool:
work items that wait, divided by the slots alive, or by one instance's slots while there are none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

NAMESPACE = "AirBridge"
METRIC = "BacklogPerSlot"


@dataclass(frozen=True)
class Step:
    """From this backlog per slot up to the next step's, add so many instances."""

    from_backlog: float
    add_instances: int


@dataclass(frozen=True)
class ScalingPlan:
    """A pool's scaling: how the stacks configure it, and how it decides."""

    min_instances: int
    max_instances: int
    slots: int
    idle_minutes: int
    out_period_seconds: int = 10
    warmup_seconds: int = 120
    in_percent: int = 50

    @property
    def steps(self) -> tuple[Step, ...]:
        """Roughly proportional to the backlog: one instance for a trickle, everything for a flood."""
        return (
            Step(0, 1),
            Step(1, math.ceil(self.max_instances / 8)),
            Step(4, math.ceil(self.max_instances / 4)),
            Step(16, self.max_instances),
        )

    def after_backlog(self, capacity: int, backlog_per_slot: float, warming: int = 0) -> int:
        """The capacity that step scaling asks for; instances still warming count towards the step.

        Source: Amazon EC2 Auto Scaling user guide, "Step and simple scaling policies", instance warmup.
        """
        if backlog_per_slot <= 0:
            return capacity
        added = max(step.add_instances for step in self.steps if backlog_per_slot >= step.from_backlog)
        return min(self.max_instances, max(capacity, capacity - warming + added))

    def after_idle(self, capacity: int) -> int:
        """The capacity after `idle_minutes` without backlog: half, and at least one fewer."""
        removed = max(1, math.floor(capacity * self.in_percent / 100))
        return max(self.min_instances, capacity - removed)
