"""Order in which an environment's stacks are deployed for the first time."""

from __future__ import annotations

from collections.abc import Iterable

#: Between `foundation` and `control-plane` images are pushed and secrets filled; the regions come last, in any order.
HOME = ("bootstrap", "foundation", "control-plane")


def ordered(stacks: Iterable[str]) -> list[str]:
    """Return stacks in the order of deployment, regions by name."""
    return sorted(stacks, key=lambda name: (HOME.index(name) if name in HOME else len(HOME), name))
