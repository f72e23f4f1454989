"""Residency of connections and variables: the places of their values, by rules of ``policy.toml``."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Final, Literal

from pydantic import BaseModel, ConfigDict, Field

from airbridge.control_plane.policy.decisions import Access, Ruling, Source, TaskFacts

_Patterns = tuple[Annotated[str, Field(min_length=1, max_length=250)], ...]
_KINDS: Final = {
    "connections:read": "connections",
    "variables:read": "variables",
    "variables:write": "variables",
}


class ResidencyRule(BaseModel):
    """Place of the values of some connections and variables: the control plane, each task's own region, or some regions."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,99}$")]
    comment: str = ""
    connections: _Patterns = ()
    variables: _Patterns = ()
    where: Literal["home", "region"] | Annotated[_Patterns, Field(min_length=1)]

    def covers(self, access: Access) -> bool:
        """Return whether the rule is about what is accessed."""
        kind = _KINDS.get(access.action)
        patterns: _Patterns = getattr(self, kind) if kind else ()
        return any(fnmatchcase(access.name or "", pattern) for pattern in patterns)

    def allows(self, source: Source, region: str) -> bool:
        """Return whether the value may be read by a task of a region, from there."""
        if self.where == "home":
            return source is Source.HOME
        if source is Source.HOME:
            return False
        return self.where == "region" or region in self.where


def denial(rules: Sequence[ResidencyRule], task: TaskFacts, access: Access) -> Ruling | None:
    """Return the denial of an access by the first rule that is about it, or None."""
    rule = next((each for each in rules if each.covers(access)), None)
    if rule is None or rule.allows(access.source, task.region):
        return None
    place = rule.where if isinstance(rule.where, str) else ", ".join(rule.where)
    source = "the control plane" if access.source is Source.HOME else f"region {task.region}"
    return Ruling(
        False,
        f"residency: {rule.name}",
        f"policy: residency rule {rule.name!r} keeps {access.name!r} in {place}; it is not read from or written to {source}",
    )
