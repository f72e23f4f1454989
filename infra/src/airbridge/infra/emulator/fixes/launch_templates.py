"""A launch template's tags stay on the template: moto also writes them into what its instances are given."""

from __future__ import annotations

from typing import Any

from moto.ec2.models.launch_templates import LaunchTemplateVersion


def apply() -> None:
    """Leave a template's own tags out of its data."""
    version: Any = LaunchTemplateVersion
    make = version.__init__

    def without_own_tags(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        given = self.data.get("TagSpecifications", [])
        self.data["TagSpecifications"] = [
            each for each in given if each.get("ResourceType") != "launch-template"
        ]

    version.__init__ = without_own_tags
