"""A rule keeps its description whatever it points to: moto keeps it for address ranges only."""

from __future__ import annotations

from typing import Any

from moto.ec2.models.security_groups import SecurityGroupRule


def apply() -> None:
    """Keep the description of rules that name a group or a prefix list."""
    rule: Any = SecurityGroupRule
    make = rule.__init__

    def with_description(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        given = [*arguments, *named.values()]
        texts = [each["Description"] for each in given if isinstance(each, dict) and each.get("Description")]
        self.own_description = texts[0] if texts else None

    def description(self: Any) -> str | None:
        for place in (self.ip_range, self.source_group):
            if place.get("Description"):
                return str(place["Description"])
        own: str | None = self.own_description
        return own

    rule.__init__ = with_description
    rule.description = property(description)
