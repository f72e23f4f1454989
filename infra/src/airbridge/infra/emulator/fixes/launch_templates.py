"""A launch template's tags stay on the template, and instances start from a later version.

moto also writes the tags into what its instances are given, and keeps the user data of a version that was added as text, from
which a group starts no instance.
"""

from __future__ import annotations

from typing import Any

from moto.core.types import Base64EncodedString
from moto.ec2.models.launch_templates import LaunchTemplateVersion


def apply() -> None:
    """Leave a template's own tags out of its data, and decode its user data."""
    version: Any = LaunchTemplateVersion
    make = version.__init__

    def without_own_tags(self: Any, *arguments: Any, **named: Any) -> None:
        make(self, *arguments, **named)
        script = self.data.get("UserData")
        if isinstance(script, str):
            self.data["UserData"] = Base64EncodedString(script)
        given = self.data.get("TagSpecifications", [])
        self.data["TagSpecifications"] = [
            each for each in given if each.get("ResourceType") != "launch-template"
        ]

    version.__init__ = without_own_tags
