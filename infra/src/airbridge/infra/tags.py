"""Tags by aspect: every resource that can be tagged is, whatever made it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jsii

from airbridge.infra.cdk import IAspect, TerraformResource


@jsii.implements(IAspect)
class Tags:
    """Adds tags to every resource that takes them; a resource's own tags win."""

    def __init__(self, tags: Mapping[str, str]) -> None:
        self._tags = dict(tags)

    def visit(self, node: Any) -> None:
        """Tag one node of the tree."""
        # Only what has settable tags: data sources and autoscaling groups (a list of blocks) do not.
        if isinstance(node, TerraformResource) and isinstance(getattr(type(node), "tags", None), property):
            node.tags = {**self._tags, **(node.tags_input or {})}
